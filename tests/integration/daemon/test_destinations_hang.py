"""One destination's disk hangs, in whatever system call: the others are served, delivered, asked, changed and stopped as ever."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.daemon.destinations import OPEN_SECONDS
from agent.errors import StorageError
from tests.integration.daemon.test_destinations import hashes, line, settled
from tests.support import seccomp
from tests.support.api_server import ApiServer
from tests.support.service_manager import ManagedDaemon, Notifications
from tests.support.tools import missing
from tests.support.waiting import HUNG_AFTER, eventually

WATCHDOG_SECONDS = 3.0
NAMES = [f"d{number}" for number in range(1, 10)]
HUNG, WELL = NAMES[0], ["default", *NAMES[1:]]


@dataclass
class Hanging:
    """A daemon with ten destinations, of which `HUNG` has a disk that hangs while `disk` is applied."""

    daemon: ManagedDaemon
    api: ApiServer
    disk: seccomp.Brake
    notifications: Notifications

    def configure(self, *names: str) -> None:
        """Write the configuration of these destinations besides default."""
        self.daemon.configure(self.api.url, {"log": {"format": "json"}, "shutdown": {"deadline": "1s"}})
        more = [
            f'[destinations.{name}]\nurl = "{self.api.url}"\ntoken_file = "{self.daemon.token_file}"\nslug = "{name}"\n'
            f'[[rules]]\nasks_for = "{name}"\ndestination = "{name}"\n'
            for name in names
        ]
        self.daemon.config.write_text(self.daemon.config.read_text() + "".join(more))

    def send(self, *names: str, text: str) -> None:
        """Send an event to each, one after another, and wait until it is durable and delivered."""
        for name in names:
            with self.daemon.connect({"destination": name} if name != "default" else None) as client:
                client.send(line(f"{name}-{text}"))
                assert settled(client, 1)["durable"] == 1, name
        eventually(lambda: hashes(self.api), lambda found: found >= {f"{name}-{text}" for name in names}, HUNG_AFTER)

    def hang(self) -> None:
        """Let the disk hang, under an event that is never acked."""
        self.disk.apply()
        with self.daemon.connect({"destination": HUNG}) as client:
            client.send(line(f"{HUNG}-unacked"))
            assert self.disk.caught.wait(HUNG_AFTER)

    def logged(self, event: str) -> list[str]:
        """Return of which destinations the log has had this event."""
        lines = (json.loads(line) for line in self.daemon.errors.read_text().splitlines() if line.startswith("{"))
        return [line["destination"] for line in lines if line["event"] == event]


@pytest.fixture(params=["every call", "pwrite64", "fdatasync", "pread64"])
def calls(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The system calls that hang."""
    return tuple(seccomp.DISK_CALLS) if request.param == "every call" else (request.param,)


@pytest.fixture
def hanging(tmp_path: Path, api_server: ApiServer, calls: tuple[str, ...]) -> Iterator[Hanging]:
    """A running daemon whose ten destinations have delivered an event each."""
    try:
        seccomp.load_library()
    except OSError:
        missing(seccomp.LIBRARY, "apt-get install libseccomp2")
    with ExitStack() as open_:
        daemon = ManagedDaemon(tmp_path / "d", api_server.url)
        notifications = open_.enter_context(Notifications(str(tmp_path / "notify")))
        daemon.env |= {"NOTIFY_SOCKET": notifications.address, "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6))}
        disk = open_.enter_context(seccomp.Brake(*calls, under=daemon.queue / "destinations" / HUNG))
        made = Hanging(daemon, api_server, disk, notifications)
        made.configure(*NAMES)
        open_.callback(daemon.kill)
        daemon.launch([sys.executable, seccomp.SCRIPT, disk.arguments], [disk.descriptor])
        notifications.wait_for("READY=1")
        made.send("default", *NAMES, text="before")
        yield made


def test_the_others_go_on_while_the_disk_of_one_hangs(hanging: Hanging) -> None:
    hanging.hang()
    hanging.send(*WELL, text="meanwhile")

    found = eventually(
        hanging.daemon.report, lambda found: found.destinations[HUNG].storage_error is not None, HUNG_AFTER
    )
    assert found.destinations[HUNG].storage_error == "the disk does not answer"
    assert {name for name, each in found.destinations.items() if each.storage_error} == {HUNG}
    assert hanging.daemon.request("GET", "/healthz").status_code == 200
    readiness = hanging.daemon.request("GET", "/readyz")
    assert (readiness.status_code, [each["destination"] for each in readiness.json()["problems"]]) == (503, [HUNG])
    metrics = hanging.daemon.request("GET", "/metrics").text
    assert f'artifacts_agent_storage_failing{{destination="{HUNG}"}} 1.0' in metrics
    for name in WELL:
        assert f'artifacts_agent_storage_failing{{destination="{name}"}} 0.0' in metrics
    flushed = hanging.daemon.request("POST", "/flush?" + "&".join(f"destination={name}" for name in WELL))
    assert flushed.status_code == 200

    hanging.configure(*NAMES, "new")
    assert hanging.daemon.request("POST", "/reload").status_code == 200
    hanging.configure(*NAMES[1:])
    assert hanging.daemon.request("POST", "/reload").status_code == 200
    hanging.configure(*NAMES)
    assert hanging.daemon.request("POST", "/reload").status_code == 200
    hanging.send(*WELL, text="reloaded")

    hanging.disk.release()
    hanging.send("default", *NAMES, text="after")
    assert hanging.daemon.terminate() == 0
    assert f"{HUNG}-unacked" in hashes(hanging.api)


def test_the_watchdog_is_fed_while_the_disk_of_one_hangs(hanging: Hanging) -> None:
    hanging.notifications.wait_for("WATCHDOG=1")
    hanging.hang()
    hanging.notifications.wait_for(f"STATUS={HUNG}: storage: the disk does not answer")
    hanging.notifications.skip_waiting()
    for _ in range(3):
        hanging.notifications.wait_for("WATCHDOG=1", timeout=WATCHDOG_SECONDS)


def test_a_daemon_ends_although_the_disk_of_one_hangs(hanging: Hanging) -> None:
    hanging.hang()
    with hanging.daemon.connect() as client:
        client.send(line("last"))
        assert settled(client, 1)["durable"] == 1
    assert hanging.daemon.terminate() == StorageError.exit_code
    assert hanging.logged("destination_hangs") == [HUNG]
    hanging.disk.release()

    hanging.notifications.skip_waiting()
    hanging.daemon.launch()
    hanging.notifications.wait_for("READY=1")
    hanging.send("default", *NAMES, text="after")
    assert hashes(hanging.api) >= {"last", *(f"{name}-before" for name in ("default", *NAMES))}
    report = hanging.daemon.report()
    for each in report.destinations.values():
        ledger = each.ledger
        assert ledger.accepted == ledger.delivered + ledger.dead_lettered + sum(ledger.dropped.values()) + ledger.queued
    assert hanging.daemon.terminate() == 0


def test_a_daemon_starts_although_the_disk_of_one_hangs(hanging: Hanging, calls: tuple[str, ...]) -> None:
    assert hanging.daemon.terminate() == 0
    with seccomp.Brake(*calls, under=hanging.daemon.queue / "destinations" / HUNG) as disk:
        disk.apply()
        hanging.notifications.skip_waiting()
        hanging.daemon.launch([sys.executable, seccomp.SCRIPT, disk.arguments], [disk.descriptor])
        hanging.notifications.wait_for("READY=1")
        hanging.send(*WELL, text="meanwhile")
        found = hanging.daemon.report().destinations[HUNG]
        where = hanging.daemon.queue / "destinations" / HUNG
        assert (found.state, found.reason) == ("failed", f"{where}: the disk does not answer")
        assert hanging.logged("destination_failed") == [HUNG]

        assert hanging.daemon.request("POST", "/reload").status_code == 200
        disk.release()
        eventually(
            lambda: hanging.daemon.report().destinations[HUNG].state, lambda state: state == "running", HUNG_AFTER
        )
        hanging.send("default", *NAMES, text="after")
        assert hanging.daemon.terminate() == 0


@pytest.mark.parametrize("calls", [("pwrite64",)], ids=["pwrite64"])
def test_disks_that_hang_are_waited_for_together_and_in_a_reload_by_nobody_else(hanging: Hanging) -> None:
    daemon, new = hanging.daemon, [f"new{number}" for number in range(9)]
    assert daemon.terminate() == 0
    with seccomp.Brake("pwrite64", under=daemon.queue / "destinations") as disk, ThreadPoolExecutor() as pool:
        disk.apply()
        hanging.notifications.skip_waiting()
        hanging.configure()
        daemon.launch([sys.executable, seccomp.SCRIPT, disk.arguments], [disk.descriptor])
        hanging.notifications.wait_for("READY=1")
        hanging.configure(*new)
        begun = time.monotonic()
        reload = pool.submit(daemon.request, "POST", "/reload")
        eventually(daemon.report, lambda found: new[-1] in found.destinations, HUNG_AFTER)
        hanging.send("default", text="meanwhile")
        assert reload.result(HUNG_AFTER).status_code == 200
        assert time.monotonic() - begun < len(new) * OPEN_SECONDS / 2
        assert {daemon.report().destinations[name].state for name in new} == {"failed"}
        disk.release()
        eventually(
            daemon.report,
            lambda found: all(found.destinations[name].state == "running" for name in new),
            HUNG_AFTER,
        )
        hanging.send("default", *new, text="after")
        assert sorted(hanging.logged("destination_failed")) == new
        assert daemon.terminate() == 0
