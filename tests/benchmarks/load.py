"""Clients that cost little, as processes: what they take is missing from the agent's share of the machine.

    stream     every event on `--clients` connections, in blocks of about 32 KiB, in turn
    durable    every event on one connection, and then until the last durable ack
    confirmed  the same, but only the last event asks for an ack: when it is durable, so is all that came before
    short      one connection for each event
    datagram   one datagram for each event; waits while the socket is full

`--sessions` is how many sessions each 1,000 events are of: 20 by default, as with builds that take turns; with 1,000 every event
is of another one. A process says when it is ready, begins when it is told to, and says how it went. It knows what a client knows.
"""

import argparse
import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self, get_args

from tests.support import recordings

Kind = Literal["stream", "durable", "confirmed", "short", "datagram"]
LINES_A_BLOCK = 256
SESSIONS, EACH = 20, 1_000  # in 1,000 events: by default, and at most
_ROOT = Path(__file__).parents[2]


class Sent(NamedTuple):
    """When sending began and ended (`time.monotonic`), and the CPU that the clients took for it, in seconds."""

    begin: float
    end: float
    cpu: float


# The benchmarks' side


def send(
    kind: Kind, path: Path, events: int, *, clients: int = 1, processes: int = 1, sessions: int = SESSIONS
) -> Sent:
    """Send so many events to a socket, from so many processes with so many clients each; return when all have ended."""
    shares = [events // processes + (index < events % processes) for index in range(processes)]
    with Senders([_command(kind, path, share, clients, sessions) for share in shares]) as senders:
        senders.go()
        return senders.wait()


class Senders:
    """Client processes that wait for `go`. For `with`, which kills what still runs."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._processes = [
            subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for command in commands
        ]
        for process in self._processes:
            line = _pipe(process.stdout).readline()
            assert line == "ready\n", f"a client ended before it began: {line!r}"

    def go(self) -> None:
        """Let all begin."""
        for process in self._processes:
            _pipe(process.stdin).write("go\n")
            _pipe(process.stdin).flush()

    def wait(self) -> Sent:
        """Return when all have ended, from the first one's begin to the last one's end."""
        lines = [process.communicate()[0] for process in self._processes]
        codes = [process.returncode for process in self._processes]
        assert not any(codes), f"clients ended with {codes}"
        reports = [Sent(**json.loads(line)) for line in lines]
        return Sent(min(r.begin for r in reports), max(r.end for r in reports), sum(r.cpu for r in reports))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            _pipe(process.stdin).close()
            _pipe(process.stdout).close()


def endless(path: Path) -> Senders:
    """Return a client that sends as fast as it can until it is killed."""
    return Senders([_command("stream", path, 2**62, 1)])


def _command(kind: Kind, path: Path, events: int, clients: int, sessions: int = SESSIONS) -> list[str]:
    options = {"--events": events, "--clients": clients, "--sessions": sessions}
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "tests.benchmarks.load", kind, str(path), *words]


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


# Events

_RECORDED_SESSION = re.compile(rb'\{"sessionId":"[^"]*"')
_FIRST_PASS, _PASS, _LAST_PASS = (b'{"sessionId":"%b-' % number for number in (b"00000000", b"%08x", b"ffffffff"))


@cache
def _recorded() -> Sequence[bytes]:
    """Return the recorded events as lines, without what they begin with: the session."""
    found = [line for request in recordings.load() for line in request.lines.splitlines(keepends=True)]
    return [_RECORDED_SESSION.sub(b"", line) for line in found]


def lines_of(events: int, sessions: int = SESSIONS) -> Iterator[bytes]:
    """Yield so many lines of about 125 bytes: the recorded ones over and over, each 1,000 of them of so many sessions."""
    for index, line in zip(range(events), cycle(_recorded()), strict=False):
        yield b'%b0000-4000-8000-%012x"%b' % (_FIRST_PASS, index * sessions // EACH, line)


def blocks(events: int, lines_a_block: int = LINES_A_BLOCK, *, sessions: int = SESSIONS) -> Iterator[bytes]:
    """Yield blocks of lines that hold so many events together.

    They are the first 64 over and over, of other sessions each time: those are substituted, for 0.1 µs an event at most.
    """
    count = min(64, events // lines_a_block)
    lines = lines_of(count * lines_a_block, sessions)
    ready = [b"".join(islice(lines, lines_a_block)) for _ in range(count)]
    for index in range(events // lines_a_block):
        number, place = divmod(index, count)
        yield ready[place].replace(_FIRST_PASS, _PASS % number)
    if events % lines_a_block:
        yield b"".join(lines_of(events % lines_a_block, sessions)).replace(_FIRST_PASS, _LAST_PASS)


# The process


def main() -> None:
    """Wait for the word, send, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=main.__doc__)
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("socket", type=Path)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=SESSIONS, choices=range(1, EACH + 1), metavar="N")
    options = parser.parse_args()
    work = _prepare(options.kind, str(options.socket), options.events, options.clients, options.sessions)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        return
    cpu, begin = time.process_time(), time.monotonic()
    work()
    sent = Sent(begin, time.monotonic(), time.process_time() - cpu)
    sys.stdout.write(json.dumps(sent._asdict()) + "\n")


def _prepare(kind: Kind, path: str, events: int, clients: int, sessions: int) -> Callable[[], None]:
    """Do what is to be done before the clock runs."""
    _recorded()
    if kind in {"durable", "confirmed"}:
        asked = 0 if kind == "durable" else events - 1
        return lambda: _send_durably(path, events, asked, sessions)
    if kind == "stream":
        raise_file_limit()
        return lambda: _send_in_turn(path, events, clients, sessions)
    lines = list(lines_of(min(events, 10_000), sessions))
    if kind == "short":
        return lambda: _connect_for_each(path, islice(cycle(lines), events))
    return lambda: _send_datagrams(path, islice(cycle(lines), events))


def _send_in_turn(path: str, events: int, clients: int, sessions: int) -> None:
    connections = [_connected(path) for _ in range(clients)]
    lines_a_block = max(1, min(LINES_A_BLOCK, events // clients))
    for connection, block in zip(cycle(connections), blocks(events, lines_a_block, sessions=sessions), strict=False):
        connection.sendall(block)
    for connection in connections:
        connection.close()


def _send_durably(path: str, events: int, without_ack: int, sessions: int) -> None:
    """Send, and read answers up to the connection's end, which comes when the last event is durable."""
    with _connected(path) as connection:
        writer = threading.Thread(target=_write_to_end, args=(connection, events, without_ack, sessions))
        writer.start()
        with connection.makefile("rb") as answers:
            last = json.loads(list(answers)[-1])
        writer.join()
    assert last["rejected"] == 0, last
    assert last["durable"] >= events - without_ack, last


def _write_to_end(connection: socket.socket, events: int, without_ack: int, sessions: int) -> None:
    for block in blocks(without_ack, sessions=sessions):
        connection.sendall(block)
    connection.sendall(b'{"context":{"ack":"durable"}}\n')
    for block in blocks(events - without_ack, sessions=sessions):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)


def _connect_for_each(path: str, lines: Iterator[bytes]) -> None:
    family, kind, make = socket.AF_UNIX, socket.SOCK_STREAM, socket.socket
    for line in lines:
        connection = make(family, kind)
        connection.connect(path)
        connection.send(line)
        connection.close()


def _send_datagrams(path: str, lines: Iterator[bytes]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(path)
        for line in lines:
            client.send(line)


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


def raise_file_limit() -> None:
    """Let this process have as many connections as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
