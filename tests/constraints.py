"""Renews .ci/constraints.txt, the exact versions of everything that the tests need: `python -m tests.constraints`.

Asks pip for the newest versions that fit together on each Python that is supported, from wheels alone, and installs nothing.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / ".ci" / "constraints.txt"
HEADER = "# Exact versions of all that the tests need, for `pip install -c`. Renew: python -m tests.constraints\n"


def supported(project: Mapping[str, list[str]]) -> list[str]:
    """Return the versions of Python that the classifiers name, such as 3.11."""
    versions = (each.rpartition(" :: ")[2] for each in project["classifiers"] if "Python :: 3." in each)
    return sorted(versions, key=lambda version: int(version.partition(".")[2]))


def requirements(project: Mapping[str, object], extras: Mapping[str, list[str]]) -> list[str]:
    """Return what the project and all its extras require, without the extras that name each other."""
    name = str(project["name"])
    assert isinstance(project["dependencies"], list)
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    return [line for line in lines if not line.startswith(f"{name}[")]


def resolve(python: str, wanted: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that pip would install on that Python. CalledProcessError if none fit together."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report=-"]
        target = ["--only-binary=:all:", f"--python-version={python}", f"--target={directory}"]
        done = subprocess.run([*command, *target, *wanted], stdout=subprocess.PIPE, check=True)
    found = (each["metadata"] for each in json.loads(done.stdout)["install"])
    return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in found}


def text(resolved: Mapping[str, Mapping[str, str]]) -> str:
    """Return the file: one line a package, or one for each Python where they need different versions."""
    versions: dict[str, dict[str, str]] = defaultdict(dict)
    for python, packages in resolved.items():
        for name, version in packages.items():
            versions[name][python] = version
    lines = [HEADER]
    for name, by_python in sorted(versions.items()):
        if len(set(by_python.values())) == 1:
            lines.append(f"{name}=={next(iter(by_python.values()))}\n")
        else:
            lines += [f'{name}=={version}; python_version == "{python}"\n' for python, version in by_python.items()]
    return "".join(lines)


def main() -> int:
    """Write the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = requirements(project, project["optional-dependencies"])
    FILE.write_text(text({python: resolve(python, wanted) for python in supported(project)}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
