#!/usr/bin/env python3
"""Builds the Debian package: one for Debian 12, Debian 13 and Ubuntu 24.04.

    build.py --wheelhouse DIR --fetch         fill a directory with all wheels that the package is made of, with pip
    build.py --wheelhouse DIR --output DIR    build the package from them, without a network; print its path
    build.py --output DIR                     both, with a wheelhouse that is thrown away

The package holds the agent and its dependencies as `pip` installs them, with those of EXTRAS, and uses the distribution's Python.
Extension modules are in there for every minor version in PYTHONS: their names tell them apart, and all else is the same.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "artifacts-agent"
PYTHONS = ("3.11", "3.12", "3.13")  # of Debian 12, Ubuntu 24.04 and Debian 13, in this order
AFTER = "3.14"  # the first version that the package has no extension modules for
EXTRAS = ("fleet",)
GLIBC = 28  # 2.28, the oldest that wheels may be made for
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
CONSTRAINTS = ROOT / ".ci/constraints.txt"
HOME = Path("usr/lib") / NAME  # relative to the root of the file system, like all that is staged
PAYLOAD = HOME / "package"
MAINTAINER = "The artifacts-agent authors <artifacts-agent@users.noreply.github.com>"
DESCRIPTION = """
 Build tools hand it each HIT and MISS of the Remote Cache over a Unix socket
 and go on at once. It keeps the events on disk and delivers them in batches
 to an HTTP API, for as long as that takes.
 .
 This package has the command, man pages, shell completion and units for
 systemd. It starts nothing before it is configured.
"""


class BuildError(Exception):
    """The package cannot be built: the message says why."""


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--wheelhouse", type=Path, help="a directory with wheels; without it they are fetched")
    parser.add_argument("--fetch", action="store_true", help="fill the wheelhouse, and build nothing")
    parser.add_argument("--output", type=Path, help="where to put the package")
    parser.add_argument("--revision", default="1", help="what follows the version and a hyphen [default: 1]")
    options = parser.parse_args()
    if options.fetch == (options.output is not None) or (options.fetch and options.wheelhouse is None):
        parser.error("say either --wheelhouse DIR --fetch, or --output DIR")
    os.umask(0o022)
    if find_spec("pip") is None:
        return _run_again_with_pip()
    try:
        architecture = _architecture()
        if options.fetch:
            fetch(options.wheelhouse, architecture)
            return 0
        with tempfile.TemporaryDirectory() as scratch:
            wheelhouse = options.wheelhouse
            if wheelhouse is None:
                wheelhouse = Path(scratch) / "wheelhouse"
                fetch(wheelhouse, architecture)
            print(build(wheelhouse.resolve(), options.output, options.revision, architecture, Path(scratch)))
    except BuildError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    return 0


def _run_again_with_pip() -> int:
    with tempfile.TemporaryDirectory() as environment:
        if subprocess.run([sys.executable, "-m", "venv", environment], check=False, stdout=sys.stderr).returncode:
            return 1
        return subprocess.run([f"{environment}/bin/python", __file__, *sys.argv[1:]], check=False).returncode


def fetch(wheelhouse: Path, architecture: str) -> None:
    """Fill a directory with the wheels of all dependencies, for every Python, and of what builds the agent's own wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    extras = (line for extra in EXTRAS for line in project["optional-dependencies"][extra])
    wanted = [*settings["build-system"]["requires"], *project["dependencies"], *extras]
    for version in PYTHONS:
        _pip("download", *_target(version, architecture), f"--dest={wheelhouse}", *wanted)


def build(wheelhouse: Path, output: Path, revision: str, architecture: str, scratch: Path) -> Path:
    """Build the package from wheels; return its path. Raises BuildError."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running not in PYTHONS:
        raise BuildError(f"Python {running} cannot import what it packs: use one of {', '.join(PYTHONS)}")
    version = f"{_agent_version()}-{revision}"
    made = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_time() or time.time())
    os.environ["SOURCE_DATE_EPOCH"] = str(made)  # pip, the man pages and dpkg-deb read it, too
    stage = scratch / "stage"
    packages = _install(wheelhouse, architecture, stage, scratch)
    release = f"{version}-{_digest(stage / PAYLOAD)}"
    _write_command(stage, release)
    _write_documents(stage, packages, version, made)
    _copy_files(stage)
    _write_control(stage, version, release, architecture)
    output.mkdir(parents=True, exist_ok=True)
    package = output / f"{NAME}_{version}_{architecture}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(package))
    return package


def _install(wheelhouse: Path, architecture: str, stage: Path, scratch: Path) -> Path:
    """Install the agent with its dependencies; return the directory of the packages."""
    wheels = scratch / "wheel"
    offline = ("--no-index", f"--find-links={wheelhouse}")
    _pip("wheel", *offline, "--no-deps", f"--wheel-dir={wheels}", str(ROOT))
    (wheel,) = wheels.iterdir()
    packages = stage / PAYLOAD / "lib/python3/site-packages"
    for version in PYTHONS:
        one = scratch / version
        target = (f"--target={one}", "--no-compile", "--no-warn-script-location")
        _pip("install", *offline, *_target(version, architecture), *target, f"{wheel}[{','.join(EXTRAS)}]")
        _merge(one, packages)
        (packages.parents[1] / f"python{version}").symlink_to("python3")
    shutil.rmtree(packages / "bin")
    for pattern in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):  # what was done here, which no longer holds
        for path in packages.glob(f"*.dist-info/{pattern}"):
            path.unlink()
    _run("strip", "--strip-unneeded", *map(str, packages.rglob("*.so")))
    return packages


def _merge(source: Path, target: Path) -> None:
    """Move all that is not there yet. Raises BuildError if a module is there, and is another one."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif not there.exists():
            path.rename(there)
        elif path.suffix in {".py", ".so"} and path.read_bytes() != there.read_bytes():
            raise BuildError(f"{path.relative_to(source)} is not the same for every Python")


def _write_command(stage: Path, release: str) -> None:
    """Make the payload a virtual environment whose command runs it where the package puts its copy of it: see postinst."""
    payload = stage / PAYLOAD
    (payload / "bin").mkdir()
    (payload / "bin/python3").symlink_to(os.path.relpath("usr/bin/python3", PAYLOAD / "bin"))
    (payload / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    command = payload / "bin" / NAME
    command.write_text(
        f"#!/{HOME}/{release}/bin/python3\nimport sys\n\nfrom artifacts_agent import main\n\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    (stage / "usr/bin").mkdir()
    (stage / "usr/bin" / NAME).symlink_to(f"../lib/{NAME}/current/bin/{NAME}")


def _write_documents(stage: Path, packages: Path, version: str, made: int) -> None:
    """Write man pages and completion, as the staged agent has them, and what Debian wants to know of any package."""
    environ = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    man, documents = stage / "usr/share/man/man1", stage / "usr/share/doc" / NAME
    _run(sys.executable, "-P", str(HERE / "manpages.py"), str(man), env=environ)
    for page in man.iterdir():
        _compress(page)
    for shell, place in {
        "bash": f"bash-completion/completions/{NAME}",
        "zsh": f"zsh/vendor-completions/_{NAME}",
        "fish": f"fish/vendor_completions.d/{NAME}.fish",
    }.items():
        script = _output(sys.executable, "-P", "-m", "artifacts_agent", "completion", shell, env=environ)
        _write(stage / "usr/share" / place, script)
    entry = f"{NAME} ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {_maintainer()}  {formatdate(made)}\n"
    _write(documents / "changelog.Debian", entry)
    _compress(documents / "changelog.Debian")
    shutil.copyfile(ROOT / "CHANGELOG.md", documents / "changelog")
    _compress(documents / "changelog")
    _write(documents / "copyright", "\n".join(_licenses(packages)))


def _licenses(packages: Path) -> Iterator[str]:
    """Yield the paragraphs of the copyright file: ours, and for each dependency one that says where its licence is."""
    yield f"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: {NAME}\n"
    text = "".join(f" {line or '.'}\n" for line in (ROOT / "LICENSE").read_text().splitlines())
    yield f"Files: *\nCopyright: the artifacts-agent authors\nLicense: MIT\n{text}"
    for metadata in sorted(packages.glob("*.dist-info/METADATA")):
        head = metadata.read_text().split("\n\n", 1)[0]
        name, version = (re.findall(rf"^{field}: (.*)$", head, re.MULTILINE)[0] for field in ("Name", "Version"))
        if name == NAME:
            continue
        found = re.findall(r"^License(?:-Expression)?: (.*)$", head, re.MULTILINE) or ["see below"]
        yield (
            f"Files: {PAYLOAD}/lib/python3/site-packages/{metadata.parent.name}/*\n"
            f"Copyright: the authors of {name} {version}\n"
            f"License: {re.sub(r'[^A-Za-z0-9.+-]+', '-', found[0])}\n"
            f" /{PAYLOAD}/lib/python3/site-packages/{metadata.parent.name} has its text.\n"
        )


def _copy_files(stage: Path) -> None:
    """Copy the units, the configuration, what lintian is to accept, and what python3 runs when it is upgraded.

    The configuration is not the example: that one changes with every key, and dpkg would ask at every upgrade which one to keep.
    """
    for unit in (f"{NAME}.service", f"{NAME}.socket"):
        _write(stage / "usr/lib/systemd/system" / unit, (ROOT / "systemd" / unit).read_text())
    _write(stage / "etc" / NAME / "config.toml", (HERE / "config.toml").read_text())
    example = stage / "usr/share/doc" / NAME / "examples/config.toml"
    _write(example, (ROOT / "config.example.toml").read_text())
    _write(stage / "usr/share/lintian/overrides" / NAME, (HERE / "lintian-overrides").read_text())
    _write(stage / "usr/share/python3/runtime.d" / f"{NAME}.rtupdate", (HERE / "rtupdate").read_text())


def _write_control(stage: Path, version: str, release: str, architecture: str) -> None:
    files = sorted(path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())
    for path in stage.rglob("*"):
        if not path.is_symlink():
            executable = path.is_dir() or path.parent.name in {"bin", "runtime.d"}
            path.chmod(0o755 if executable else 0o644)
    stage.chmod(0o755)
    kilobytes = sum(-(-path.stat().st_size // 1024) for path in files)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    fields = {
        "Package": NAME,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": _maintainer(),
        "Installed-Size": str(kilobytes),
        "Depends": f"adduser, libc6 (>= 2.{GLIBC}), python3 (>= {PYTHONS[0]}), python3 (<< {AFTER})",
        "Section": "devel",
        "Priority": "optional",
        "Homepage": project["urls"]["Homepage"],
        "Description": f"keeps Remote Cache usage events and delivers them\n{DESCRIPTION.strip(chr(10))}",
    }
    control = stage / "DEBIAN"
    _write(control / "control", "".join(f"{name}: {value}\n" for name, value in fields.items()))
    _write(control / "conffiles", f"/etc/{NAME}/config.toml\n")
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n" for path in files)  # noqa: S324
    _write(control / "md5sums", "".join(sums))
    for script in ("postinst", "prerm", "postrm"):
        _write(control / script, (HERE / script).read_text().replace("@RELEASE@", release))
        (control / script).chmod(0o755)


def _digest(directory: Path) -> str:
    """Return a short name for the contents of a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _architecture() -> str:
    architecture = _output("dpkg", "--print-architecture").strip()
    if architecture not in MACHINES:
        raise BuildError(f"there are wheels for {' and '.join(MACHINES)}, not for {architecture}")
    return architecture


def _agent_version() -> str:
    """Return the version as Debian orders it: 1.0rc1 before 1.0."""
    found = re.search(r'^__version__ = "(.*)"$', (ROOT / "agent/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise BuildError("agent/__init__.py has no __version__")
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", found[1])


def _maintainer() -> str:
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{address}>" if name and address else MAINTAINER


def _commit_time() -> str:
    """Return when the last commit was made (epoch); nothing if this is no clone."""
    try:
        return _output("git", "-C", str(ROOT), "log", "-1", "--format=%ct").strip()
    except BuildError:
        return ""


def _target(version: str, architecture: str) -> Sequence[str]:
    """Return pip's options for wheels that run with that Python on any of the distributions."""
    machine = MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, GLIBC + 1)] + [f"manylinux2014_{machine}"]
    options = ["--only-binary=:all:", f"--python-version={version}", f"--constraint={CONSTRAINTS}"]
    return [*options, *(f"--platform={platform}" for platform in platforms)]


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments)


def _run(*command: str, env: Mapping[str, str] | None = None) -> None:
    _output(*command, env=env)


def _output(*command: str, env: Mapping[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(command[:4])} failed: {error.stderr.strip()}") from error


def _compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
