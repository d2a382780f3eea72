"""A release, built from the last commit and checked, in one directory: `python -m tests.release --output DIR`.

A wheel and an sdist, a Debian package, an image, a list of what they are made of (CycloneDX), and SHA256SUMS of it all.
`--only wheel,sdist` builds some. It refuses to release what CHANGELOG.md does not say, unless it is a `--draft`. Wheel and sdist
depend on the commit alone: not on the directory, the clock or the umask.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NAME = "artifacts-agent"
SUMS = "SHA256SUMS"
_HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


class ReleaseError(Exception):
    """What is wrong with the release, in one line."""


class Source(NamedTuple):
    """The files of a commit, the version that they have, and when it was made (epoch)."""

    tree: Path
    version: str
    epoch: str


def problems(changelog: str, version: str) -> list[str]:
    """Return what keeps this from being the release of that version."""
    sections = _HEADING.split(changelog)[1:]
    dates, texts = (
        dict(zip(sections[::3], sections[1::3], strict=True)),
        dict(zip(sections[::3], sections[2::3], strict=True)),
    )
    if version not in dates:
        return [f"CHANGELOG.md has no section for {version}"]
    wrong = [] if dates[version] else [f"CHANGELOG.md gives no date for {version}"]
    if texts.get("Unreleased", "").strip():
        wrong.append(f"CHANGELOG.md has changes that are not released: give them a version above {version}")
    return wrong


def check_out(target: Path) -> Source:
    """Clone the last commit into a new directory. Raises ReleaseError without a repository."""
    cloned = subprocess.run(["git", "clone", "--quiet", ROOT, target], capture_output=True, text=True)
    if cloned.returncode:
        raise ReleaseError(f"no commit to release: {cloned.stderr.strip()}")
    (version,) = _VERSION.findall((target / "agent/__init__.py").read_text())
    return Source(target, version, _git("log", "-1", "--format=%ct"))


def build_package(source: Source, kind: str, output: Path) -> Path:
    """Build a wheel or an sdist of a tree; return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(output)]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": source.epoch}
    before = {*output.iterdir()} if output.exists() else set()
    subprocess.run(command, cwd=source.tree, env=environ, check=True, capture_output=True)
    (built,) = {*output.iterdir()} - before
    return built


def add_sdist(source: Source, output: Path) -> None:
    """Build the sdist. Raises ReleaseError if it does not make the same wheel as the commit."""
    sdist = build_package(source, "sdist", output)
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(sdist) as packed:
            packed.extractall(name, filter="data")
        (unpacked,) = Path(name).iterdir()
        wheels = [
            build_package(each, "wheel", Path(name, str(number)))
            for number, each in enumerate((source, source._replace(tree=unpacked)))
        ]
        if len({wheel.read_bytes() for wheel in wheels}) > 1:
            raise ReleaseError(f"{sdist.name} makes another wheel than the commit")


def add_wheel(source: Source, output: Path) -> None:
    """Build the wheel. Raises ReleaseError if it is of another version, or its command does not start."""
    wheel = build_package(source, "wheel", output)
    with tempfile.TemporaryDirectory() as name:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(name)  # noqa: S202 - it was built just now
        code = (
            "import sys, artifacts_agent; sys.argv = ['artifacts-agent', '--version']; sys.exit(artifacts_agent.main())"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=name, env={"PYTHONPATH": name}, capture_output=True, text=True
        )
        if ran.returncode or source.version not in ran.stdout:
            raise ReleaseError(f"{wheel.name} does not start: {ran.stdout}{ran.stderr}")


def add_bill_of_materials(source: Source, output: Path) -> None:
    """Write what the agent is made of, by the versions that are tested."""
    project = tomllib.loads((source.tree / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (source.tree / ".ci/constraints.txt").read_text(), re.MULTILINE))
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["fleet"],
    ]  # as the package and the image have it
    bill = bill_of_materials(source.version, needed, pinned)
    (output / f"{NAME}-{source.version}.cdx.json").write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")


def bill_of_materials(version: str, dependencies: list[str], pinned: Mapping[str, str]) -> dict[str, Any]:
    """Return a CycloneDX document of the agent with all it needs to run. Raises ReleaseError if something is not pinned."""
    needs: dict[str, list[str]] = {NAME: _names(dependencies)}
    waiting = [*needs[NAME]]
    while waiting:
        if (name := waiting.pop()) not in needs:
            needs[name] = _names(requires(name) or [])
            waiting += needs[name]
    if missing := needs.keys() - pinned.keys() - {NAME}:
        raise ReleaseError(f".ci/constraints.txt does not pin {', '.join(sorted(missing))}")
    versions = {**pinned, NAME: version}
    references = {name: f"pkg:pypi/{name}@{versions[name]}" for name in needs}
    components = [_component(name, versions[name], references[name]) for name in sorted(needs.keys() - {NAME})]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**_component(NAME, version, references[NAME]), "type": "application"}},
        "components": components,
        "dependencies": [
            {"ref": references[name], "dependsOn": sorted(references[each] for each in {*needs[name]})}
            for name in sorted(needs)
        ],
    }


def _component(name: str, version: str, reference: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": reference,
        "bom-ref": reference,
    }
    about = metadata(name)
    if "License-Expression" in about:
        found["licenses"] = [{"expression": about["License-Expression"]}]
    return found


def _names(requirements: list[str]) -> list[str]:
    """Return the names of those that are required here, without extras."""
    parsed = (Requirement(each) for each in requirements)
    needed = (each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""}))
    return [re.sub(r"[-_.]+", "-", each.name).lower() for each in needed]


def _by_script(path: str) -> Callable[[Source, Path], None]:
    """Return what builds a part by a script of the commit, which writes into the directory that it is given."""

    def add(source: Source, output: Path) -> None:
        script = source.tree / path
        if not script.exists():
            raise ReleaseError(f"{path} is not there")
        environ = {**os.environ, "SOURCE_DATE_EPOCH": source.epoch}
        if code := subprocess.run([script, "--output", output], cwd=source.tree, env=environ).returncode:
            raise ReleaseError(f"{path} failed ({code})")

    return add


PARTS: dict[str, Callable[[Source, Path], None]] = {
    "wheel": add_wheel,
    "sdist": add_sdist,
    "sbom": add_bill_of_materials,
    "deb": _by_script("systemd/debian/build.py"),
    "image": _by_script("systemd/image/build"),
}


def write_checksums(output: Path) -> None:
    """Write SHA256SUMS, in the form of sha256sum, of every file in the directory and below."""
    files = sorted(path for path in output.rglob("*") if path.is_file() and not path.is_symlink())
    lines = []
    for path in files:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(output)}\n")
    (output / SUMS).write_text("".join(lines))


def main() -> int:
    """Build; return 0, or 1 if something is wrong, which is said in a line."""
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="a directory that is empty or not there")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, with commas between them")
    parser.add_argument("--draft", action="store_true", help="whatever CHANGELOG.md says")
    options = parser.parse_args()
    chosen = [each.strip() for each in options.only.split(",")]
    if unknown := {*chosen} - PARTS.keys():
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    output = options.output.absolute()
    if output.exists() and any(output.iterdir()):
        parser.error(f"{output} is not empty")
    try:
        _release(output, chosen, draft=options.draft)
    except ReleaseError as error:
        sys.stderr.write(f"release: {error}\n")
        return 1
    return 0


def _release(output: Path, parts: list[str], *, draft: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        source = check_out(Path(name, "source"))
        wrong = problems((source.tree / "CHANGELOG.md").read_text(), source.version)
        if wrong and not draft:
            raise ReleaseError("; ".join(wrong))
        output.mkdir(parents=True, exist_ok=True)
        for part in parts:
            PARTS[part](source, output)
        write_checksums(output)
    what = f"draft of {source.version} ({'; '.join(wrong)})" if wrong else source.version
    files = "".join(
        f"  {path.stat().st_size:>12,}  {path.relative_to(output)}\n"
        for path in sorted(output.rglob("*"))
        if path.is_file()
    )
    sys.stdout.write(f"{NAME} {what}, commit {_git('rev-parse', 'HEAD')}\n{files}")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
