"""Destinations that share a full disk: none of them loses an event for what another one has kept."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon.test_destinations import ASKING, Host, directory, host, line, settled
from tests.soak.disk import SmallDisk
from tests.support.daemon import Sections
from tests.support.tools import unavailable

__all__ = ["directory"]
MIN_FREE = 1024**2
LARGE = json.dumps({"sessionId": "s" * 4000, "source": "LOCAL", "event": "HIT", "hash": "large"}).encode() + b"\n"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 8 MiB."""
    disk = SmallDisk(tmp_path / "disk", size=8 * 1024**2)
    try:
        disk.mount()
    except OSError as error:
        unavailable(f"needs a mount; run the tests as root, where mount is allowed: {error}")
    yield disk
    disk.unmount()


def sections(disk: SmallDisk) -> Sections:
    """Return what has the queues there, and a disk with less than a part of it free be full."""
    queue = {"directory": str(disk.path / "queue"), "segment_bytes": 64 * 1024, "min_free_bytes": MIN_FREE}
    return {"listen": {"mode": "0666"}, "queue": queue}


def fill_the_history_of_web(made: Host) -> None:
    """Have nearly 4 MiB delivered."""
    with made.daemon.connect({"destination": "web"}) as client:
        client.send(LARGE * 1000)
        assert settled(client, 1000)["durable"] == 1000
    made.wait_delivered("web", 1000)


def leave(disk: SmallDisk, size: int) -> None:
    """Fill the disk up to so many bytes."""
    stat = os.statvfs(disk.path)
    (disk.path / "balloon").write_bytes(bytes(stat.f_bavail * stat.f_frsize - size))


def test_the_history_of_one_goes_before_an_event_of_another_does(directory: Path, small: SmallDisk) -> None:
    with host(directory, ASKING, sections(small)) as made:
        fill_the_history_of_web(made)
        leave(small, MIN_FREE // 2)
        with made.daemon.connect() as client:
            client.send(line("a") * 10)
            assert settled(client, 10) == {"durable": 10, "rejected": 0}
        made.wait_delivered("default", 10)
        assert made.status("default").ledger.dropped == {}


def test_where_nothing_can_go_the_full_disk_costs_events_and_no_time(directory: Path, small: SmallDisk) -> None:
    with host(directory, ASKING, sections(small)) as made:
        leave(small, MIN_FREE // 2)
        for name in ("default", "web"):
            with made.daemon.connect({"destination": name}) as client:
                for count in range(1, 20):
                    client.send(line("a"))
                    assert settled(client, count)["dropped_by_reason"] == {"disk_full": count}
        (small.path / "balloon").unlink()
        with made.daemon.connect() as client:
            client.send(line("b"))
            assert settled(client, 1)["durable"] == 1
        assert made.status("default").ledger.dropped == made.status("web").ledger.dropped == {"disk_full": 19}
