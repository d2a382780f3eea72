"""The HTTP listener: the API's own endpoint for events, for clients that know no other; every other request is for the front."""

import hmac
import re
import socket
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import anyio
import msgspec
import structlog

from agent.acceptor import KEPT_PART
from agent.cache_use import CacheUse
from agent.delivery.pipeline import Pipeline
from agent.events import Ci, Context, Job, decode_array
from agent.http import server as http_server
from agent.http.api import EVENTS_PATH, FORWARDED_METHODS
from agent.http.body_memory import BodyMemory
from agent.http.connection import Timeouts
from agent.http.server import Exchange, Head, Response, Server
from agent.ingest.intake import LOG_INTERVAL, MAX_REASON_CHARACTERS, ClientState, Intake
from agent.ingest.job_path import split_job
from agent.ingest.request_places import RequestPlaces
from agent.ingest.sockets import BoundSocket
from agent.ingest.teams import ambiguous_team, is_for_artifacts, plain_path
from agent.peers import Peer, group_of, owner_of
from agent.queue.cursor import Outcome
from agent.rules import DEFAULT, Sender
from agent.secret import Secret
from agent.throttle import Throttle

MAX_BODY_BYTES = 4 * 1024 * 1024
# Of bodies that are not yet whole, but for small ones.
BODY_MEMORY_BYTES = 32 * 1024 * 1024
UNPACKED_TURN_BYTES = 64 * 1024
RETRY_SECONDS = 5
CI_HEADER = "x-artifact-client-ci"
INTERACTIVE_HEADER = "x-artifact-client-interactive"

# What is answered to those whose events cannot be kept for a reason that is their own; 503 for all others.
_UNKEPT = {Outcome.QUOTA: (429, "too_many_requests")}
_METHODS = "POST, OPTIONS"
_ALLOWED_HEADERS = f"Authorization, Content-Type, User-Agent, {CI_HEADER}, {INTERACTIVE_HEADER}"
_GZIP = 16 + zlib.MAX_WBITS
_bearer = re.compile(r"bearer +(\S+)", re.IGNORECASE).fullmatch
_decode_ci = msgspec.json.Decoder(Ci).decode
_decode_job = msgspec.json.Decoder(Job).decode

Forward = Callable[[Exchange, str], Awaitable[None]]


@dataclass(frozen=True)
class AccessPolicy:
    """Who may send to a destination, and for which team: what can change while the sockets stay open.

    `token` is what clients are given, without which nobody may use TCP. `api_token` is the agent's own, where other requests are
    passed on: who has that may use it here, too, and the API gets it in the place of `token`.
    """

    token: Secret | None = None
    team_id: str | None = None
    slug: str | None = None
    api_token: Secret | None = None

    def admits(self, authorization: str) -> bool:
        """Tell whether the value of this header has one of the tokens."""
        return _is_bearer(authorization, self.token) or _is_bearer(authorization, self.api_token)


def _is_bearer(authorization: str, token: Secret | None) -> bool:
    given = _bearer(authorization)
    if given is None or token is None:
        return False
    return hmac.compare_digest(given[1].encode(), token.reveal().encode())


Policies = Mapping[str, AccessPolicy]
"""One for each destination, by name, DEFAULT first."""


def _for_api(head: Head, destination: str, policies: Policies) -> Head:
    """Return a request's head as a destination's API is to get it: with no token that was given to the agent, or is for another.

    Raises RefusedError if there is no token for the API, or the request is for more than it is lent for.
    """
    own = policies[destination].api_token

    def authorization(value: bytes) -> bytes:
        given = value.decode("latin-1")
        if _is_bearer(given, own) or not any(policy.admits(given) for policy in policies.values()):
            return value
        if own is None:
            key = "api" if destination == DEFAULT else f"destinations.{destination}"
            message = f"The agent has no token for the API, and its clients' is none: set {key}.token_file"
            raise RefusedError(401, "unauthorized", message)
        _check_lent(head, policies[destination], destination)
        return b"Bearer " + own.reveal().encode()

    headers = [
        (name, authorization(value) if name.lower() == b"authorization" else value) for name, value in head.raw_headers
    ]
    return head if headers == head.raw_headers else replace(head, raw_headers=headers)


class RefusedError(Exception):
    """A request is refused; `response` is the answer to it."""

    def __init__(self, status: int, code: str, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.response = Response(status, Response.error(status, code, message).body, headers=list(headers))


class HttpListener:
    """Serves the sockets in `bound`, with at most `max_connections` over TCP, and as many on Unix sockets.

    `forward` takes what is no request with events, and the destination that it is for. `answered` counts the answers to requests
    with events, by status.
    """

    def __init__(
        self,
        bound: Sequence[BoundSocket],
        intake: Intake,
        policies: Policies,
        max_connections: int,
        forward: Forward | None = None,
        timeouts: Timeouts = http_server.TIMEOUTS,
    ) -> None:
        self.answered: Counter[int] = Counter()
        self._policies = policies
        self._forward = forward
        self._bound = bound
        self._intake = intake
        self._log = structlog.get_logger("agent.listeners")
        self._throttle = Throttle(LOG_INTERVAL)
        # Two servers, so that who is connected over TCP takes no place from processes of this machine.
        self._unix, self._tcp = (Server(max_connections, timeouts, intake.turns) for _ in range(2))
        # Of requests that are passed on: all over TCP have one owner. A process of this machine may keep no more places busy.
        self._tcp_places = RequestPlaces(max_connections)
        self._unix_places = RequestPlaces(max_connections - 2 * (max_connections // KEPT_PART))
        self._memory = BodyMemory(BODY_MEMORY_BYTES)

    def reconfigure(self, policies: Policies) -> None:
        """Treat later requests by other policies."""
        self._policies = policies

    async def serve(self) -> None:
        """Serve until `close`; then return when what had come is answered."""
        async with anyio.create_task_group() as tasks:
            for each in self._bound:
                is_unix = each.socket.family == socket.AF_UNIX
                server, handler = (self._unix, self._handle) if is_unix else (self._tcp, self._handle_with_token)
                tasks.start_soon(server.serve, each.socket, handler, each.release)

    async def close(self) -> None:
        """Take no more requests."""
        self._unix.close()
        self._tcp.close()

    async def catch_up(self) -> None:
        """Return when all events that clients had written before the call have been taken."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._unix.catch_up)
            tasks.start_soon(self._tcp.catch_up)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._unix.connections + self._tcp.connections

    async def _handle_with_token(self, exchange: Exchange) -> None:
        """Handle a request of who has the token; others are answered from its head alone, and disconnected."""
        if (holder := self._holder(exchange.head)) is not None:
            exchange.trust(holder)
            return await self._handle(exchange, holder)
        exchange.end_after_answer()
        _, head = _split(exchange.head)
        if head.method == "OPTIONS":  # browsers ask without it; the API is not asked
            is_forwarded = self._forward is not None and head.path != EVENTS_PATH
            return await exchange.answer(_preflight(FORWARDED_METHODS if is_forwarded else _METHODS))
        message = "The request is not authorized: Authorization should be `Bearer` and the agent's token"
        refusal = RefusedError(401, "unauthorized", message, ("www-authenticate", "Bearer"))
        self._log_refusal(refusal, exchange.peer)
        self.answered[refusal.response.status] += head.path == EVENTS_PATH
        return await exchange.answer(refusal.response)

    def _holder(self, head: Head) -> str | None:
        """Return the destination of which a request has a token; how long that takes says nothing of the others.

        What clients are given comes first: an API's token may be that of several destinations.
        """
        given = head.headers.get("authorization", "")
        clients = [name for name, policy in self._policies.items() if _is_bearer(given, policy.token)]
        own = [name for name, policy in self._policies.items() if _is_bearer(given, policy.api_token)]
        return next(iter([*clients, *own]), None)

    async def _handle(self, exchange: Exchange, holder: str | None = None) -> None:
        job, exchange.head = _split(exchange.head)
        head = exchange.head
        if head.path == EVENTS_PATH and head.method in {"POST", "OPTIONS"}:
            answer = _preflight() if head.method == "OPTIONS" else await self._take_events(exchange, holder, job)
            self.answered[answer.status] += head.method == "POST"
            return await exchange.answer(answer)
        if self._forward is not None:
            try:
                _check_unambiguous(head)
                destination = self._destination(exchange, holder)
                exchange.head = _for_api(head, destination, self._policies)
            except RefusedError as refusal:
                self._log_refusal(refusal, exchange.peer)
                return await exchange.answer(refusal.response)
            exchange.begin_stream()
            return await self._pass_on(self._forward, exchange, destination)
        return await exchange.answer(_no_route(head))

    async def _pass_on(self, forward: Forward, exchange: Exchange, destination: str) -> None:
        over_tcp, owner = exchange.peer.address is not None, owner_of(group_of(exchange.peer))
        places = self._tcp_places if over_tcp else self._unix_places
        place = places.take(owner, destination, exchange.has_left)
        if place is None:
            message = f"Too many requests wait for the API of {destination}, which is slow: ask again later"
            refusal = RefusedError(503, "service_unavailable", message, ("retry-after", str(RETRY_SECONDS)))
            self._log_refusal(refusal, exchange.peer)
            return await exchange.answer(refusal.response)
        try:
            return await forward(exchange, destination)
        finally:
            places.give_back(place)

    def _sender(self, exchange: Exchange) -> Sender:
        query, over_tcp = exchange.head.query, exchange.peer.address is not None
        client = ClientState(exchange.peer, socket="tcp" if over_tcp else "http", groups=exchange.groups)
        return self._intake.sender(client, None, query.get("teamId"), query.get("slug"))

    def _destination(self, exchange: Exchange, holder: str | None) -> str:
        """Return where a request leads: a token of a destination decides alone, rules about all others. Raises RefusedError."""
        if holder is not None and holder != DEFAULT:
            return holder
        found = self._intake.route(self._sender(exchange))
        if found.destination is None:
            raise RefusedError(403, "forbidden", f"The request is denied: {found.reason}")
        if found.destination not in self._policies:
            raise RefusedError(503, "service_unavailable", f"The destination {found.destination!r} is no longer there")
        return found.destination

    def _pipeline(self, destination: str) -> Pipeline:
        pipeline = self._intake.pipeline(destination)
        if pipeline is None:
            message = f"The queue of {destination!r} cannot be used now. Send the events again later"
            raise RefusedError(503, "service_unavailable", message, ("retry-after", str(RETRY_SECONDS)))
        return pipeline

    async def _weight(self, exchange: Exchange, pipeline: Pipeline, events: int, size: int) -> int:
        """Return the weight of so much of a sender's. Raises RefusedError if it is more than rules let it send now."""
        sender = self._sender(exchange)
        route = self._intake.route(sender)
        if not self._intake.is_within_limits(route, sender, events, size):
            pipeline.limit(events)
            await pipeline.submit().wait()  # no kill takes back that they are counted
            message = "The events cannot be kept: rate_limited. Send them again later"
            raise RefusedError(429, "too_many_requests", message, ("retry-after", "1"))
        return self._intake.weight(route)

    async def _take_events(self, exchange: Exchange, holder: str | None, job: bytes | None) -> Response:
        """Keep the events of a request; answer when they are durable."""
        head = exchange.head
        try:
            context = _context(head, job)
            _check_unambiguous(head)
            destination = self._destination(exchange, holder)
            _check_team(head, self._policies[destination], destination)
            self._pipeline(destination)
            is_packed = _is_packed(head)
            body = await exchange.body(MAX_BODY_BYTES, self._memory)
            chunks, use = _decode(await _unpack(body, exchange) if is_packed else body)
            pipeline = self._pipeline(destination)  # it may have come and gone while the body came
            weight = 1
            if holder in {None, DEFAULT}:
                weight = await self._weight(exchange, pipeline, sum(chunk.count(b"\n") for chunk in chunks), len(body))
        except RefusedError as refusal:
            self._log_refusal(refusal, exchange.peer)
            return refusal.response
        refused = await self._intake.submit_all_or_none(pipeline, chunks, use, context, exchange.peer.uid, weight)
        if refused is None:
            return Response(200, b"{}")
        status, code = _UNKEPT.get(refused, (503, "service_unavailable"))
        message = f"The events cannot be kept: {refused}. Send them again later"
        return RefusedError(status, code, message, ("retry-after", str(RETRY_SECONDS))).response

    def _log_refusal(self, refusal: RefusedError, peer: Peer) -> None:
        """Log once in a while what is refused: build tools do not tell their users."""
        status = refusal.response.status
        held_back = self._throttle.allow("request_refused", anyio.current_time(), status=status)
        if held_back is not None:
            reason = str(refusal)[:MAX_REASON_CHARACTERS]
            self._log.warning("request_refused", status=status, reason=reason, **peer.facts, suppressed=held_back)


def _check_unambiguous(head: Head) -> None:
    """Raise RefusedError for what the API might read as events, or as another team, where the agent does not."""
    path, _, query = head.target.decode("ascii").partition("?")
    reason = "the request's target should have no #" if "#" in path + query else ambiguous_team(query)
    if head.path != EVENTS_PATH and plain_path(path) == EVENTS_PATH:
        reason = f"events go to {EVENTS_PATH} in this spelling"
    if reason is not None:
        raise RefusedError(400, "bad_request", f"The request can be misread: {reason}")


def _check_lent(head: Head, policy: AccessPolicy, destination: str) -> None:
    """Raise RefusedError unless a request is for what clients are lent the API's token for: artifacts of its team."""
    path = head.target.decode("ascii").partition("?")[0]
    if not is_for_artifacts(path):
        reason = (
            "The agent's token stands for the API's in requests for /v8/artifacts alone: use one of your own for others"
        )
        raise RefusedError(403, "forbidden", reason)
    section = "api" if destination == DEFAULT else f"destinations.{destination}"
    for name, ours, key in (("teamId", policy.team_id, "team_id"), ("slug", policy.slug, "slug")):
        theirs = head.query.get(name)
        if theirs and theirs != ours and (policy.team_id or policy.slug):
            what = "is set to another one" if ours else "is not set"
            reason = f"The agent's token is not for the {name} of the request: {section}.{key} {what}"
            raise RefusedError(400, "bad_request", reason)


def _check_team(head: Head, policy: AccessPolicy, destination: str) -> None:
    section = "api" if destination == DEFAULT else f"destinations.{destination}"
    for name, ours, key in (("teamId", policy.team_id, "team_id"), ("slug", policy.slug, "slug")):
        theirs = head.query.get(name)
        if ours and theirs and theirs != ours:
            which = f"{section}.{key} says to which"
            reason = f"The agent delivers to another team than the {name} of the request: {which}"
            raise RefusedError(400, "bad_request", reason)


def _is_packed(head: Head) -> bool:
    """Tell whether the body is gzip's. Raises RefusedError for other encodings."""
    encoding = head.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        reason = f"Content-Encoding is {encoding!r}: the agent takes gzip, or none"
        raise RefusedError(415, "unsupported_media_type", reason, ("accept-encoding", "gzip"))
    return encoding.endswith("gzip")


async def _unpack(packed: bytes, exchange: Exchange) -> bytes:
    """Unpack a body, which may have MAX_BODY_BYTES then, too, a piece in a turn. Raises RefusedError."""
    unpacked, decompressor = bytearray(), zlib.decompressobj(_GZIP)
    try:
        while not decompressor.eof and (packed or unpacked) and len(unpacked) <= MAX_BODY_BYTES:
            piece = decompressor.decompress(packed, UNPACKED_TURN_BYTES)
            packed = decompressor.unconsumed_tail
            unpacked += piece
            if not piece and not packed:
                break
            await exchange.take_turn()
    except zlib.error as error:
        raise RefusedError(400, "bad_request", f"The body is not gzip: {error}") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise RefusedError(413, "payload_too_large", f"an unpacked body may have {MAX_BODY_BYTES} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise RefusedError(400, "bad_request", "The body is not gzip: it ends too early, or goes on behind its end")
    return bytes(unpacked)


def _decode(body: bytes) -> tuple[list[bytes], CacheUse]:
    try:
        return decode_array(body)
    except ValueError as error:
        where = "" if "`$[" in str(error) else "Expected an array of events: "
        raise RefusedError(400, "bad_request", f"{where}{error}") from error


def _split(head: Head) -> tuple[bytes | None, Head]:
    """Return the job that the address of a request names, and its head without that."""
    job, path, target = split_job(head.path, head.target)
    return job, head if job is None else replace(head, path=path, target=target)


def _context(head: Head, job: bytes | None) -> Context:
    ci, interactive = head.headers.get(CI_HEADER), head.headers.get(INTERACTIVE_HEADER)
    try:
        found = _decode_ci(msgspec.json.encode(ci)) if ci else None
    except ValueError as error:
        raise RefusedError(400, "bad_request", f"{CI_HEADER}: {error}") from error
    if interactive not in {None, "0", "1"}:
        raise RefusedError(400, "bad_request", f"{INTERACTIVE_HEADER}: Expected 0 or 1")
    try:
        label = _decode_job(msgspec.json.encode(job.decode("latin-1"))) if job else None
    except ValueError as error:
        raise RefusedError(400, "bad_request", f"The job in the request's path: {error}") from error
    return Context(found, None if interactive is None else 1 if interactive == "1" else 0, label)


def _preflight(methods: str = _METHODS) -> Response:
    allowed = [("access-control-allow-methods", methods), ("access-control-allow-headers", _ALLOWED_HEADERS)]
    return Response(200, b"{}", headers=[("allow", methods), *allowed])


def _no_route(head: Head) -> Response:
    if head.path == EVENTS_PATH:
        return RefusedError(405, "method_not_allowed", f"{EVENTS_PATH} takes {_METHODS}", ("allow", _METHODS)).response
    if head.method == "OPTIONS" and head.path == "*":
        return _preflight()
    return Response.error(
        404, "not_found", f"There is no {head.path}, only {EVENTS_PATH}: front.enabled would pass it on"
    )
