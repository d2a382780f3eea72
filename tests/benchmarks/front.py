"""Artifacts of 1 GB through the front, each way, how long events wait meanwhile, and what a request costs that has a small one.

python -m tests.benchmarks.front [--events 1000000] [--rounds 3] [--json FILE]

An artifact has 1 kB for each event of `--events`, at most 1 GB. "event" is how long the answer to a request with an event takes
while artifacts pass, "idle" the same before that. The floor is the same without the front.

"small" are requests as turbo makes them, on one connection, one for each 200 events: in turn an artifact that is there, one that
is not, and an upload. The floor is a relay that looks at nothing (tests.benchmarks.relay).
"""

import contextlib
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from threading import Thread

from tests.benchmarks import relay, usage
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.support.daemon import TOKEN, Daemon, Sections

FLOOR = "floor"
SMALL = "small"
SMALL_BYTES = 4096
MEGABYTE = 1_000_000
BETWEEN_EVENTS = 0.005
_HOST = "127.0.0.1"
_CONTEXT = multiprocessing.get_context("spawn")
_EVENT = b'[{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":7}]'
_AUTHORIZED = b"Host: a\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode()
_TURBO = (
    b"%bUser-Agent: turbo 2.11.11 1.90.0 linux (x86_64)\r\nAccept: */*\r\n"
    b"x-artifact-client-ci: GITHUB_ACTIONS\r\nx-artifact-client-interactive: 0\r\n" % _AUTHORIZED
)
_TURBO_PUT = b"%bContent-Type: application/octet-stream\r\nx-artifact-duration: 514\r\nContent-Length: %d\r\n\r\n%b"
_SMALL = (
    b"GET /%d HTTP/1.1\r\n%b\r\n" % (SMALL_BYTES, _TURBO),
    b"HEAD /v8/artifacts/115c7929ab9c479c?slug=my-team HTTP/1.1\r\n%b\r\n" % _TURBO,
    b"PUT /v8/artifacts/115c7929ab9c479c?slug=my-team HTTP/1.1\r\n"
    + _TURBO_PUT % (_TURBO, SMALL_BYTES, bytes(SMALL_BYTES)),
)
_ANSWER = (
    b"HTTP/1.1 %b\r\nDate: Wed, 15 Nov 2023 06:00:00 GMT\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n"
    b"Cache-Control: public, max-age=0\r\nServer: s\r\nX-Artifact-Tag: t\r\nX-Request-Id: iad1::6x9qz-1700028000000\r\n\r\n"
)
_POST = b"POST /v8/artifacts/events HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (_AUTHORIZED, len(_EVENT), _EVENT)


def run(size: Size) -> Report:
    """Measure small artifacts, and large ones down and up, through the front and without it, in turn."""
    megabytes = max(min(size.events // 1000, 1000), 1)
    samples = []
    for _ in range(size.rounds):
        with _upstream() as port:
            samples += [_small_through_front(size, port), _small_through_relay(size, port)]
    for case in ("download", "upload"):
        for _ in range(size.rounds):
            with _upstream() as port:
                samples += [_through_front(size, case, megabytes, port), _direct(case, megabytes, port)]
    return Report("front", samples, size.facts(megabytes=megabytes))


def _small_through_front(size: Size, port: int) -> Sample:
    with _front(size, port) as (pid, address):
        return Sample(SMALL, AGENT, _small(size, pid, address))


def _small_through_relay(size: Size, port: int) -> Sample:
    with _process(relay.run, _HOST, (_HOST, port)) as (pid, relay_port):
        return Sample(SMALL, FLOOR, _small(size, pid, (_HOST, relay_port)))


def _small(size: Size, pid: int, address: tuple[str, int]) -> dict[str, float]:
    """Make requests of the process; return what one costs it, and how many there are in a second."""
    count = max(size.events // 200, len(_SMALL))
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(10):
            _ask(connection, _SMALL[index % len(_SMALL)])
        cpu, begin = usage.cpu_seconds(pid), time.perf_counter()
        for index in range(count):
            _ask(connection, _SMALL[index % len(_SMALL)])
        seconds, cpu = time.perf_counter() - begin, usage.cpu_seconds(pid) - cpu
    return {"CPU µs/request": 1e6 * cpu / count, "requests/s": count / seconds}


def _ask(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    left = 0 if request.startswith(b"HEAD") else _length(head) - len(body)
    while left > 0:
        left -= len(connection.recv(1 << 16))


def _length(head: bytes) -> int:
    line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return int(line.split(b":")[1])


@contextlib.contextmanager
def _front(size: Size, port: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """Run an agent that delivers nothing; yield its process id, and where it listens."""
    sections: Sections = {"http": {"listen": f"{_HOST}:0"}, "front": {"enabled": True}}
    with size.fresh() as directory, Daemon(directory, f"http://{_HOST}:{port}", sections) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        yield daemon.pid, (_HOST, int(daemon.status()["http"]["listen"].rpartition(":")[2]))


def _through_front(size: Size, case: str, megabytes: int, port: int) -> Sample:
    with _front(size, port) as (pid, address):
        with _events(address) as idle:
            time.sleep(min(size.seconds, 1.0))
        cpu = usage.cpu_seconds(pid)
        with _events(address) as busy:
            seconds = _transfer(case, address, megabytes)
        cpu = usage.cpu_seconds(pid) - cpu
        figures = {
            "MB/s": megabytes / seconds,
            "CPU s/GB": cpu * 1000 / megabytes,
            "peak MiB": usage.memory(pid).peak,
            **_delays("event", busy),
            **_delays("idle", idle),
        }
    return Sample(case, AGENT, figures)


def _delays(name: str, seconds: list[float]) -> dict[str, float]:
    last = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    found = {"p50": statistics.median(seconds), "p99": last, "worst": max(seconds)}
    return {f"{name} {which} ms": 1e3 * value for which, value in found.items()}


def _direct(case: str, megabytes: int, port: int) -> Sample:
    return Sample(case, FLOOR, {"MB/s": megabytes / _transfer(case, (_HOST, port), megabytes)})


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
    buffer, taken = memoryview(bytearray(MEGABYTE)), 0
    while taken < size:
        count = connection.recv_into(buffer[: size - taken])
        assert count, f"the connection ended after {taken} of {size} bytes"
        taken += count


def _give(connection: socket.socket, size: int) -> None:
    piece = memoryview(bytes(MEGABYTE))
    for begin in range(0, size, MEGABYTE):
        connection.sendall(piece[: size - begin])


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
    """Run a server of artifacts; yield its port."""
    with _process(_serve) as (_, port):
        yield port


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[tuple[int, int]]:
    """Run a server in a process of its own, which first tells its port; yield its process id, and the port."""
    ours, theirs = multiprocessing.Pipe()
    process = _CONTEXT.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid, ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    with socket.create_server((_HOST, 0)) as listening:
        pipe.send(listening.getsockname()[1])
        while True:
            Thread(target=_answer, args=(listening.accept()[0],), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(ConnectionResetError):  # an agent that is killed resets it
        while head := _head(connection):
            if head.startswith(b"GET"):
                size = int(head.split()[1].strip(b"/"))
                connection.sendall(_ANSWER % (b"200 OK", size))
                _give(connection, size)
            elif head.startswith(b"HEAD"):
                connection.sendall(_ANSWER % (b"404 Not Found", 2))
            else:
                _take(connection, _length(head))
                connection.sendall(_ANSWER % (b"200 OK", 2) + b"{}")


def _head(connection: socket.socket) -> bytes:
    """Read a head and nothing of the body."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


BENCHMARK = Benchmark("front", run)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
