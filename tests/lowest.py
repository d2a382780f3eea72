"""The lowest versions that pyproject.toml declares, installed and tested: `python -m tests.lowest [PYTEST ARGUMENT ...]`.

Makes a virtual environment with exactly those versions (pip decides on what they depend on) and runs pytest in it, by default
the unit and the integration tests, but not those of the documents, whose pictures the newest rich draws. Run it with the oldest
Python that is supported: later ones need later versions of some.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["-n", "auto", "--dist", "worksteal", "tests/unit", "tests/integration", "--ignore=tests/unit/documents"]


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


def main() -> int:
    """Install and test; return pytest's exit code, or pip's where it fails."""
    with tempfile.TemporaryDirectory(prefix="lowest-") as name:
        directory = Path(name)
        constraints = directory / "constraints.txt"
        constraints.write_text("".join(f"{each}\n" for each in lowest(ROOT / "pyproject.toml")))
        sys.stdout.write(constraints.read_text())
        sys.stdout.flush()
        venv.create(directory / "venv", with_pip=True)
        python = str(directory / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", "-c", str(constraints), "-e", f"{ROOT}[dev]"]
        test = [python, "-m", "pytest", *(sys.argv[1:] or TESTS)]
        return subprocess.run(install, cwd=ROOT).returncode or subprocess.run(test, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
