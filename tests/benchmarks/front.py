"""Artifacts of 1 GB through the front, each way, and how long events wait meanwhile, against the same without the front.

python -m tests.benchmarks.front [--events 1000000] [--rounds 3] [--json FILE]

An artifact has 1 kB for each event of `--events`, at most 1 GB. "event" is how long the answer to a request with an event takes
while artifacts pass, "idle" the same before that.
"""

import contextlib
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from threading import Thread

from tests.benchmarks import usage
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.support.daemon import TOKEN, Daemon, Sections

DIRECT = "direct"
MEGABYTE = 1_000_000
BETWEEN_EVENTS = 0.005
_HOST = "127.0.0.1"
_CONTEXT = multiprocessing.get_context("spawn")
_EVENT = b'[{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":7}]'
_AUTHORIZED = b"Host: a\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode()
_POST = b"POST /v8/artifacts/events HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (_AUTHORIZED, len(_EVENT), _EVENT)


def run(size: Size) -> Report:
    """Measure down and up, through the front and without it, in turn."""
    megabytes = max(min(size.events // 1000, 1000), 1)
    samples = []
    for case in ("download", "upload"):
        for _ in range(size.rounds):
            with _upstream() as port:
                samples += [_through_front(size, case, megabytes, port), _direct(case, megabytes, port)]
    return Report("front", samples, size.facts(megabytes=megabytes), baseline=DIRECT)


def _through_front(size: Size, case: str, megabytes: int, port: int) -> Sample:
    sections: Sections = {"http": {"listen": f"{_HOST}:0"}, "front": {"enabled": True}}
    with size.fresh() as directory, Daemon(directory, f"http://{_HOST}:{port}", sections) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        address = (_HOST, int(daemon.status()["http"]["listen"].rpartition(":")[2]))
        with _events(address) as idle:
            time.sleep(min(size.seconds, 1.0))
        cpu = usage.cpu_seconds(daemon.pid)
        with _events(address) as busy:
            seconds = _transfer(case, address, megabytes)
        cpu = usage.cpu_seconds(daemon.pid) - cpu
        figures = {
            "MB/s": megabytes / seconds,
            "CPU s/GB": cpu * 1000 / megabytes,
            "peak MiB": usage.memory(daemon.pid).peak,
            **_delays("event", busy),
            **_delays("idle", idle),
        }
    return Sample(case, AGENT, figures)


def _delays(name: str, seconds: list[float]) -> dict[str, float]:
    last = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    found = {"p50": statistics.median(seconds), "p99": last, "worst": max(seconds)}
    return {f"{name} {which} ms": 1e3 * value for which, value in found.items()}


def _direct(case: str, megabytes: int, port: int) -> Sample:
    return Sample(case, DIRECT, {"MB/s": megabytes / _transfer(case, (_HOST, port), megabytes)})


def _transfer(case: str, address: tuple[str, int], megabytes: int) -> float:
    """Download or upload so much; return the seconds that it took."""
    size = megabytes * MEGABYTE
    begin = time.perf_counter()
    with socket.create_connection(address) as connection:
        if case == "download":
            connection.sendall(b"GET /%d HTTP/1.1\r\n%b\r\n" % (size, _AUTHORIZED))
            _take(connection, size)
        else:
            connection.sendall(b"PUT /x HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (_AUTHORIZED, size))
            _give(connection, size)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    return time.perf_counter() - begin


def _take(connection: socket.socket, size: int) -> None:
    buffer, taken = bytearray(MEGABYTE), 0
    while taken < size:
        count = connection.recv_into(buffer)
        assert count, f"the connection ended after {taken} of {size} bytes"
        taken += count


def _give(connection: socket.socket, size: int) -> None:
    piece = memoryview(bytes(MEGABYTE))
    for _ in range(size // MEGABYTE):
        connection.sendall(piece)


@contextlib.contextmanager
def _events(address: tuple[str, int]) -> Iterator[list[float]]:
    """Send an event every few milliseconds while the block lasts; how many seconds each answer took is in the list then.

    In a process of its own: threads of one would wait for each other.
    """
    seconds: list[float] = []
    ours, theirs = multiprocessing.Pipe()
    process = _CONTEXT.Process(target=_send_events, args=(theirs, address), daemon=True)
    process.start()
    ours.recv()
    yield seconds
    ours.send(None)
    seconds += ours.recv()
    process.join()


def _send_events(pipe: Connection, address: tuple[str, int]) -> None:
    seconds: list[float] = []
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipe.send(None)
        while len(seconds) < 2 or not pipe.poll(BETWEEN_EVENTS):
            begin = time.perf_counter()
            connection.sendall(_POST)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            seconds.append(time.perf_counter() - begin)
    pipe.send(seconds)


@contextlib.contextmanager
def _upstream() -> Iterator[int]:
    """Run a server of artifacts in a process of its own; yield its port."""
    ours, theirs = multiprocessing.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    with socket.create_server((_HOST, 0)) as listening:
        pipe.send(listening.getsockname()[1])
        while True:
            Thread(target=_answer, args=(listening.accept()[0],), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        while head := _head(connection):
            first, *_ = head.split(b"\r\n")
            if first.startswith(b"GET"):
                size = int(first.split()[1].strip(b"/"))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                _give(connection, size)
            else:
                length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                _take(connection, int(length.split(b":")[1]))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def _head(connection: socket.socket) -> bytes:
    """Read a head and nothing of the body."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


BENCHMARK = Benchmark("front", run)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
