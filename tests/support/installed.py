"""The agent on a machine that has booted, installed by following systemd/README.md, block by block, as a user with sudo.

The user's umask is as strict as a hardened machine's. What a reader does by hand, the edit of the configuration and what is
pasted, is done here by sed and by standard input.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.api_server import Answer, ApiServer
from tests.support.booted import Done, Machine, booted
from tests.support.daemon import TOKEN
from tests.support.debian import debian_root, wheelhouse
from tests.support.documents import ROOT, blocks, read, section
from tests.support.waiting import eventually

PAGE = "systemd/README.md"
SERVICE, SOCKET = "artifacts-agent.service", "artifacts-agent.socket"
CONFIG = "/etc/artifacts-agent/config.toml"
CHECKOUT = "/home/admin/artifacts-agent"
SENDERS = ("ci", "gitlab-runner", "buildkite-agent")
_WHEELS = "/srv/wheels"
_IN_A_CHECKOUT = (
    ".ci/constraints.txt",
    ".dockerignore",
    "agent",
    "systemd",
    "pyproject.toml",
    "config.example.toml",
    "README.md",
    "LICENSE",
)
_PREPARE = f"""
printf '[global]\\nno-index = true\\nfind-links = {_WHEELS}\\ndisable-pip-version-check = true\\n' > /etc/pip.conf
useradd --create-home --shell /bin/bash --groups sudo admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin; chmod 0440 /etc/sudoers.d/admin
echo 'umask 077' >> /home/admin/.profile
for user in {" ".join(SENDERS)} stranger; do useradd --create-home --shell /bin/bash "$user"; done
"""


class Installed:
    """The machine, the API that its agent is to deliver to, and what one does there."""

    def __init__(self, machine: Machine, api: ApiServer) -> None:
        self.machine, self.api = machine, api

    def install(self) -> None:
        """Follow the page to a daemon that runs, unless there is one."""
        if self.machine.run(f"test -e {CONFIG}").returncode == 0:
            return
        text = section(read(PAGE), "Install")
        assert "`sudo apt-get install python3-venv`" in text
        self.must("sudo apt-get install python3-venv")
        files, token, start, look = blocks(text, "sh")
        self.must(files)
        self.edit(f's|^url = .*|url = "{self.api.url}"|; s|^# slug = .*|slug = "my-team"|')
        self.edit('s|^max_delay = "2s"|max_delay = "50ms"|')
        self.must(token, stdin=f"{TOKEN}\n")
        self.must(start)
        said = self.must(look)
        assert "delivering: nothing waits" in said, said

    def must(self, script: str, user: str = "admin", stdin: str = "") -> str:
        """Run it in the checkout, if the administrator runs it; AssertionError if it fails."""
        return self.machine.must(f"cd {CHECKOUT}\n{script}" if user == "admin" else script, user, stdin)

    def follow(self, title: str) -> None:
        """Do what all blocks of a section say, in one shell."""
        self.must("\n".join(blocks(section(read(PAGE), title), "sh")))

    def edit(self, expression: str) -> None:
        """Edit the configuration by sed."""
        self.must(f"sudo sed -i {shlex.quote(expression)} {CONFIG}")

    def emit(self, name: str, count: int = 1, user: str = "ci") -> Done:
        """Send events whose hashes are the name and a number."""
        lines = "".join(
            json.dumps({"sessionId": name, "source": "LOCAL", "event": "HIT", "hash": f"{name}-{n}"}) + "\n"
            for n in range(count)
        )
        return self.machine.run("artifacts-agent emit --strict - 2>&1", user, stdin=lines)

    def delivered(self, name: str) -> list[str]:
        """Return the hashes of that name that the API has accepted, in their order, with repetitions."""
        hashes = (event["hash"] for event in self.api.accepted_events())
        return [each for each in hashes if each.rpartition("-")[0] == name]

    def wait_delivered(self, name: str, count: int) -> None:
        """Wait until the API has accepted each of `count` events of that name."""
        expected = {f"{name}-{n}" for n in range(count)}
        eventually(lambda: len(expected - set(self.delivered(name))), lambda missing: not missing)

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says to root."""
        report: dict[str, Any] = json.loads(self.must(f"sudo artifacts-agent status --json --config {CONFIG}"))
        return report

    def ledger(self) -> dict[str, Any]:
        """Return the ledger of the only destination."""
        (destination,) = self.status()["destinations"].values()
        ledger: dict[str, Any] = destination["ledger"]
        return ledger

    def check(self) -> Done:
        """Ask whether events can be delivered."""
        return self.machine.run(f"sudo artifacts-agent status --check --config {CONFIG}", "admin")

    def wait_running(self, before: str = "") -> str:
        """Wait for a main process other than `before` that is ready; return its number."""

        def state() -> tuple[str, str]:
            active, pid = self.machine.show(SERVICE, "ActiveState", "MainPID")
            return active, pid

        return eventually(state, lambda now: now[0] == "active" and now[1] not in {"0", before})[1]

    @contextmanager
    def drop_in(self, *lines: str) -> Iterator[None]:
        """Restart the service with further directives for the block, and without them after it."""
        directory = f"/run/systemd/system/{SERVICE}.d"
        self.machine.write({"test.conf": "\n".join(["[Service]", *lines, ""]).encode()}, directory, "root")
        self.machine.must("systemctl daemon-reload")
        try:
            self.machine.run(f"systemctl restart {SERVICE}")
            yield
        finally:
            self.machine.must(f"rm -r {directory}; systemctl daemon-reload")
            self.recover()

    def recover(self) -> None:
        """Bring the service up, whatever has become of it, and the API with it."""
        self.api.default = Answer()
        self.machine.must(f"systemctl reset-failed {SERVICE} {SOCKET}; systemctl restart {SOCKET} {SERVICE}")


def checkout(version: str | None = None) -> Mapping[str, bytes]:
    """Return the files that an installation needs of a checkout, perhaps of one with another version."""
    found = (ROOT / name for name in _IN_A_CHECKOUT)
    paths = (each for path in found for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
    files = {str(path.relative_to(ROOT)): path.read_bytes() for path in paths if path.suffix != ".pyc"}
    if version is not None:
        files["agent/__init__.py"] = f'"""A later one."""\n\n__version__ = "{version}"\n'.encode()
    return files


@contextmanager
def prepared_machine(release: str, scratch: Path) -> Iterator[Machine]:
    """Boot a machine with users, a checkout and wheels, on which nothing of the agent is installed."""
    root = debian_root(release)
    with booted(root, scratch, {wheelhouse(root): _WHEELS}) as machine:
        machine.must(_PREPARE)
        machine.write(checkout(), CHECKOUT, "admin")
        yield machine
