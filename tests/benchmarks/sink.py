"""An API that costs next to nothing: counts events and answers 200. `python -m tests.benchmarks.sink`; SIGTERM ends it.

It knows where a request ends and that every event has one session. It must never parse JSON: what it takes is missing from
the agent's share of the machine.
"""

import signal
import socket
import sys
import threading

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_CHUNK = 1024 * 1024


class Sink:
    """Counts the `events` and `requests` that it was sent."""

    def __init__(self) -> None:
        self.events = 0
        self.requests = 0
        self._lock = threading.Lock()

    def serve(self, listener: socket.socket) -> None:
        """Accept connections for as long as the process lives."""
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        data = bytearray()
        while chunk := connection.recv(_CHUNK):
            data += chunk
            end = _end(data)
            if end is not None and len(data) >= end:
                self._count(data.count(b'"sessionId"', 0, end))
                del data[:end]
                connection.sendall(ANSWER)

    def _count(self, events: int) -> None:
        with self._lock:
            self.events += events
            self.requests += 1


def _end(data: bytearray) -> int | None:
    """Return where the request at the beginning ends; None while its head is not there."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = data[:head].lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return head + 4 + int(length or b"0")


def main() -> None:
    """Serve until SIGTERM; say where at the start, and how much came at the end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sink, listener = Sink(), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=sink.serve, args=(listener,), daemon=True).start()
    sys.stdout.write(f"listening at http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})
    sys.stdout.write(f"{sink.events} events in {sink.requests} requests\n")


if __name__ == "__main__":
    main()
