"""A network with a long way to the server: a relay on loopback that lets everything pass, unchanged, some time later."""

import asyncio

from tests.support.tcp_server import HOST, TcpServer, close

_CHUNK = 64 * 1024


class SlowNetwork(TcpServer):
    """Relays to a port on loopback; an answer comes `round_trip` seconds after its request at the earliest.

    A new connection costs one more round trip, the TCP handshake: of a client that has gone before nothing arrives. What was
    sent on a connection that stands arrives even if its sender hangs up.
    """

    def __init__(self, server_port: int, round_trip: float) -> None:
        super().__init__()
        self._server_port = server_port
        self._round_trip = round_trip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until both ends have said that nothing more comes."""
        early = await self._handshake(reader)
        if early is None:
            return
        from_server, to_server = await asyncio.open_connection(HOST, self._server_port)
        try:
            await asyncio.gather(self._relay(early, reader, to_server), self._relay(b"", from_server, writer))
        finally:
            await close(to_server)

    async def _handshake(self, reader: asyncio.StreamReader) -> bytes | None:
        """Return what the client wants to send by the time that it could; None if it does not wait for that."""
        early = b""
        try:
            async with asyncio.timeout(self._round_trip):
                while data := await reader.read(_CHUNK):
                    early += data
        except TimeoutError:
            return early
        return None

    async def _relay(self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what comes while what came before is still on its way."""
        clock = asyncio.get_running_loop().time
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(on_its_way, writer))
        try:
            data = early or await reader.read(_CHUNK)
            while data:
                on_its_way.put_nowait((clock() + self._round_trip / 2, data))
                data = await reader.read(_CHUNK)
            on_its_way.put_nowait((clock() + self._round_trip / 2, b""))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, on_its_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await on_its_way.get()
            await asyncio.sleep(due - clock())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
