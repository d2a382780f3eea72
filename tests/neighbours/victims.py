"""Well-behaved clients, one of each kind, that measure how long they wait: each a thread that sends until it is told to stop.

A victim counts what it was refused; a wait that is longer than PATIENCE counts as a refusal and as that long.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.client import EventClient
from tests.support.daemon import Conversation, connect

PATIENCE = 30.0
PAUSE = 0.01
EVENTS_PATH = "/v8/artifacts/events"


def event(session: str, number: int) -> dict[str, object]:
    """Return the event with that number."""
    return {"sessionId": session, "source": "LOCAL", "event": "MISS", "hash": f"{number}", "duration": 0}


def line(session: str, number: int) -> bytes:
    """Return it as a line of the protocol."""
    return json.dumps(event(session, number), separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Addresses:
    """Where a daemon listens: its sockets, its port, and the token for that."""

    stream: Path
    datagram: Path
    control: Path
    http: Path
    port: int
    token: str


@dataclass
class Victim:
    """What one client has seen: how long it waited each time, in seconds, and how often it was refused or gave up."""

    name: str
    send: Callable[[int], bool]
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    sent: int = 0

    def run(self, stop: threading.Event) -> None:
        """Send, again and again, until `stop` is set."""
        while not stop.wait(PAUSE):
            begun = time.monotonic()
            try:
                taken = self.send(self.sent)
            except OSError:  # a timeout, too
                taken = False
            self.waits.append(time.monotonic() - begun)
            self.refused += not taken
            self.sent += 1

    def percentile(self, part: float) -> float:
        """Return the wait, in milliseconds, that this part of the waits does not exceed."""
        waits = sorted(self.waits) or [float("nan")]
        return 1000 * waits[min(int(part * len(waits)), len(waits) - 1)]


def victims(where: Addresses) -> list[Victim]:
    """Return one of each kind; the events of each are of a session of its own, `victim-NAME`."""
    return [
        Victim("stream", _Stream(where.stream)),
        Victim("one-shot", lambda number: _one_shot(where.stream, number)),
        Victim("emit", lambda number: _emit(where.stream, number)),
        Victim("datagram", lambda number: _datagram(where.datagram, number)),
        Victim("http", _Post(lambda: _UnixConnection(where.http), None)),
        Victim("http-tcp", _Post(lambda: http.client.HTTPConnection("127.0.0.1", where.port, PATIENCE), where.token)),
        Victim("flush", lambda _: _flush(where.control)),
    ]


class _Stream:
    """A connection that asks for durable acks and waits for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._conversation: Conversation | None = None
        self._durable = 0

    def __call__(self, number: int) -> bool:
        if self._conversation is None:
            self._conversation, self._durable = Conversation(self._path, {"ack": "durable"}, PATIENCE), 0
        self._conversation.send(line("victim-stream", number))
        answer = self._conversation.answer()
        if answer is None:
            self._conversation.close()
            self._conversation = None
            return False
        self._durable += 1
        return bool(answer["durable"] == self._durable)


def _one_shot(path: Path, number: int) -> bool:
    with Conversation(path, {"ack": "durable"}, PATIENCE) as conversation:
        conversation.send(line("victim-one-shot", number))
        answers = conversation.finish()
        return bool(answers) and answers[-1]["durable"] == 1


def _emit(path: Path, number: int) -> bool:
    """Send as build tools do, which wait for nothing."""
    with EventClient(path, session_id="victim-emit") as client:
        return client.emit("MISS", "LOCAL", f"{number}", duration=0)


def _datagram(path: Path, number: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.sendto(line("victim-datagram", number), str(path))
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connect(self.sock, self._path, PATIENCE)


class _Post:
    """Requests with one event each, on a connection that is kept."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], token: str | None) -> None:
        self._connect = connect
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, number: int) -> bool:
        if self._connection is None:
            self._connection = self._connect()
        try:
            body = json.dumps([event("victim-http", number)])
            self._connection.request("POST", EVENTS_PATH, body, self._headers)
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            return False
        return response.status == 200


def _flush(path: Path) -> bool:
    connection = _UnixConnection(path)
    try:
        connection.request("POST", f"/flush?deadline={PATIENCE:g}")
        response = connection.getresponse()
        response.read()
        return response.status in {200, 504}
    finally:
        connection.close()
