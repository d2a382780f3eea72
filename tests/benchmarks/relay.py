"""The floor of the front: the least that passes requests on in Python, a relay of bytes between connections on uvloop.

It looks at nothing, keeps one connection to the server for each of its client, and holds no rule of the front's. It must never
import the agent.
"""

import asyncio
from multiprocessing.connection import Connection
from typing import cast

import uvloop

Address = tuple[str, int]


class _End(asyncio.Protocol):
    """One end of a pair; what comes here goes out there."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pair(self, other: "_End") -> None:
        """Let this be one end, and `other` the other one."""
        self.other, other.other = other, self
        for data in self._early:
            self.data_received(data)


class _Client(_End):
    def __init__(self, upstream: Address) -> None:
        super().__init__()
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        _, other = await asyncio.get_running_loop().create_connection(_End, *self._upstream)
        self.pair(other)


def run(pipe: Connection, host: str, upstream: Address) -> None:
    """Relay until killed; the port goes to `pipe`."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Client(upstream), host, 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())
