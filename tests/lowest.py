"""The lowest versions that pyproject.toml declares, installed and tested: `python -m tests.lowest [PYTEST ARGUMENT ...]`.

Makes a virtual environment with exactly those versions (pip decides on what they depend on) and runs pytest in it, by default
the unit and the integration tests. Run it with the oldest Python that is supported: later ones need later versions of some.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TESTS = ["-n", "auto", "--dist", "worksteal", "tests/unit", "tests/integration"]


def declared(pyproject: Path) -> Iterator[Requirement]:
    """Yield every requirement of the project and its extras that has a lowest version."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for each in map(Requirement, [*project["dependencies"], *(line for extra in extras for line in extra)]):
        if each.specifier:
            yield each


def pinned(requirement: Requirement) -> str:
    """Return it as a constraint on its lowest version. Raises ValueError unless it says `>=` once and nothing else."""
    match [(each.operator, each.version) for each in requirement.specifier]:
        case [(">=", version)]:
            marker = f"; {requirement.marker}" if requirement.marker else ""
            return f"{requirement.name}=={version}{marker}"
        case _:
            raise ValueError(f"no single lowest version: {requirement}")


def main() -> int:
    """Install and test; return pytest's exit code, or pip's where it fails."""
    with tempfile.TemporaryDirectory(prefix="lowest-") as name:
        directory = Path(name)
        constraints = directory / "constraints.txt"
        constraints.write_text("".join(f"{pinned(each)}\n" for each in declared(ROOT / "pyproject.toml")))
        sys.stdout.write(constraints.read_text())
        sys.stdout.flush()
        venv.create(directory / "venv", with_pip=True)
        python = str(directory / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", "-c", str(constraints), "-e", f"{ROOT}[dev]"]
        test = [python, "-m", "pytest", *(sys.argv[1:] or TESTS)]
        return subprocess.run(install, cwd=ROOT).returncode or subprocess.run(test, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
