"""Every attack against a real daemon, with a victim of each kind: `python -m tests.neighbours [--seconds N] [ATTACK …]`.

Prints for each attack how long the victims wait without it and under it (p50 and p99, in milliseconds), how many were
refused, and whether the log names the attacker. Exit code 0: under every attack p99 is at most 100 ms more, nobody was
refused, and every event is accounted for.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx

from tests.neighbours.attacks import ATTACKS, NOBODY
from tests.neighbours.processes import attack, server
from tests.neighbours.victims import Addresses, Victim, victims
from tests.support.accounts import flushed, holds, ledger_of
from tests.support.daemon import TOKEN, Daemon, Sections

MOST_MORE = 100.0  # milliseconds
SETTLE_SECONDS = 1.0  # for an attack to be at work before it is measured
FILLING = {"flood"}  # attacks on the queue: the API takes nothing meanwhile
NAMED = ("uid", "pid", "client", "peer")  # the facts of a log line that say who it was


def main() -> int:
    """Play the attacks; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.neighbours", description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the victims are watched each time")
    parser.add_argument("--same-user", action="store_true", help="attack as the victims' user: root does it as nobody")
    options = parser.parse_args()
    uid = os.getuid() if options.same_user or os.getuid() else NOBODY
    if unknown := set(options.attacks) - ATTACKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    failed = [name for name in options.attacks or ATTACKS if not _play(name, options.seconds, uid)]
    sys.stdout.write(f"\n{'failed: ' + ', '.join(failed) if failed else 'everybody was served'}\n")
    return 1 if failed else 0


def _play(name: str, seconds: float, uid: int) -> bool:
    """Measure the victims alone and under attack by that user; print it, and tell whether all is well."""
    with _daemon() as (daemon, where):
        idle = _watch(where, seconds)
        logged = len(daemon.stderr_text())
        with _paused(daemon) if name in FILLING else nullcontext(), attack(name, where, uid):
            time.sleep(SETTLE_SECONDS)
            attacked = _watch(where, seconds)
        log = daemon.stderr_text()[logged:]
        drained, balanced = _accounts(daemon)
    named = any(f'"{fact}"' in line for line in log.splitlines() for fact in NAMED)
    sys.stdout.write(f"\n{name}: attacker {'named' if named else 'not named'} in the log; ")
    sys.stdout.write(f"{'drained' if drained else 'NOT drained'}, ledger {'holds' if balanced else 'DOES NOT HOLD'}\n")
    well = drained and balanced
    for before, after in zip(idle, attacked, strict=True):
        more = after.percentile(0.99) - before.percentile(0.99)
        good = more <= MOST_MORE and not after.refused
        well = well and good
        figures = (f"{each.percentile(part):8.1f}" for each in (before, after) for part in (0.5, 0.99))
        mark = "" if good else "  <--"
        sys.stdout.write(f"  {after.name:10} {' '.join(figures)}  {after.refused:4} of {after.sent:4} refused{mark}\n")
        sys.stdout.flush()
    return well


@contextmanager
def _paused(daemon: Daemon) -> Iterator[None]:
    """Let nothing leave the queue while the block lasts."""
    daemon.request("POST", "/pause").raise_for_status()
    yield
    daemon.request("POST", "/resume").raise_for_status()


def _accounts(daemon: Daemon) -> tuple[bool, bool]:
    """Tell whether the queue is emptied after the attack, and whether every event is accounted for."""
    try:
        return flushed(daemon, 30.0), holds(ledger_of(daemon.status()))
    except httpx.TransportError:  # it does not even answer
        return False, False


def _watch(where: Addresses, seconds: float) -> Sequence[Victim]:
    """Let the victims work for that long."""
    found, stop = victims(where), threading.Event()
    threads = [threading.Thread(target=victim.run, args=(stop,)) for victim in found]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return found


@contextmanager
def _daemon() -> Iterator[tuple[Daemon, Addresses]]:
    """Run a daemon with every way in, before an API that takes everything."""
    with tempfile.TemporaryDirectory(prefix="neighbours-") as directory, server() as url:
        here = Path(directory)
        here.chmod(0o755)  # other users of the machine can come in
        sections: Sections = {
            "listen": {"mode": "0666"},
            "http": {"socket": str(here / "h.sock"), "listen": "127.0.0.1:0"},
            "front": {"enabled": True},
            "queue": {"max_bytes": "64MiB", "min_free_bytes": 0},
            "log": {"format": "json"},
        }
        daemon = Daemon(here, url)
        daemon.stream, daemon.datagram = here / "events.sock", here / "datagram.sock"  # as clients know them
        daemon.configure(url, sections)
        with daemon:
            port = int(daemon.status()["http"]["listen"].rpartition(":")[2])
            yield daemon, Addresses(daemon.stream, daemon.datagram, daemon.control, here / "h.sock", port, TOKEN)


if __name__ == "__main__":
    sys.exit(main())
