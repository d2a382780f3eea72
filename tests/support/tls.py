"""TLS for servers of tests: certificates that openssl makes, and a proxy that passes on what it cannot read."""

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.tcp_server import HOST, TcpServer
from tests.support.tools import require_tool

NAME = "api.example.invalid"
OWN = f"IP:{HOST},DNS:{NAME}"


class Certificate(NamedTuple):
    """A certificate that has signed itself. `file` is fit for SSL_CERT_FILE."""

    file: Path
    server: ssl.SSLContext


def make_certificate(directory: Path, names: str = OWN) -> Certificate:
    """Make a certificate for these, as openssl writes a subjectAltName."""
    openssl = require_tool("openssl", "apt-get install openssl")
    file, key = directory / "certificate.pem", directory / "key.pem"
    curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(file),
    ]
    subject = ["-subj", "/CN=test", "-addext", f"subjectAltName={names}", "-days", "2"]
    subprocess.run([openssl, "req", "-x509", *curve, *subject], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key)
    return Certificate(file, server)


class TunnelProxy(TcpServer):
    """A proxy that connects whoever asks with CONNECT, for whatever host, to `port` of this machine.

    `heads` has the requests, as they came. It refuses with `refusal` if there is one.
    """

    def __init__(self, port: int, refusal: bytes = b"") -> None:
        super().__init__()
        self.heads: list[bytes] = []
        self._to = port
        self._refusal = refusal

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on bytes until either side ends."""
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        if self._refusal:
            writer.write(self._refusal)
            return
        there_reader, there_writer = await asyncio.open_connection(HOST, self._to)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [
            asyncio.create_task(_pass_on(reader, there_writer)),
            asyncio.create_task(_pass_on(there_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            there_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
