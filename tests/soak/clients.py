"""The soak's clients as processes of their own: `python -m tests.soak.clients KIND SOCKET …`.

    durable    over the stream socket; every event again until it is acknowledged. It asks for its account's destination,
               by another name if it is denied that, or is the user whom a rule sends there
    careless   through `agent.client.EventClient` and as datagrams, in turn; nothing is sent twice, nothing is known

Each sends events of `tests.soak.events` until SIGTERM and prints its `Report`. This module knows what a client knows.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.client import EventClient
from tests.soak.cast import CLIENTS
from tests.soak.events import Id, ci_of, fields, line
from tests.support.process import Child, running
from tests.support.senders import Durable, Item, Report, endless, until_sigterm


@contextmanager
def client(kind: str, *paths: Path, number: int, window: int, rate: float, progress: Path) -> Iterator[Child]:
    """Run a client while the block lasts; a careless one takes the stream socket and the datagram socket."""
    options = {"number": number, "window": window, "rate": rate, "progress": progress}
    arguments = [str(path) for path in paths] + [f"--{name}={value}" for name, value in options.items()]
    with running([sys.executable, "-m", "tests.soak.clients", kind, *arguments], env={}) as child:
        yield child


class _Careless:
    """Sends and forgets: an event of even number through the client library, the others as datagrams."""

    def __init__(self, stream: Path, datagram: Path) -> None:
        self._datagram = datagram
        self._clients = {ci: EventClient(stream, ci=ci, interactive=None) for ci in (ci_of(0), ci_of(300))}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, event: Id) -> None:
        if event.number % 2:
            context = json.dumps({"context": {"ci": ci_of(event.number)}}).encode() + b"\n"
            with contextlib.suppress(OSError):  # nobody there, or too busy: this client does not care
                self._socket.sendto(context + line(event), str(self._datagram))
        else:
            named = {"session_id" if key == "sessionId" else key: value for key, value in fields(event).items()}
            self._clients[ci_of(event.number)].emit(**named)

    def close(self) -> None:
        self._socket.close()
        for each in self._clients.values():
            each.close()


def main() -> None:
    """Send until SIGTERM, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.clients", description=main.__doc__)
    parser.add_argument("kind", choices=["durable", "careless"])
    parser.add_argument("sockets", type=Path, nargs="+")
    parser.add_argument("--number", type=int, required=True, help="the client's number, which names its events")
    parser.add_argument("--window", type=int, default=16, help="how many events to send at once")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second, at most")
    parser.add_argument("--progress", type=Path, required=True, help="where the number of acknowledged events is kept")
    options = parser.parse_args()
    stop = until_sigterm()
    report = _durable(options, stop) if options.kind == "durable" else _careless(options, stop)
    sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")


def _durable(options: argparse.Namespace, stop: threading.Event) -> Report:
    source = endless(lambda index: Item(ci_of(index), line(Id(options.number, index))), stop)
    account = CLIENTS[options.number].account
    uid = account.uid if account is not None and os.geteuid() == 0 else None
    names = account.names if account is not None and uid is None else ()

    def pace(length: int) -> None:
        stop.wait(length / options.rate)

    (stream,) = options.sockets
    os.chdir(stream.parent)  # another user might not find it from the root
    return Durable(
        Path(stream.name),
        source,
        options.window,
        progress=options.progress.absolute(),
        may_drop=True,
        pace=pace,
        destinations=names,
        uid=uid,
    ).run()


def _careless(options: argparse.Namespace, stop: threading.Event) -> Report:
    sender, report = _Careless(*options.sockets), Report()
    while not stop.wait(options.window / options.rate):
        for _ in range(options.window):
            sender.send(Id(options.number, report.sent))
            report.sent += 1
    sender.close()
    return report


if __name__ == "__main__":
    main()
