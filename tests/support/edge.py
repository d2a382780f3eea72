"""The edge of the daemon in this process: real sockets before an intake and a pipeline whose disk can be slow or hang."""

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel

from agent.delivery.pipeline import Pipeline
from agent.ingest import sockets
from agent.ingest.datagram import DatagramListener
from agent.ingest.intake import Intake
from agent.ingest.stream import StreamListener
from agent.runtime import Runtime
from tests.support.pipelines import Host
from tests.support.waiting import HUNG_AFTER

T = TypeVar("T")

ACKS = b'{"context":{"ack":"durable"}}\n'
CLIENT_SECONDS = HUNG_AFTER
TURNS = 2000


def line(name: str = "h", padding: int = 0) -> bytes:
    """Return an event as a line; its hash is the name, its session `padding` long."""
    event = {"sessionId": "s" * (padding + 1), "source": "LOCAL", "event": "HIT", "hash": name, "duration": 7}
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def line_of(size: int) -> bytes:
    """Return a valid event whose line has `size` bytes, its newline not counted."""
    return line(padding=size - (len(line()) - 1))


class Gate:
    """A `run_blocking` behind which the disk does nothing while it is closed."""

    def __init__(self) -> None:
        self._opened = anyio.Event()
        self._opened.set()

    def close(self) -> None:
        """Let the disk hang from its next call on."""
        self._opened = anyio.Event()

    def open(self) -> None:
        """Let it go on."""
        self._opened.set()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` here once the gate is open."""
        await anyio.lowlevel.checkpoint()
        await self._opened.wait()
        return call()


@dataclass
class GatedHost(Host):
    """A host whose disk hangs while `gate` is closed."""

    gate: Gate = field(default_factory=Gate)

    @property
    def runtime(self) -> Runtime:
        """What stands for threads, clocks and chance."""
        return Runtime(self.gate.run, self.wall_clock, lambda: self.jitter)


@dataclass
class Edge:
    """Both listeners, serving, and what is behind them. Nothing is delivered: what is accepted stays queued."""

    host: GatedHost
    pipeline: Pipeline
    intake: Intake
    stream_path: Path
    datagram_path: Path
    stream: StreamListener
    datagram: DatagramListener
    ended: dict[str, anyio.Event] = field(default_factory=lambda: {"stream": anyio.Event(), "datagram": anyio.Event()})

    def client(self) -> "Client":
        """Connect to the stream socket."""
        return Client(self.stream_path)

    def sender(self) -> "Client":
        """Connect to the datagram socket."""
        return Client(self.datagram_path, socket.SOCK_DGRAM)

    async def settle(self) -> None:
        """Return when everything that clients have written is taken and committed."""
        await self.stream.catch_up()
        await self.datagram.catch_up()
        await self.pipeline.commit_once()

    async def serve(self, name: str, listener: StreamListener | DatagramListener) -> None:
        """Serve until it is closed, and say so."""
        await listener.serve()
        self.ended[name].set()


@asynccontextmanager
async def edge(directory: Path, *, max_connections: int = 64) -> AsyncIterator[Edge]:
    """Yield an edge with its sockets in `directory`."""
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        pipeline.pause()
        intake = Intake({"default": pipeline})
        paths = directory / "s.sock", directory / "d.sock"
        stream = StreamListener(sockets.bind(paths[0], sockets.STREAM, mode=0o600), intake, max_connections)
        datagram = DatagramListener(sockets.bind(paths[1], sockets.DATAGRAM, mode=0o600), intake)
        made = Edge(host, pipeline, intake, *paths, stream, datagram)
        tasks.start_soon(made.serve, "stream", stream)
        tasks.start_soon(made.serve, "datagram", datagram)
        await anyio.wait_all_tasks_blocked()
        try:
            yield made
        finally:
            host.gate.open()
            for listener in (stream, datagram):
                await listener.close()
            with anyio.move_on_after(HUNG_AFTER, shield=True):
                for ended in made.ended.values():
                    await ended.wait()
            tasks.cancel_scope.cancel()


async def turns(condition: Callable[[], bool]) -> bool:
    """Let the other tasks run until it is so; False if it is not after so many turns that nothing will come of more."""
    for _ in range(TURNS):
        if condition():
            return True
        await anyio.lowlevel.checkpoint()
    return condition()


class Client:
    """A client's socket: reads and writes wait on the loop, at most CLIENT_SECONDS. For `with`."""

    def __init__(self, path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.setblocking(False)
        self._unread = b""
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    async def send(self, data: bytes) -> None:
        """Write all of `data`; on a datagram socket as one datagram."""
        with anyio.fail_after(CLIENT_SECONDS):
            while data:
                try:
                    data = data[self.socket.send(data) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.socket)

    def fill(self, data: bytes) -> int:
        """Write of `data` what the socket takes at once; return how much that was."""
        written = 0
        try:
            while written < len(data):
                written += self.socket.send(data[written:])
        except BlockingIOError:
            pass
        return written

    async def answer(self) -> dict[str, Any] | None:
        """Wait for the next answer; None at the end of the connection."""
        while b"\n" not in self._unread:
            if not (more := await self.receive()):
                return None
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def settled(self, count: int) -> dict[str, Any]:
        """Return the first answer whose counts sum up to `count`, with the last errors that were named."""
        errors: dict[str, Any] = {}
        while answer := await self.answer():
            errors = {"errors": answer["errors"]} if "errors" in answer else errors
            answer = errors | answer
            if answer["durable"] + answer["rejected"] + answer.get("dropped", 0) >= count:
                return answer
        raise AssertionError(f"the connection ended before {count} lines were settled")

    async def finish(self) -> list[dict[str, Any]]:
        """Say that nothing more comes, and return the answers up to the end of the connection."""
        self.socket.shutdown(socket.SHUT_WR)
        answers = []
        while answer := await self.answer():
            answers.append(answer)
        return answers

    async def receive(self) -> bytes:
        """Wait for what comes next; b"" at the end of the connection."""
        with anyio.fail_after(CLIENT_SECONDS):
            while True:
                try:
                    return self.socket.recv(1 << 16)
                except BlockingIOError:
                    await anyio.wait_readable(self.socket)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()
