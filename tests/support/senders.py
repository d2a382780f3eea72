"""Clients as processes of their own: `python -m tests.support.senders KIND SOCKET …`; tests start them with `sender`.

    durable    events of a recording over the stream socket, again and again until each is acknowledged
    endless    unique events in the same way, numbered from 0, until SIGTERM; then it waits for the last acks
    client     events of a recording through `agent.client.EventClient`, without acks
    datagram   events of a recording as datagrams, without acks

The first two survive the daemon: they connect again and send again what was not acknowledged. At the end each prints one
line of JSON, its `Report`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from agent.client import EventClient
from tests.support import recordings
from tests.support.daemon import Conversation
from tests.support.process import Child, running
from tests.support.recordings import Recorded
from tests.support.waiting import HUNG_AFTER, eventually

TIMEOUT = HUNG_AFTER
CI = "x-artifact-client-ci"


@dataclasses.dataclass
class Report:
    """What a sender did: distinct events handed over, those acknowledged, those sent again, and its connections.

    `dropped` is how many it was told could not be kept; they were sent again. `asked` says of each
    destination that it asked for, "" for none, how many events it `sent` there, repeats included, how many of these were
    `durable`, and how many were dropped, by reason.
    """

    sent: int = 0
    acked: int = 0
    resent: int = 0
    connections: int = 0
    dropped: int = 0
    asked: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


class Item(NamedTuple):
    """One event: the CI system that it comes from, and its line."""

    ci: str | None
    line: bytes


Source = Callable[[int], Item | None]


class Tally(NamedTuple):
    """An answer's cumulative counts; `reasons` are those for the `dropped`."""

    durable: int = 0
    dropped: int = 0
    reasons: Mapping[str, int] = {}

    @property
    def settled(self) -> int:
        """How many events of the connection have met their fate."""
        return self.durable + self.dropped

    def since(self, before: "Tally") -> Counter[str]:
        """Return what an answer adds to an earlier one: durable events, and those dropped, by reason."""
        return Counter({"durable": self.durable, **self.reasons}) - Counter(
            {"durable": before.durable, **before.reasons}
        )


@dataclasses.dataclass
class Durable:
    """Sends items in windows over a stream connection; after it broke, again from the first that was not acknowledged.

    The last window is held back until the connection has broken `breaks` times, so that it breaks in the middle. `pace`
    is called before each window, with its length.

    With `may_drop`, the daemon may say that it could not keep events. Its counts do not tell which ones: those of the window
    before the first drop are surely durable, the rest of it is of unknown fate, and is sent again when the whole window
    is settled. So an event counts as acknowledged only if the answer can mean nothing else.

    It asks for one of the `destinations`, if there are any, and for the next one each time it is denied that. As root it can
    connect as another user, `uid`: `socket` is looked for by that one, and is closed to it for a moment at each start.
    """

    socket: Path
    source: Source
    window: int
    breaks: int = 0
    progress: Path | None = None
    may_drop: bool = False
    pace: Callable[[int], None] = lambda _: None
    destinations: Sequence[str] = ()
    uid: int | None = None
    report: Report = dataclasses.field(default_factory=Report)

    def run(self) -> Report:
        """Return when everything is acknowledged."""
        while self._next_window():
            with self._connect() as conversation, contextlib.suppress(ConnectionError):
                self.report.connections += 1
                self._send_windows(conversation)
        return self.report

    def _connect(self) -> Conversation:
        connected = eventually(self._try_to_connect, lambda conversation: conversation is not None, TIMEOUT)
        assert connected is not None
        return connected

    def _try_to_connect(self) -> Conversation | None:
        try:
            with _effective_user(self.uid):
                return Conversation(self.socket, {"ack": "durable"}, TIMEOUT)
        except (ConnectionError, FileNotFoundError, PermissionError):
            return None

    def _send_windows(self, conversation: Conversation) -> None:
        context: dict[str, str | None] = {"ci": None}  # as if it had been said
        tally = Tally()
        while window := self._next_window():
            if self._is_last(window):
                conversation.answer()  # returns at the connection's end: nothing is left to be answered
                return
            self.pace(len(window))
            wanted = {"ci": window[0].ci} | ({"destination": self.destinations[0]} if self.destinations else {})
            if wanted != context:
                context = wanted
                conversation.send(json.dumps({"context": context}).encode() + b"\n")
            self.report.resent += max(self.report.sent - self.report.acked, 0)
            self.report.sent = max(self.report.sent, self.report.acked + len(window))
            self._count({"sent": len(window)})
            conversation.send(b"".join(item.line for item in window))
            settled = self._settle(conversation, len(window), tally)
            if settled is None:
                return
            if settled.reasons.get("denied") != tally.reasons.get("denied"):
                self.destinations = [*self.destinations[1:], *self.destinations[:1]]
            tally = settled

    def _settle(self, conversation: Conversation, length: int, before: Tally) -> Tally | None:
        """Read answers until a window's fate is known, and count what is surely durable; None at the connection's end."""
        acked, now = self.report.acked, before
        while now.settled < before.settled + length:
            answer = conversation.answer()
            if answer is None:
                return None
            last, now = now, self._tally(answer)
            self.report.dropped += now.dropped - last.dropped
            self._count(now.since(last))
            if now.dropped == before.dropped:
                self._advance(acked + now.durable - before.durable)
        return now

    def _tally(self, answer: dict[str, Any]) -> Tally:
        allowed = {"durable", "rejected", *({"dropped", "dropped_by_reason"} if self.may_drop else ())}
        assert answer.keys() <= allowed, answer
        assert sum(answer.get("dropped_by_reason", {}).values()) == answer.get("dropped", 0), answer
        assert answer["rejected"] == 0, answer
        return Tally(answer["durable"], answer.get("dropped", 0), answer.get("dropped_by_reason", {}))

    def _count(self, more: Mapping[str, int]) -> None:
        """Count what became of events for the destination that is asked for."""
        name = self.destinations[0] if self.destinations else ""
        self.report.asked[name] = dict(Counter(self.report.asked.get(name, {})) + Counter(more))
        if name and self.progress is not None:
            durable = self.report.asked[name].get("durable", 0)
            _write_number(self.progress.with_name(f"{self.progress.name}.{name}"), durable)

    def _next_window(self) -> list[Item]:
        """Return the next items of one context."""
        window: list[Item] = []
        while len(window) < self.window and (item := self.source(self.report.acked + len(window))) is not None:
            if window and item.ci != window[0].ci:
                break
            window.append(item)
        return window

    def _is_last(self, window: list[Item]) -> bool:
        return self.report.connections <= self.breaks and self.source(self.report.acked + len(window)) is None

    def _advance(self, acked: int) -> None:
        self.report.acked = acked
        if self.progress is not None:
            _write_number(self.progress, acked)


def _write_number(path: Path, number: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, f"{number:020d}".encode(), 0)
    os.close(descriptor)


@contextmanager
def _effective_user(uid: int | None) -> Iterator[None]:
    """Be another user meanwhile, as root can."""
    if uid is None:
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


def numbered(session: str, index: int) -> bytes:
    """Return the line of an endless sender's event; its number is its hash."""
    event = f'"sessionId":"{session}","source":"LOCAL","event":"HIT","hash":"{index:016x}","duration":{index}'
    return f"{{{event}}}\n".encode()


def send_with_client(path: Path, requests: Sequence[Recorded]) -> Report:
    """Emit every event with the client library, a new client for each context; a full socket is tried again."""
    report = Report()
    for request in requests:
        with EventClient(path, ci=request.headers.get(CI), interactive=None) as client:
            for event in request.events:
                fields = {"session_id" if key == "sessionId" else key: value for key, value in event.items()}
                eventually(partial(client.emit, **fields), bool, TIMEOUT)
                report.sent += 1
            report.connections += 1
    return report


def send_datagrams(path: Path, requests: Sequence[Recorded], window: int) -> Report:
    """Send every event in datagrams of a context line and up to `window` events; blocks while the socket is full."""
    report = Report()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        for request in requests:
            context = json.dumps({"context": {"ci": request.headers.get(CI)}}).encode() + b"\n"
            lines = request.lines.splitlines(keepends=True)
            for start in range(0, len(lines), window):
                client.sendto(context + b"".join(lines[start : start + window]), str(path))
            report.sent += len(lines)
    return report


# The tests' side


@contextmanager
def sender(kind: str, path: Path, **options: object) -> Iterator[Child]:
    """Run a sender while the block lasts; `options` are those of the command line."""
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with running([sys.executable, "-m", "tests.support.senders", kind, str(path), *arguments], env={}) as child:
        yield child


def save(path: Path, requests: Sequence[Recorded]) -> Path:
    """Write requests as a recording, for a sender to send; return `path`."""
    rows = [{"case": r.case, "query": r.query, "headers": r.headers, "body": r.events} for r in requests]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_of(child: Child, timeout: float = TIMEOUT) -> Report:
    """Wait for a sender's end and return its report."""
    report = Report(**json.loads(child.wait_for_line(r"^\{.*\}$", timeout)[0]))
    assert child.process.wait(timeout) == 0, child.lines
    return report


def acked_so_far(progress: Path, destination: str = "") -> int:
    """Read how many events a running sender has had acknowledged, or how many were durable where it asked for a destination."""
    if destination:
        progress = progress.with_name(f"{progress.name}.{destination}")
    return int(progress.read_bytes() or b"0") if progress.exists() else 0


# The process


def main() -> None:
    """Send, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.senders", description=main.__doc__)
    parser.add_argument("kind", choices=["durable", "endless", "client", "datagram"])
    parser.add_argument("socket", type=Path)
    parser.add_argument("--recording", type=Path, help="the requests whose events to send")
    parser.add_argument("--window", type=int, default=16, help="how many events to send at once")
    parser.add_argument("--breaks", type=int, default=0, help="hold the last window until so many connections broke")
    parser.add_argument("--progress", type=Path, help="a file that always holds the number of acknowledged events")
    parser.add_argument("--session", default="", help="the session of an endless sender's events")
    options = parser.parse_args()
    sys.stdout.write(json.dumps(dataclasses.asdict(_send(options))) + "\n")


def _send(options: argparse.Namespace) -> Report:
    if options.kind == "endless":
        source = endless(lambda index: Item(None, numbered(options.session, index)), until_sigterm())
        return Durable(options.socket, source, options.window, 0, options.progress).run()
    requests = recordings.load(options.recording)
    if options.kind == "client":
        return send_with_client(options.socket, requests)
    if options.kind == "datagram":
        return send_datagrams(options.socket, requests, options.window)
    items = [Item(r.headers.get(CI), line) for r in requests for line in r.lines.splitlines(keepends=True)]
    source = dict(enumerate(items)).get
    return Durable(options.socket, source, options.window, options.breaks, options.progress).run()


def until_sigterm() -> threading.Event:
    """Return what is set when SIGTERM comes."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def endless(item: Callable[[int], Item], stop: threading.Event) -> Source:
    """Return a source of items that ends when `stop` is set, but not before what was asked of it already."""
    asked = -1

    def source(index: int) -> Item | None:
        nonlocal asked
        if stop.is_set() and index > asked:
            return None
        asked = max(asked, index)
        return item(index)

    return source


if __name__ == "__main__":
    main()
