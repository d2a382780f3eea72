"""The Transport that speaks HTTP, and the one table that turns answers into verdicts.

No other module of delivery imports httpx; its exceptions end here.
"""

import datetime as dt
import email.utils
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import anyio
import httpx

from agent import __version__
from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, json_array_parts
from agent.http.api import EVENTS_PATH, STATUS_PATH
from agent.http.client import ConnectionPool, transport_factory

MAX_ANSWER_BYTES = 64 * 1024
MAX_MESSAGE_CHARACTERS = 300
KEEP_SECONDS = 60.0
MOST_IDLE = 64
_TELLING = 8  # so many of the token's first characters are told from other text, and are too few to help anyone

_KINDS = {
    400: Kind.REJECTED,
    401: Kind.BLOCKED,
    402: Kind.BLOCKED,
    403: Kind.BLOCKED,
    408: Kind.TRANSIENT,
    413: Kind.TOO_LARGE,
    422: Kind.REJECTED,
    425: Kind.TRANSIENT,
    429: Kind.TRANSIENT,
}


@dataclass(frozen=True)
class Endpoint:
    """Where and as whom to send. `timeout` is for a whole request, in seconds."""

    url: str
    token: str | None
    team_id: str | None = None
    slug: str | None = None
    timeout: float = 10.0

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Verdict:
    """Return what an answer means. `headers` has lower-case names; `now` is in seconds since the epoch."""
    message = _describe(status, body)
    if 200 <= status < 300:
        return Verdict(Kind.ACCEPTED, message, status)
    kind = _KINDS.get(status) or (Kind.TRANSIENT if status >= 500 else Kind.MISCONFIGURED)
    if kind is Kind.MISCONFIGURED and 300 <= status < 400:
        message += "; redirects are not followed, since they would carry the token: correct api.url"
    return Verdict(kind, message, status, _retry_after(headers, now) if kind is Kind.TRANSIENT else None)


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Read `Retry-After` (seconds or a date, RFC 9110) or `X-RateLimit-Reset` (seconds since the epoch, or from now)."""
    waits = [wait for wait in (_after(headers.get("retry-after"), now), _reset(headers, now)) if wait is not None]
    return max(waits, default=None)


def _after(value: str | None, now: float) -> float | None:
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # OverflowError: a year or an offset of very many digits
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=dt.UTC)
    return max(date.timestamp() - now, 0.0)


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    seconds = _number(headers.get("x-ratelimit-reset", ""))
    if seconds is None or _number(headers.get("x-ratelimit-remaining", "0")) != 0:
        return None
    if seconds > 1e11:  # milliseconds since the epoch
        seconds /= 1000
    return max(seconds - now if seconds > 1e9 else seconds, 0.0)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@lru_cache(maxsize=8)  # nearly all answers are the same one
def _describe(status: int, body: bytes) -> str:
    summary = f"{status} {httpx.codes.get_reason_phrase(status)}".strip()
    message = _message(body)
    return f"{summary}: {message}" if message else summary


def _message(body: bytes) -> str:
    """Find the message in an answer: the API's `{"error": {"message"}}`, other servers' `{"message"}`, or plain text."""
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error")
        found = error.get("message") if isinstance(error, dict) else answer.get("message") or error
        text = found if isinstance(found, str) else text
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:MAX_MESSAGE_CHARACTERS]


class HttpTransport:
    """Sends batches with httpx, as many at a time as are asked for. `wall_clock` returns seconds since the epoch; `transport` is
    for tests.

    It uses transports without httpx's client: what a client adds (cookies, redirects, authentication) is not wanted here, and
    costs half of a request's time.

    The environment's proxies and certificates count (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE), but nothing for this host itself
    goes through a proxy: plain HTTP would show it the token. Raises ConfigError if what the environment says is unusable.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        wall_clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._wall_clock = wall_clock
        self._headers = [
            (b"host", httpx.URL(endpoint.url).netloc),
            (b"accept", b"*/*"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", f"artifacts-agent/{__version__}".encode()),
        ]
        if endpoint.token:
            self._headers.append((b"authorization", f"Bearer {endpoint.token}".encode()))
        self._params = {k: v for k, v in (("teamId", endpoint.team_id), ("slug", endpoint.slug)) if v}
        self._urls: dict[str, httpx.URL] = {}
        make = transport_factory(endpoint.url, KEEP_SECONDS) if transport is None else lambda: transport
        self._connections = ConnectionPool(make, MOST_IDLE)

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`. The body is a JSON array of the events; what was refused before goes over a new connection."""
        body = json_array_parts(batch.lines)
        content = (b"content-type", b"application/json"), (b"content-length", b"%d" % sum(map(len, body)))
        headers = [*self._headers, *_context_headers(batch.context), *content]
        return await self._request("POST", EVENTS_PATH, headers, body, anew=batch.refusals > 0)

    async def probe(self) -> Verdict | None:
        """See `Transport`: `GET /v8/artifacts/status` says enabled, disabled, over_limit or paused, where there is one.

        Some servers say "enabled" without a look at the token, so it is a permission to try and no more.
        """
        verdict = await self.ask("GET", STATUS_PATH)
        return None if verdict.status in {404, 405, 501} else verdict

    async def ask(self, method: str, path: str) -> Verdict:
        """Make a request without a body for any path; the verdict is the one that its answer would be on a batch."""
        return await self._request(method, path, self._headers)

    async def aclose(self) -> None:
        """Close the connections; no request may be under way."""
        await self._connections.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: Sequence[bytes | memoryview] = (),
        *,
        anew: bool = False,
    ) -> Verdict:
        """Make one request; an answer that accepts counts only when all of it has come, or MAX_ANSWER_BYTES of its body."""
        connection, content = self._connections.acquire(anew=anew), _Body(body)
        try:
            # With a stream instead of contents, httpx sends the headers as they are, and looks for no others to add.
            request = httpx.Request(method, self._url(path), headers=headers, stream=content)
            with anyio.move_on_after(self._endpoint.timeout):
                response = await connection.handle_async_request(request)
                return self._verdict(path, response, await _read_some(response))
        except _CutAnswerError as error:
            return Verdict(Kind.TRANSIENT, self._clean(f"the answer was cut off: {_reason(error)}"))
        except (httpx.ConnectError, httpx.TimeoutException, httpx.ProxyError) as error:
            text = self._clean(f"cannot reach {self._endpoint.url}: {_reason(error)}")
            return Verdict(Kind.TRANSIENT, text, unsent=not content.was_read)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL, UnicodeError) as error:
            # UnicodeError: what the resolver says to a name that no host can have
            text = self._clean(f"cannot ask {self._endpoint.url}: {_reason(error)}")
            return Verdict(Kind.MISCONFIGURED, text, unsent=not content.was_read)
        except httpx.TransportError as error:
            return Verdict(Kind.CUT_OFF, self._clean(f"the connection broke: {_reason(error)}"))
        finally:
            await self._connections.release(connection)
        text = f"no whole answer within {self._endpoint.timeout:g} s"
        return Verdict(Kind.TRANSIENT, text, unsent=not content.was_read)

    def _verdict(self, path: str, response: httpx.Response, answer: bytes) -> Verdict:
        verdict = classify(response.status_code, response.headers, answer, now=self._wall_clock())
        if path == STATUS_PATH and verdict.kind is Kind.ACCEPTED:
            verdict = _account_status(answer)
        return verdict._replace(message=self._clean(verdict.message))

    def _url(self, path: str) -> httpx.URL:
        if path not in self._urls:
            self._urls[path] = httpx.URL(self._endpoint.url + path, params=self._params)
        return self._urls[path]

    def _clean(self, message: str) -> str:
        """Take the token out of a message: a server, or a proxy, may have echoed it, and cut it."""
        token = self._endpoint.token
        if not token:
            return message
        head, rest = token[:_TELLING], token[_TELLING:]
        first, *others = message.split(head)
        return "[token]".join([first, *(part[_shared(part, rest) :] for part in others)])


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a request, in parts that are in memory. It `was_read` once there was a connection to send it on."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = parts
        self.was_read = False

    def __iter__(self) -> Iterator[bytes]:
        self.was_read = True
        return iter(cast(Sequence[bytes], self._parts))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.was_read = True
        for part in self._parts:
            yield bytes(part)


def _context_headers(context: Context) -> Iterator[tuple[bytes, bytes]]:
    if context.ci is not None:
        yield b"x-artifact-client-ci", context.ci.encode()
    if context.interactive is not None:
        yield b"x-artifact-client-interactive", b"%d" % context.interactive


class _CutAnswerError(Exception):
    """The connection broke in the middle of an answer that would have accepted the batch."""


async def _read_some(response: httpx.Response) -> bytes:
    """Read the answer, but not more than is worth reading; of a refusal the status is enough."""
    body = bytearray()
    stream = cast(httpx.AsyncByteStream, response.stream)  # that of an AsyncBaseTransport is no other
    try:
        async for chunk in stream:
            body += chunk
            if len(body) >= MAX_ANSWER_BYTES:
                break
    except httpx.TransportError as error:
        if response.is_success:
            raise _CutAnswerError(_reason(error)) from error
    finally:
        await stream.aclose()
    return bytes(body)


def _account_status(body: bytes) -> Verdict:
    """Read the body of `GET /v8/artifacts/status`."""
    try:
        status = json.loads(body)["status"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return Verdict(Kind.ACCEPTED, "the server's status cannot be read", 200)
    if status == "enabled":
        return Verdict(Kind.ACCEPTED, "enabled", 200)
    return Verdict(
        Kind.BLOCKED, f"the account's Remote Caching status is {str(status)[:MAX_MESSAGE_CHARACTERS]!r}", 200
    )


def _shared(left: str, right: str) -> int:
    """Return how many characters two texts begin with alike."""
    length = min(len(left), len(right))
    return next((index for index in range(length) if left[index] != right[index]), length)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
