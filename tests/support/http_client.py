"""A client's raw end of an HTTP/1.1 connection: bytes out, answers in. Reads and writes wait on the loop for at most 10 s."""

import json
import socket
from typing import Any, NamedTuple, Self

import anyio

from tests.support.waiting import HUNG_AFTER


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in the API's shape, which has nothing else in it."""
        (name, error), *more = json.loads(self.body).items()
        assert (name, more, error.keys()) == ("error", [], {"code", "message"})
        assert isinstance(error, dict)
        return error


class Client:
    """A connection to a Unix socket, or a port of this machine. For `with`."""

    def __init__(self, address: str | int) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._unread = b""
        try:
            self.socket.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        with anyio.fail_after(HUNG_AFTER):
            while data:
                try:
                    data = data[self.socket.send(data) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.socket)

    async def more(self) -> bytes:
        """Wait for what comes next; b"" at the end of the connection."""
        with anyio.fail_after(HUNG_AFTER):
            while True:
                try:
                    return self.socket.recv(1 << 16)
                except BlockingIOError:
                    await anyio.wait_readable(self.socket)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the status and the headers, whose names are in lower case."""
        while b"\r\n\r\n" not in self._unread:
            more = await self.more()
            assert more, f"the connection ended in {self._unread!r}"
            self._unread += more
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        headers = (each.split(": ", 1) for each in fields)
        return int(status.split()[1]), {name.lower(): value for name, value in headers}

    async def answer(self, *, body: bool = True) -> Answer:
        """Read a whole answer that has a length, but for its body if it answers HEAD."""
        status, headers = await self.head()
        length = int(headers["content-length"]) if body else 0
        while len(self._unread) < length:
            self._unread += await self.more()
        content, self._unread = self._unread[:length], self._unread[length:]
        return Answer(status, headers, content)

    async def ended(self) -> bool:
        """Tell whether the connection ends here."""
        try:
            return await self.more() == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
