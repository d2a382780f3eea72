"""nats-py's client, where it would go too far, or wait too long: what it sends, to whom, and how its TLS ends."""

import asyncio
import ssl
from typing import Any, Final
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.js import api

CONNECT_SECONDS: Final = 2.0
CLOSE_SECONDS: Final = 1.0


class NatsClient(Client):
    """nats-py's, which takes any message with a header `Status` for the server's own word: whoever publishes could write one.

    What a consumer delivers has a reply of JetStream's, by which it is acknowledged; the server's own words have none.
    To a server at tls:// it says nothing but by TLS, whatever that server, or who pretends to be it, offers.
    """

    async def _connect_to_server(self, s: Srv) -> None:
        self._transport = _Transport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, CONNECT_SECONDS)  # type: ignore[arg-type]  # it takes fractions

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._current_server is not None and self._current_server.uri.scheme == "tls":
            if not (info.get("tls_required") or info.get("tls_available")):
                raise nats.errors.Error("the server offers no TLS, which tls:// demands")
            info["tls_required"] = True  # nats-py goes by this alone: to a server that takes both it would not use TLS
        await super()._process_info(info, initial_connection)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        if headers is not None and reply.startswith(b"$JS.ACK."):
            headers.pop(api.Header.STATUS, None)
        built: Msg = super()._build_message(sid, subject, reply, data, headers)
        return built


class _Transport(TcpTransport):
    """nats-py's, which begins TLS past asyncio's streams: they do not learn that it has begun, or failed."""

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Go on with TLS."""
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        if self._io_writer is not None:  # for its flow control, and for its end without a warning of asyncio's
            transport = self._io_writer.transport
            transport.get_protocol().connection_made(transport)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, but not for long.

        asyncio waits 30 s for the farewell of a server that is gone, and for ever where TLS could not be begun.
        """
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        except TimeoutError:
            if self._io_writer is not None:
                self._io_writer.transport.abort()
