"""A misbehaving, capturing API server: real HTTP/1.1 over real sockets on loopback.

In a test: `with ApiServer() as server:`. As a process of its own: `python -m tests.support.api_server --help`.

How an answer is chosen: a scripted answer that is trouble (not 2xx, or not whole) comes first; then the rules (token,
schema, size, rejected hashes); then the scripted 2xx, or `default` when the script has run out.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h11

from tests.support.api_schema import violations
from tests.support.capture import EVENTS_PATH, STATUS_PATH, Captured, CapturingServer
from tests.support.http_connection import HttpConnection, captured

Mode = Literal["answer", "drip", "hang", "cut", "reset", "reset_mid_answer", "reset_mid_upload"]


@dataclass(frozen=True)
class Answer:
    """What one request gets.

    `delay` is in seconds before the answer; with mode "drip" it passes before every byte. "cut" ends the connection
    one byte before the answer's end; "reset" comes after the request was read, "reset_mid_upload" amidst its body.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay: float = 0.0
    mode: Mode = "answer"

    @property
    def is_trouble(self) -> bool:
        """Whether the client is to see anything but a whole 2xx answer."""
        return self.mode not in {"answer", "drip"} or not 200 <= self.status < 300


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Build an answer with a body in the API's form for errors."""
    return Answer(status, headers or {}, json.dumps({"error": {"code": code, "message": message}}).encode())


class ApiServer(CapturingServer):
    """The server. Every attribute may be changed at any time; the next request sees it."""

    def __init__(self, port: int = 0, *, token: str | None = None) -> None:
        super().__init__(port)
        self.token = token
        self.default = Answer()
        self.reject_hashes: set[str] = set()
        self.max_events: int | None = None
        self.max_bytes: int | None = None
        self.status: str | None = None
        self.routes: dict[tuple[str, str], Answer] = {}
        self.violations: list[str] = []
        self._script: Iterator[Answer] = iter(())

    def script(self, answers: Iterable[Answer]) -> None:
        """Answer the next requests to record events with these, one each; replaces what is left of the last script."""
        self._script = iter(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until one of them ends the connection."""
        wire = HttpConnection(reader, writer)
        try:
            while head := await wire.head():
                with self._busy():
                    if not await self._exchange(wire, head):
                        return
        except h11.RemoteProtocolError as problem:
            if not wire.client_left:
                self.violations.append(f"not HTTP: {problem}")

    async def _exchange(self, wire: HttpConnection, head: h11.Request) -> bool:
        scripted = self._next_scripted(captured(head, b""))
        if scripted.mode == "reset_mid_upload":
            self._arrived(captured(head, await wire.some_body()))
            wire.reset()
            return False
        request = captured(head, await wire.body())
        answer = self._choose(request, scripted)
        return await self._perform(wire, self._arrived(request), answer)

    def _next_scripted(self, request: Captured) -> Answer:
        return next(self._script, self.default) if request.is_events else Answer()

    def _choose(self, request: Captured, scripted: Answer) -> Answer:
        refusal = self._refusal(request)
        if scripted.is_trouble:
            return scripted
        return refusal or self.routes.get((request.method, request.path)) or self._found(request, scripted)

    def _found(self, request: Captured, scripted: Answer) -> Answer:
        if request.is_events:
            return scripted
        if (request.method, request.path) == ("GET", STATUS_PATH) and self.status is not None:
            return Answer(body=json.dumps({"status": self.status}).encode())
        return error(404, "not_found", f"No route {request.method} {request.path}")

    def _refusal(self, request: Captured) -> Answer | None:
        problems = self._problems(request)
        self.violations += problems
        if self.token is not None and "authorization" not in request.headers:
            return error(400, "bad_request", "Missing Authorization header")
        if self.token is not None and request.headers["authorization"] != f"Bearer {self.token}":
            return error(401, "unauthorized", "Invalid authorization token")
        if problems:
            return error(400, "bad_request", "; ".join(problems))
        return self._content_refusal(request) if request.is_events else None

    def _problems(self, request: Captured) -> list[str]:
        if (request.method, request.path) == ("POST", f"{EVENTS_PATH}/"):
            return ["the path ends with a slash"]
        return violations(request) if request.is_events else []

    def _content_refusal(self, request: Captured) -> Answer | None:
        if self.max_bytes is not None and len(request.body) > self.max_bytes:
            return error(413, "payload_too_large", f"More than {self.max_bytes} bytes")
        if self.max_events is not None and len(request.events) > self.max_events:
            return error(413, "payload_too_large", f"More than {self.max_events} events")
        for event in request.events:
            if event["hash"] in self.reject_hashes:
                return error(400, "bad_request", f"Invalid event {event['hash']}")
        return None

    async def _perform(self, wire: HttpConnection, index: int, answer: Answer) -> bool:
        if answer.mode == "hang":
            return not await wire.client_leaves(within=None)
        if answer.delay and answer.mode != "drip" and await wire.client_leaves(answer.delay):
            return False
        if answer.mode == "reset":
            wire.reset()
            return False
        return await self._answer(wire, index, answer)

    async def _answer(self, wire: HttpConnection, index: int, answer: Answer) -> bool:
        payload = wire.encode(answer.status, answer.headers, answer.body)
        if answer.mode == "drip" and await _left_while_dripping(wire, payload[:-1], answer.delay):
            return False
        if answer.mode in {"cut", "reset_mid_answer"}:
            await wire.write(payload[:-1])
            if answer.mode == "reset_mid_answer":
                wire.reset()
            return False
        # Noted before it is sent: a test that holds the answer must find it noted.
        self._answered(index, answer.status)
        await wire.write(payload[-1:] if answer.mode == "drip" else payload)
        return wire.next_request()


async def _left_while_dripping(wire: HttpConnection, payload: bytes, delay: float) -> bool:
    for byte in payload:
        if await wire.client_leaves(delay):
            return True
        await wire.write(bytes([byte]))
    return False


def main() -> None:
    """Serve until SIGINT or SIGTERM; say where on stdout."""
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    parser = argparse.ArgumentParser(prog="python -m tests.support.api_server", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="the one token to let in (default: any)")
    parser.add_argument("--max-events", type=int, help="answer 413 to more events than this")
    parser.add_argument("--reject-hash", action="append", default=[], help="answer 400 to batches with this hash")
    parser.add_argument("--status", help="what GET /v8/artifacts/status says (default: 404)")
    parser.add_argument("--record", type=Path, help="where to write the accepted events at the end, one a line")
    options = parser.parse_args()
    server = ApiServer(options.port, token=options.token)
    server.max_events, server.status, server.reject_hashes = options.max_events, options.status, {*options.reject_hash}
    with server:
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        signal.sigwait(stop)
    if options.record:
        options.record.write_text("".join(json.dumps(event) + "\n" for event in server.accepted_events()))


if __name__ == "__main__":
    main()
