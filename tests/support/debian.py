"""Root file systems of Debian or Ubuntu for tests to boot or to build images from, and the wheels to install in them.

mmdebstrap makes them from the sources, proxies and certificates that this machine's apt is configured with; pip fetches the
wheels as it is configured here. Nothing in a root needs a network afterwards.
"""

import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.cache import cached
from tests.support.documents import ROOT
from tests.support.tools import require_root, require_tool, unavailable

PACKAGES = ("adduser", "dbus", "libseccomp2", "procps", "python3", "python3-venv", "sudo", "systemd", "systemd-sysv")
_DISTRIBUTIONS = ("Debian", "Ubuntu")
_UNREAD = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_ACQUIRE = re.compile(r'^(Acquire::https?::\S+) "(.*)";$', re.MULTILINE)


def releases() -> list[str]:
    """Return the releases to test, by codename: those of BOOT_RELEASES, or else this machine's own."""
    return os.environ.get("BOOT_RELEASES", "").split() or [_own_release()]


def debian_root(release: str) -> Path:
    """Return a root of that release with PACKAGES. It is shared: mount something over it before you write."""
    require_root()
    program = require_tool("mmdebstrap", "apt-get install mmdebstrap")
    sources = _sources(release)
    command = [str(program), "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
    command += [f"--include={','.join(PACKAGES)}", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _UNREAD]
    command += [f'--aptopt={name} "{value}"' for name, value in _ACQUIRE.findall(_output("apt-config", "dump"))]

    def make(target: Path) -> None:
        subprocess.run([*command, release, str(target), "-"], input=sources, text=True, check=True)

    return cached(f"root-{release}", repr((command[1:], sources)), make)


def wheelhouse(root: Path) -> Path:
    """Return a directory with the wheels of all that `pip install .` and the image's Dockerfile need in that root."""
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for_sbom = (each for each in extras["dev"] if each.startswith("cyclonedx-bom"))
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["fleet"], *for_sbom]
    constraints = ROOT / ".ci/constraints.txt"

    def make(target: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary=:all:"]
        options = [f"--python-version={python}", f"--dest={target}", f"--constraint={constraints}"]
        subprocess.run([*pip, *options, *needed], check=True)

    return cached(f"wheels-{python}", repr((needed, constraints.read_text())), make)


def _own_release() -> str:
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")


def _sources(release: str) -> str:
    """This machine's own sources, for that release."""
    own = _own_release()
    form = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    targets = [
        line.split("\t")
        for line in _output("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
    ]
    found = sorted(
        {
            f"deb {uri} {suite.replace(own, release, 1)} {component}"
            for origin, uri, suite, component in targets
            if origin in _DISTRIBUTIONS and suite.startswith(own)
        }
    )
    if not found:
        unavailable("apt knows no packages of Debian or Ubuntu here; run: apt-get update")
    return "\n".join(found)


def _output(*command: str) -> str:
    require_tool(command[0], "a machine with Debian or Ubuntu")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
