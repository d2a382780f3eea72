"""The units in systemd/ as files: what they say, and the sandbox they ask for."""

import socket
import subprocess
from pathlib import Path

from tests.support.tools import require_tool
from tests.support.waiting import HUNG_AFTER

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE, SOCKET = UNITS / "artifacts-agent.service", UNITS / "artifacts-agent.socket"
APT = "apt-get install systemd"


def directives(unit: Path) -> dict[str, list[str]]:
    """Every directive of a unit, with its values in their order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    program = require_tool("systemd-analyze", APT)
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=HUNG_AFTER)


def sandbox() -> dict[str, object]:
    """The service's restrictions on system calls, as tests/support/seccomp.py takes them."""
    unit = directives(SERVICE)
    allowed, denied = unit["SystemCallFilter"]
    assert denied.startswith("~")
    return {
        "allowed": sorted(_system_calls(allowed) - _system_calls(denied[1:])),
        "families": [getattr(socket, name) for name in unit["RestrictAddressFamilies"][0].split()],
        "no_writable_code": unit["MemoryDenyWriteExecute"] == ["yes"],
    }


def _system_calls(words: str) -> set[str]:
    """The system calls that a SystemCallFilter= value without its ~ stands for."""
    names: set[str] = set()
    for word in words.split():
        listing = analyze("syscall-filter", word).stdout.split("\n")[1:] if word.startswith("@") else [word]
        members = [line.strip() for line in listing if line.strip() and not line.strip().startswith("#")]
        names |= set(members) if members == [word] else _system_calls(" ".join(members))
    return names
