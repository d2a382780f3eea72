"""An API that costs next to nothing: it counts events and answers 200. A process of its own.

It knows where a request ends and that every event has one session. It must never parse JSON: what it takes is missing from
the agent's share of the machine. One request is not the API's: `GET /wait?events=N&quiet=SECONDS` is answered when so many
events have come, or when nothing has come for so long.
"""

import json
import re
import resource
import selectors
import socket
import sys
import time
from typing import NamedTuple

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ONE_A_EVENT = b'"sessionId"'
_BUFFER_BYTES = 2 * 1024 * 1024
_TICK_SECONDS = 0.5
_length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
_expects = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE).search
_waits_for = re.compile(rb"GET /wait\?events=(\d+)&quiet=(\d+) ").match


class Arrived(NamedTuple):
    """What has come, the last of it `at` (`time.monotonic`); `cpu` is what the sink has used, in seconds."""

    events: int
    requests: int
    cpu: float
    at: float


class _Connection:
    """One client: its request as far as it has come, `end` being where it ends, once that is known."""

    __slots__ = ("buffer", "end", "filled", "head", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = bytearray(_BUFFER_BYTES)
        self.filled = 0
        self.head = 0
        self.end: int | None = None

    def receive(self) -> int:
        with memoryview(self.buffer) as view:
            size = self.socket.recv_into(view[self.filled :])
        self.filled += size
        return size

    def is_whole(self) -> bool:
        if self.end is None:
            self._find_end()
        return self.end is not None and self.filled >= self.end

    def _find_end(self) -> None:
        head = self.buffer.find(b"\r\n\r\n", 0, self.filled)
        if head < 0:
            return
        length = _length(self.buffer, 0, head)
        self.head = head + 4
        self.end = self.head + (int(length[1]) if length else 0)
        if self.end > len(self.buffer):
            self.buffer.extend(bytes(self.end - len(self.buffer)))
        if _expects(self.buffer, 0, head):
            self.socket.sendall(CONTINUE)

    def next_request(self) -> None:
        end = self.end or 0
        self.buffer[: self.filled - end] = self.buffer[end : self.filled]
        self.filled -= end
        self.end = None


class _Waiting(NamedTuple):
    """Somebody who waits for so many events, but not for longer than `quiet` seconds after `since` or the last of them."""

    events: int
    quiet: int
    since: float
    socket: socket.socket


class _Counter:
    """Serves every connection in one thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._waiting: list[_Waiting] = []
        self._events = 0
        self._requests = 0
        self._at = time.monotonic()

    def serve(self) -> None:
        """Serve until the process ends."""
        while True:
            for key, _ in self._selector.select(_TICK_SECONDS if self._waiting else None):
                if key.data is None:
                    accepted, _ = self._listener.accept()
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(accepted, selectors.EVENT_READ, _Connection(accepted))
                else:
                    self._converse(key.data)
            self._answer_waiting(time.monotonic())

    def _converse(self, connection: _Connection) -> None:
        if connection.receive() == 0:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            return
        while connection.is_whole():
            self._take(connection)
            connection.next_request()

    def _take(self, connection: _Connection) -> None:
        wanted = _waits_for(connection.buffer)
        if wanted:
            self._waiting.append(_Waiting(int(wanted[1]), int(wanted[2]), time.monotonic(), connection.socket))
        else:
            self._events += connection.buffer.count(ONE_A_EVENT, connection.head, connection.end)
            self._requests += 1
            self._at = time.monotonic()
            connection.socket.sendall(ANSWER)
            self._answer_waiting(self._at)

    def _answer_waiting(self, now: float) -> None:
        for each in self._waiting.copy():
            if self._events >= each.events or now - max(self._at, each.since) >= each.quiet:
                self._waiting.remove(each)
                self._tell(each.socket)

    def _tell(self, waiting: socket.socket) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        arrived = Arrived(self._events, self._requests, usage.ru_utime + usage.ru_stime, self._at)
        body = json.dumps(arrived._asdict()).encode()
        waiting.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def main() -> None:
    """Say where, and serve until the process is ended."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    sys.stdout.write(f"listening at http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    _Counter(listener).serve()


if __name__ == "__main__":
    main()
