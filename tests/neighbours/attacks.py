"""What hostile neighbours do, each in a process of its own, until it is killed: `python -m tests.neighbours.attacks UID NAME …`.

They know the sockets and the port, as any local user does; none of them has the token. NAMES are those of issue reports: what
each once did to everybody else stands beside it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.neighbours.victims import EVENTS_PATH, Addresses

NOBODY = 65534
_PR_SET_PDEATHSIG = 1
RUBBISH = b"a\n" * 100_000


def pipeline_without_a_token(where: Addresses) -> None:
    """500 requests at a time on the port, and read the answers: once froze the daemon."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 500
    while True:
        with contextlib.suppress(OSError), _tcp(where) as client:
            while True:
                client.sendall(request)
                received = 0
                while received < len(request):
                    data = client.recv(1 << 16)
                    if not data:
                        raise OSError
                    received += len(data)


def rubbish_datagrams(where: Addresses) -> None:
    """Datagrams of bad lines, as fast as they are taken: acks went from 1 ms to seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        while True:
            with contextlib.suppress(OSError):
                sender.sendto(RUBBISH, str(where.datagram))


def short_connections(where: Addresses) -> None:
    """Open, send a valid line, close: others of one event each starved."""
    text = b'{"sessionId":"attacker","source":"LOCAL","event":"MISS","hash":"a","duration":0}\n'
    _connect_and_send(where, text)


def short_connections_with_rubbish(where: Addresses) -> None:
    """Open, send 1,000 bad lines, close: nobody else got through."""
    _connect_and_send(where, b"a\n" * 1000)


def short_connections_of_many_processes(where: Addresses) -> None:
    """The same from 16 processes at once."""
    _fork(16, lambda: short_connections(where))


def short_connections_without_a_token(where: Addresses) -> None:
    """Open, ask, close, on the port."""
    while True:
        with contextlib.suppress(OSError), _tcp(where) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")


def short_requests(where: Addresses) -> None:
    """Open, post an event, close, on the Unix socket for HTTP."""
    body = b'[{"sessionId":"attacker","source":"LOCAL","event":"MISS","hash":"a","duration":0}]'
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (EVENTS_PATH.encode(), len(body))
    while True:
        with contextlib.suppress(OSError), _unix(where.http) as client:
            client.sendall(head + body)


def held_connections(where: Addresses) -> None:
    """Open more connections than there may be, say nothing on them, and open them again."""
    held: deque[socket.socket] = deque(maxlen=900)  # beyond that the first one is closed
    while True:
        with contextlib.suppress(OSError):
            held.append(_unix(where.stream))


def held_connections_of_many_processes(where: Addresses) -> None:
    """The same from 16 processes at once, of which none has most of them."""
    _fork(16, lambda: held_connections(where))


def _connect_and_send(where: Addresses, text: bytes) -> None:
    while True:
        with contextlib.suppress(OSError), _unix(where.stream) as client:
            client.sendall(text)


def datagrams_like_events(where: Addresses) -> None:
    """16 processes that send datagrams of lines which only look like events."""

    def pour() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            while True:
                with contextlib.suppress(OSError):
                    sender.sendto(b"{\n" * 50_000, str(where.datagram))

    _fork(16, pour)


def rubbish_streams(where: Addresses) -> None:
    """64 connections that send bad lines without an end."""
    _all(64, lambda: _pour(where.stream, RUBBISH))


def rubbish_like_events(where: Addresses) -> None:
    """64 connections that send lines which only look like events."""
    _all(64, lambda: _pour(where.stream, b"{\n" * 100_000))


def rubbish_streams_of_many_processes(where: Addresses) -> None:
    """The same from 32 processes."""
    _fork(32, lambda: _pour(where.stream, b"{\n" * 100_000))


def drip_bodies_without_a_token(where: Addresses) -> None:
    """512 OPTIONS on the port whose bodies drip: held every slot for minutes."""
    _all(512, lambda: _drip(_tcp(where), b"OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", 1.0))


def drip_bodies(where: Addresses) -> None:
    """512 POSTs on the Unix socket whose bodies drip."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" % EVENTS_PATH.encode()
    _all(512, lambda: _drip(_unix(where.http), head, 1.0))


def drip_heads(where: Addresses) -> None:
    """512 connections whose heads drip."""
    _all(512, lambda: _drip(_tcp(where), b"GET / HTTP/1.1\r\n", 1.0, b"x"))


def drip_chunks(where: Addresses) -> None:
    """40 clients that drip chunked bodies: every other chunked or large request waited."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % EVENTS_PATH.encode()
    _all(40, lambda: _drip(_unix(where.http), head, 0.5, b"1\r\n \r\n"))


def one_byte_chunks(where: Addresses) -> None:
    """Chunks of one byte, as fast as they are taken: acks went from 1 to 600 ms."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % EVENTS_PATH.encode()
    _all(8, lambda: _pour(where.http, b"1\r\n \r\n" * 10_000, head))


def informational_answers(where: Addresses) -> None:
    """Requests through the front to a server that answers with 1xx without an end: acks took 200 ms."""
    _all(4, lambda: _pour_requests(where))


def flood(where: Addresses) -> None:
    """Events of 60 KB from another user: pushed the acknowledged events of others out of a full queue."""
    filler = "x" * 60_000
    event = {"sessionId": filler, "source": "LOCAL", "event": "MISS", "hash": "flood", "duration": 0}
    _pour(where.stream, json.dumps(event).encode() + b"\n")


def lock_the_directory(where: Addresses) -> None:
    """flock on the runtime directory: kept the daemon from starting and from stopping."""
    fd = os.open(where.stream.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    threading.Event().wait()


ATTACKS: Mapping[str, Callable[[Addresses], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        pipeline_without_a_token,
        rubbish_datagrams,
        datagrams_like_events,
        rubbish_streams,
        rubbish_like_events,
        rubbish_streams_of_many_processes,
        short_connections,
        short_connections_with_rubbish,
        short_connections_of_many_processes,
        short_connections_without_a_token,
        short_requests,
        held_connections,
        held_connections_of_many_processes,
        drip_bodies_without_a_token,
        drip_bodies,
        drip_heads,
        drip_chunks,
        one_byte_chunks,
        informational_answers,
        flood,
        lock_the_directory,
    )
}


def _tcp(where: Addresses) -> socket.socket:
    client = socket.socket()  # not `create_connection`: it imports a codec, of a Python that nobody may read
    client.connect(("127.0.0.1", where.port))
    return client


def _unix(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    return client


def _pour(path: Path, text: bytes, head: bytes = b"") -> None:
    while True:
        with contextlib.suppress(OSError), _unix(path) as client:
            client.sendall(head)
            while True:
                client.sendall(text)


def _pour_requests(where: Addresses) -> None:
    while True:
        with contextlib.suppress(OSError), _unix(where.http) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            while client.recv(1 << 16):
                pass


def _drip(client: socket.socket, head: bytes, seconds: float, drop: bytes = b" ") -> None:
    with client:
        client.sendall(head)
        while True:
            client.sendall(drop)
            time.sleep(seconds)


def _fork(count: int, work: Callable[[], None]) -> None:
    """Do it in that many processes, which end with this one."""
    parent = os.getpid()
    for _ in range(count):
        if os.fork() == 0:
            _end_with(parent)
            work()
    threading.Event().wait()


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _all(count: int, work: Callable[[], None]) -> None:
    """Do it in that many threads, each again and again."""

    def forever() -> None:
        while True:
            with contextlib.suppress(OSError):
                work()
            time.sleep(0.05)

    for _ in range(count):
        threading.Thread(target=forever, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    uid, name, stream, datagram, control, http, port = sys.argv[1:]
    if int(uid) != os.getuid():
        os.setuid(int(uid))
    ATTACKS[name](Addresses(Path(stream), Path(datagram), Path(control), Path(http), int(port), token=""))
