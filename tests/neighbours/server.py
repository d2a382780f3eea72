"""An API that takes every event, and answers `GET /endless` with informational answers without an end: a process of its own."""

import asyncio
import re
import sys

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
INFORMATIONAL = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100
_length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /endless"):
                while True:
                    writer.write(INFORMATIONAL)
                    await writer.drain()
            length = _length(head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(OK)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, limit=1 << 20)
    sys.stdout.write(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
