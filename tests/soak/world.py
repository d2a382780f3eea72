"""The daemon under test with everything around it, what was done to it, and what that showed. For `faults` and `run`.

It knows processes, the control socket, /proc, and where the directory of a destination is. It must never know the files in it.
"""

import contextlib
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.neighbours.processes import attack
from tests.neighbours.victims import Addresses
from tests.soak.cast import DEFAULT, Sending
from tests.soak.destinations import Destinations
from tests.soak.disk import Disk
from tests.support.accounts import holds
from tests.support.daemon import Daemon, Sections
from tests.support.senders import acked_so_far
from tests.support.waiting import eventually

START_SECONDS = 60.0
STORAGE_ERROR = 7
MAX_EVENTS, CONCURRENCY, SEGMENT_BYTES = 100, 3, 64 * 1024
MANY_FILES = 16
MANY_FILES_OF_A_DESTINATION = 8  # it may come with a reload: a lock, segments, the cursor, connections
MAX_BYTES = 2 * 1024**2  # with several destinations, so that those that deliver nothing are full


def sections(queue: Path, http: Path, max_events: int) -> Sections:
    """Return a configuration: small segments and batches, so that there is much of everything, and every way in."""
    return {
        "http": {"socket": str(http), "listen": "127.0.0.1:0"},
        "front": {"enabled": True},
        "api": {"timeout": "2s"},
        "queue": {
            "directory": str(queue),
            "segment_bytes": SEGMENT_BYTES,
            "min_free_bytes": "256KiB",
            "max_bytes": "1GiB",
        },
        "batch": {"max_events": max_events, "concurrency": CONCURRENCY, "max_delay": "50ms"},
        "retry": {"initial_delay": "20ms", "max_delay": "200ms"},
        "pause": {"probe_interval": "500ms", "max_probe_interval": "2s"},
        "shutdown": {"deadline": "2s"},
    }


@dataclass(frozen=True)
class Clock:
    """The file that says how far the daemon's clock is off, for `tests.support.skewed_agent`."""

    path: Path

    def set(self, offset: float) -> None:
        """Let it be ahead by so many seconds, at once."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(descriptor, f"{offset:<32.3f}".encode(), 0)
        os.close(descriptor)


@dataclass
class Happened:
    """What was done and measured. `kills` are by phase, `faults` by kind, `ends` orderly; sizes are in KiB, times in seconds."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    ends: int = 0
    ready_after: list[float] = field(default_factory=list)
    peak_rss: int = 0
    most_new_files: int = 0
    last_new_files: int = 0
    log: list[str] = field(default_factory=list)


@dataclass
class World:
    """One daemon that is up whenever no fault is under way. AssertionError for whatever it must not do meanwhile."""

    daemon: Daemon
    url: str
    disk: Disk
    clock: Clock
    random: random.Random
    progress: Sequence[tuple[Path, Sending]]
    destinations: Destinations
    happened: Happened = field(default_factory=Happened)
    _began: float = field(default_factory=time.monotonic)
    _files: Counter[str] = field(default_factory=Counter)
    _attacked: bool = False

    @property
    def queue(self) -> Path:
        """Where the queue of DEFAULT is."""
        return self.disk.path / "queue"

    def directory_of(self, destination: str) -> Path:
        """Return where the queue of another destination is."""
        return self.queue / "destinations" / destination

    @property
    def _http(self) -> Path:
        return self.daemon.directory / "h.sock"

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._began

    def note(self, what: str) -> None:
        """Write it into the log of faults, with the time: in memory, and beside the clients' progress."""
        self.happened.log.append(f"{self.seconds:8.2f} s  {what}")
        with self.clock.path.with_name("faults.log").open("a") as log:
            log.write(f"{self.happened.log[-1]}\n")

    def chance(self, probability: float) -> bool:
        """Throw the dice."""
        return self.random.random() < probability

    def configure(self, max_events: int = MAX_EVENTS) -> None:
        """Write a good configuration, with that many events in a batch; a running daemon does not notice."""
        one = sections(self.queue, self._http, max_events)
        if self.destinations.accounts:
            one = {**one, "queue": {**one["queue"], "max_bytes": MAX_BYTES}, "listen": {"mode": "0666"}}
        several = {**one, **self.destinations.sections(self.url)}
        self.daemon.configure(self.url, several, self.destinations.rules(self.random))

    def idle(self, least: float, most: float) -> None:
        """Let the daemon go on for a random time; it must not end by itself."""
        if self.daemon.ended_within(self.random.uniform(least, most)):
            raise AssertionError(f"the daemon ended by itself, with exit code {self.daemon.wait()}")

    def start(self, *, failing: Collection[str] = ()) -> None:
        """Start it; afterwards the ledger of each destination must hold, and must have whatever was acknowledged before.

        Those that are `failing` cannot be opened, and the others must not care.
        """
        began, acked = time.monotonic(), {DEFAULT: self.acked()}
        acked |= {name: self.durable(name) for name in self.destinations.names}
        self.daemon.start(START_SECONDS)
        self.happened.ready_after.append(time.monotonic() - began)
        self.happened.starts += 1
        found = self.daemon.status()["destinations"]
        self._files = self._open_files()  # now that it answers, it has all that it opens at its start
        self.note(f"ready after {self.happened.ready_after[-1]:.2f} s, ledger {found[DEFAULT]['ledger']}")
        if failed := {name for name, each in found.items() if each["state"] == "failed"} ^ {*failing}:
            raise AssertionError(f"after a start {failed} failed, or did not: {found}")
        for name in found.keys() - {*failing}:
            ledger = found[name]["ledger"]
            if not holds(ledger) or ledger["accepted"] < acked.get(name, 0):
                raise AssertionError(
                    f"{name}: {acked.get(name)} were acknowledged, after a start the ledger is {ledger}"
                )
        if missing := self.destinations.names - found.keys():
            raise AssertionError(f"after a start there is no {missing}")

    def refuse_to_start(self) -> None:
        """Start it where it cannot run; it must say so and end with the exit code of a storage error."""
        self.daemon.launch()
        code = self.daemon.wait(START_SECONDS)
        self.note(f"did not start: exit code {code}")
        if code != STORAGE_ERROR:
            raise AssertionError(f"exit code {code} of a start on a file system that cannot be written")

    def kill(self, phase: str) -> None:
        """SIGKILL."""
        self._measure()
        self.daemon.kill()
        self.happened.kills[phase] += 1
        self.note(f"SIGKILL ({phase})")

    def terminate(self, *allowed: int) -> None:
        """SIGTERM, and wait; the exit code must be 0 or one of `allowed`."""
        self._measure()
        self.note("SIGTERM")
        self.ended(self.daemon.terminate(START_SECONDS), *allowed)

    def ended(self, code: int, *allowed: int) -> None:
        """Take note of the end after a SIGTERM."""
        self.happened.ends += 1
        self.note(f"ended with exit code {code}")
        if code not in {0, *allowed}:
            raise AssertionError(f"exit code {code} after SIGTERM")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal that does not end it."""
        self.daemon.signal(number)
        self.note(number.name)

    @contextmanager
    def under_attack(self, *names: str) -> Iterator[None]:
        """Let these attacks of `tests.neighbours` go on meanwhile."""
        daemon = self.daemon
        port = int(daemon.status()["http"]["listen"].rpartition(":")[2])
        where = Addresses(daemon.stream, daemon.datagram, daemon.control, self._http, port, token="")
        with ExitStack() as attackers:
            for name in names:
                attackers.enter_context(attack(name, where, os.getuid()))
            self.note(f"under attack: {', '.join(names)}")
            self._attacked = True
            yield
        eventually(self._new_files, lambda new: new.total() <= self.many_files)
        self._attacked = False
        self.note("the attack is over, and its connections are closed")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Hold every thread while the block lasts, outside of any system call that touches the disk."""
        self.daemon.signal(signal.SIGSTOP)
        eventually(self._thread_states, {"T"}.__eq__, START_SECONDS)
        try:
            yield
        finally:
            self.daemon.signal(signal.SIGCONT)

    def control(self, request: str) -> None:
        """POST to the control socket."""
        self.daemon.request("POST", f"/{request}", timeout=START_SECONDS).raise_for_status()
        self.note(f"POST /{request}")

    def reload(self) -> None:
        """Have it take over what is configured, and wait until it has: all of that is open, and nothing else takes events."""
        self.control("reload")

        def differs(status: dict[str, Any]) -> set[str]:
            found = status["destinations"]
            usable = {name for name, each in found.items() if each["state"] != "failed" and not each["retired"]}
            return usable ^ {DEFAULT, *self.destinations.names}

        differ = differs(eventually(self.daemon.status, lambda status: not differs(status), START_SECONDS))
        assert not differ

    def limit_file_size(self, size: int) -> None:
        """Let no file of the daemon grow beyond that."""
        _, hard = resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (size, hard))
        self.note(f"RLIMIT_FSIZE is {size}")

    def acked(self) -> int:
        """Count what the clients of DEFAULT have had acknowledged so far."""
        return sum(acked_so_far(path) for path, sending in self.progress if sending.account is None)

    def durable(self, destination: str) -> int:
        """Count what became durable for another destination, as far as clients know that they had asked for it."""
        return sum(acked_so_far(path, destination) for path, sending in self.progress if sending.account is not None)

    @property
    def many_files(self) -> int:
        """How many files more than at the start it may have open."""
        return MANY_FILES + MANY_FILES_OF_A_DESTINATION * len(self.destinations.names)

    def _measure(self) -> None:
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{self.daemon.pid}/status").read_text(), re.MULTILINE)
        self.happened.peak_rss = max(self.happened.peak_rss, int(peak[1]) if peak else 0)
        if self._attacked:  # the attackers' connections are files, too
            return
        new = self._new_files()
        self.happened.last_new_files = new.total()
        self.happened.most_new_files = max(self.happened.most_new_files, new.total())
        if new.total() > self.many_files:
            self.note(f"open, beyond what was at the start: {dict(new)}")

    def _thread_states(self) -> set[str]:
        """Return what the daemon's threads do, by the letters of proc_pid_stat(5)."""
        tasks = Path(f"/proc/{self.daemon.pid}/task").glob("*/stat")
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks}

    def _new_files(self) -> Counter[str]:
        """Count what it has open beyond what it had at its start."""
        return self._open_files() - self._files

    def _open_files(self) -> Counter[str]:
        """Count what the daemon has open, by what it is; a file that is closed meanwhile is not there."""
        names: Counter[str] = Counter()
        for each in Path(f"/proc/{self.daemon.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names[each.readlink().name.partition(":")[0]] += 1
        return names
