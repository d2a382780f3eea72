"""Every Python that is supported, and the lowest dependencies that are declared: `python -m tests.versions`.

For each it makes a virtual environment, installs the project in it, and runs pytest: by default the unit and the integration
tests, but not those of the documents, whose pictures the newest rich draws. `--python 3.12`, which may be repeated, and
`--lowest` choose; what else stands there is for pytest. It needs only the standard library.

Pythons are looked for in PATH, in pyenv's versions and by uv. One that is not found is said, and is a failure if it was named.
The lowest dependencies are tested with the oldest Python: later ones need later versions of some.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.constraints import supported

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
PINNED = ROOT / ".ci" / "constraints.txt"
LOWEST = "lowest"
TESTS = ["-q", "-n", "auto", "--dist", "worksteal", "tests/unit", "tests/integration", "--ignore=tests/unit/documents"]
_ITS_VERSION = (
    "import platform, ensurepip, venv; print(platform.python_version())"  # Debian has them in another package
)


class Run(NamedTuple):
    """A Python, such as 3.12, and whether the lowest dependencies are installed, or the pinned ones."""

    python: str
    lowest: bool = False

    def __str__(self) -> str:
        return f"{self.python}, {LOWEST} dependencies" if self.lowest else self.python


class Interpreter(NamedTuple):
    """One that works."""

    path: Path
    version: str


def lowest(pyproject: Path) -> Iterator[str]:
    """Yield a constraint for every requirement of the project and its extras that has a lowest version.

    Raises ValueError where one says anything else than `NAME>=VERSION`, with or without a marker.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        parts = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?(;.*)?", line)
        if parts is None and not line.startswith(f"{project['name']}["):
            raise ValueError(f"no single lowest version: {line}")
        if parts is not None and parts[2]:
            yield f"{parts[1]}=={parts[2]}{parts[3] or ''}"


def chosen(pythons: list[str], only_lowest: bool, known: list[str]) -> list[Run]:
    """Return what to run: all that is known, oldest first, unless something is named."""
    named = [Run(python) for python in pythons or ([] if only_lowest else known)]
    return [*named, Run(known[0], lowest=True)] if only_lowest or not pythons else named


def candidates(python: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield where that Python may be, the nearest first."""
    for directory in environ.get("PATH", "").split(os.pathsep):
        yield Path(directory, f"python{python}")
    pyenv = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME", "/"), ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{python}.*/bin/python{python}"), reverse=True)
    if uv := shutil.which("uv", path=environ.get("PATH", "")):
        found = subprocess.run([uv, "python", "find", "--no-python-downloads", python], capture_output=True, text=True)
        yield from map(Path, found.stdout.split())


def find(python: str, environ: Mapping[str, str]) -> Interpreter | None:
    """Return the first that is that Python and can make virtual environments, or None."""
    for path in candidates(python, environ):
        if os.access(path, os.X_OK):
            said = subprocess.run([path, "-c", _ITS_VERSION], capture_output=True, text=True)
            if said.returncode == 0 and said.stdout.startswith(f"{python}."):
                return Interpreter(path, said.stdout.strip())
    return None


def run_tests(run: Run, interpreter: Interpreter, arguments: list[str]) -> int:
    """Install and test; return pytest's exit code, or pip's where it fails."""
    with tempfile.TemporaryDirectory(prefix="versions-") as name:
        constraints = PINNED
        if run.lowest:
            constraints = Path(name, "constraints.txt")
            constraints.write_text("".join(f"{each}\n" for each in lowest(PYPROJECT)))
        subprocess.run([interpreter.path, "-m", "venv", Path(name, "venv")], check=True)
        python = str(Path(name, "venv", "bin", "python"))
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        commands = ([*pip, "-e", f"{ROOT}[dev]"], [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments])
        return next((code for each in commands if (code := subprocess.run(each, cwd=ROOT).returncode)), 0)


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run what is chosen; return 0 if all of it passed."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    known = supported(project)
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], choices=known, help="one that is supported")
    parser.add_argument("--lowest", action="store_true", help="the lowest dependencies that are declared")
    parser.add_argument("--list", action="store_true", help="only say which Pythons there are")
    options, for_pytest = parser.parse_known_args(arguments)
    results: dict[Run, str] = {}
    for run in chosen(options.python, options.lowest, known):
        interpreter = find(run.python, environ)
        if interpreter is None:
            results[run] = "not found" if options.python else "not found, not tested"
        elif options.list:
            results[run] = f"{interpreter.version}, {interpreter.path}"
        else:
            _say(f"== Python {run}: {interpreter.path}")
            began = time.monotonic()
            code = run_tests(run, interpreter, for_pytest or TESTS)
            said = f"failed ({code})" if code else "passed"
            results[run] = f"{interpreter.version}, {said}, {time.monotonic() - began:.0f} s"
    _say("\n".join(["", *(f"Python {run}: {result}" for run, result in results.items())]))
    return int(any("failed" in result or result == "not found" for result in results.values()))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
