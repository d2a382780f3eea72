"""A TCP server on loopback in a thread of its own, with its own asyncio loop, for tests of either anyio backend.

Subclasses say in `serve` what travels over the connections.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for zero seconds: close() sends RST


class TcpServer(ABC):
    """Serves while the `with` block lasts. Entering it again listens on the same port: an outage is leaving the block.

    An exception in `serve` that is not the client's doing is raised when the block is left, as an ExceptionGroup.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self._tls = tls
        self._thread: threading.Thread | None = None
        self._errors: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash; the port is known once it has started."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._tasks)

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak with one client. Returning closes the connection; an OSError means that the client went away."""

    def start(self) -> None:
        """Listen; connections are accepted by the time that it returns."""
        listening = socket.create_server((HOST, self.port), backlog=512)
        self.port = listening.getsockname()[1]
        self._loop = asyncio.SelectorEventLoop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), name=type(self).__name__)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and the listening socket; raises what went wrong meanwhile."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None
        errors, self._errors = self._errors, []
        if errors:
            raise ExceptionGroup(f"in {type(self).__name__}", errors)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.stop()

    def _run(self, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main(listening))

    async def _main(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._accept, sock=listening, ssl=self._tls)
        await self._stopping.wait()
        server.close()
        await asyncio.sleep(0)  # one more turn for what had been accepted already
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(
            lambda _: writer.transport.abort()
        )  # a task that is cancelled before it began closes nothing

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                await self.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        except Exception as error:  # noqa: BLE001 - raised again by stop(), in the test's thread
            self._errors.append(error)
        finally:
            await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection and wait for it; a peer that is gone already is no error."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
