"""The engine of production: NATS JetStream, by nats-py. Its exceptions become `EngineError`s here, and go no further.

A connection that breaks is given up, and the next call makes another one to any of the servers: nothing of an old connection is
sent again, nothing waits for a reconnection, and no subscription survives one deaf.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

from agent.fleet import names
from agent.fleet.engine import (
    ConflictError,
    EngineError,
    Entry,
    Message,
    MessageTooLargeError,
    NotPermittedError,
    Reader,
    StreamState,
)
from agent.fleet.permissions import inbox_of_relays

T = TypeVar("T")

CONNECT_SECONDS = 2.0
REQUEST_SECONDS = 5.0
PING_SECONDS = 10
DEFAULT_MAX_PAYLOAD: Final = 1024 * 1024
READER_IDLE_SECONDS = 60.0
PULL_MARGIN_SECONDS = 1.0  # what a fetch may take longer than it was asked to wait

_WRONG_LAST_SEQUENCE = (10071, 10164)
_NOT_SET_UP = (10014, 10059)  # no such consumer, no such stream
_RUN_INIT = "run `artifacts-agent fleet init`"
_TOO_LARGE = (10054,)
_NOT_ALLOWED = (nats.errors.AuthorizationError, nats.errors.InvalidUserCredentialsError)
_AUTHENTICATION = ("authorization", "authentication", "permissions violation", "revoked")


@dataclass(frozen=True)
class Connection:
    """How to connect: the servers' URLs (nats:// or tls://), a file of credentials if they want some, where to be answered.

    By `inbox` nobody but who may subscribe there can read along; `name` is what the server's own lists show. `timeout`, in
    seconds, is for one call.
    """

    servers: tuple[str, ...]
    credentials: Path | None = None
    inbox: str = "_INBOX"
    name: str = "artifacts-agent"
    timeout: float = REQUEST_SECONDS


class _Client(Client):
    """nats-py's, which takes any message with a header `Status` for the server's own word: whoever publishes could write one.

    What a consumer delivers has a reply of JetStream's, by which it is acknowledged; the server's own words have none.
    """

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        if headers is not None and reply.startswith(b"$JS.ACK."):
            headers.pop(api.Header.STATUS, None)
        built: Msg = super()._build_message(sid, subject, reply, data, headers)
        return built


class _Link:
    """One connection of nats-py, as long as it lives. `broken` is done when it does no more."""

    def __init__(self) -> None:
        self.client = _Client()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error = "the connection is closed"
        self.denials = 0
        self.denied = ""  # what the server has said last that it does not permit
        self.pulls: dict[tuple[str, str], JetStreamContext.PullSubscription] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def open(self, url: str, connection: Connection, credentials: RawCredentials | None) -> None:
        await self.client.connect(
            [url],
            name=connection.name,
            inbox_prefix=connection.inbox,
            user_credentials=credentials,
            tls=ssl.create_default_context() if url.startswith("tls://") else None,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # without it, and with no reconnecting, nats-py tries for ever
            reconnect_time_wait=0,
            connect_timeout=CONNECT_SECONDS,  # type: ignore[arg-type]  # it takes fractions
            ping_interval=PING_SECONDS,
            pending_size=-1,  # nothing is kept for later while there is no connection
            error_cb=self._note_error,
            closed_cb=self._note_closed,
        )
        self.stream = self.client.jetstream(timeout=connection.timeout)

    @property
    def is_open(self) -> bool:
        return self.client.is_connected and not self.broken.done()

    async def _note_error(self, error: Exception) -> None:
        text = _text(error)
        self.error = text
        if "permissions violation" in text:
            subject = text.partition('"')[2].rpartition('"')[0]
            self.denials, self.denied = self.denials + 1, text
            for waiting in self._waiting.pop(subject, ()):
                if not waiting.done():
                    waiting.set_result(None)

    async def _note_closed(self) -> None:
        if not self.broken.done():
            self.broken.set_result(None)

    async def run(self, call: Coroutine[Any, Any, T], subject: str = "") -> T:
        """Return what a call returns. Raises EngineError when the connection breaks, or the server denies the subject."""
        subject = subject.lower()  # as nats-py has what the server says
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(subject, []).append(denied)
        task = asyncio.ensure_future(call)
        try:
            first: set[asyncio.Future[Any]] = {task, self.broken, denied}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if denied.done():
                raise NotPermittedError(self.denied)
            raise EngineError(self.error)
        finally:
            task.cancel()
            waiting = self._waiting.get(subject, [])
            if denied in waiting:
                waiting.remove(denied)
            if not waiting:
                self._waiting.pop(subject, None)

    async def close(self) -> None:
        await self._note_closed()
        await self.client.close()


class NatsEngine:
    """See `agent.fleet.engine.Engine`. It connects when it is first used."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers = itertools.cycle(SystemRandom().sample(connection.servers, len(connection.servers)))
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None
        self._closed = False
        self._max_payload = DEFAULT_MAX_PAYLOAD

    @property
    def max_payload(self) -> int:
        """See `Engine`: what the server has said last."""
        return self._max_payload

    # Connecting

    async def _linked(self) -> _Link:
        if self._link is not None and self._link.is_open:
            return self._link
        async with self._connecting:
            if self._link is not None and self._link.is_open:
                return self._link
            if self._closed:
                raise EngineError("closed")
            await self._give_up()
            self._link = await self._connect()
            self._max_payload = self._link.client.max_payload
            return self._link

    async def _connect(self) -> _Link:
        """Try each server once, beginning with the next one. Raises EngineError."""
        error: EngineError = EngineError("no server is configured")
        file = self._connection.credentials
        credentials = _read_credentials(file) if file is not None else None  # each time: it may have been renewed
        for _ in self._connection.servers:
            url, link = next(self._servers), _Link()
            try:
                await asyncio.wait_for(link.open(url, self._connection, credentials), 2 * CONNECT_SECONDS)
            except (TimeoutError, nats.errors.Error, OSError, ValueError) as failure:
                said = _text(failure)
                if isinstance(failure, nats.errors.NoServersError | asyncio.TimeoutError):
                    said = link.error  # what it has tried says more
                await _close(link)
                kind = NotPermittedError if _is_denied(failure, said) else EngineError
                error = kind(f"{_without_password(url)}: {said}")
            else:
                return link
        raise error

    async def _give_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await _close(link)

    async def _call(self, link: _Link, call: Coroutine[Any, Any, T], subject: str = "") -> T:
        """Return what a call to the server returns. Raises EngineError."""
        denials = link.denials
        try:
            return await link.run(call, subject)
        except TimeoutError:  # nats-py's own timeouts are these, too
            if link.denials != denials:  # the server says so, but not to which call
                raise NotPermittedError(link.denied) from None
            await self._check(link)
            raise EngineError(f"no answer within {self._connection.timeout:g} s") from None
        except nats.errors.NoRespondersError:
            raise EngineError(
                f"nobody answers: it is starting, or electing, or there is no fleet yet: {_RUN_INIT}"
            ) from None
        except nats.errors.MaxPayloadError:
            raise MessageTooLargeError(f"the server takes {self._max_payload} bytes in a message") from None
        except js_errors.APIError as error:
            raise _api_error(error) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise EngineError(_text(error)) from None

    async def _check(self, link: _Link) -> None:
        """Give a connection up that does not answer a ping."""
        try:
            await link.run(link.client.flush(timeout=1))
        except (TimeoutError, nats.errors.Error, EngineError):
            if self._link is link:
                await self._give_up()

    async def version(self) -> str:
        """Return the version of the server that it is connected to, such as 2.15.1. Raises EngineError."""
        found = (await self._linked()).client.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    async def ask(self, call: Callable[[JetStreamContext], Coroutine[Any, Any, T]], subject: str = "") -> T | None:
        """Return what a call of JetStream's own interface returns; None if there is no such thing. Raises EngineError.

        With the `subject` that it asks on, a denial is known at once; else when the call has waited in vain.
        """
        link = await self._linked()

        async def answered() -> T | None:
            try:
                return await call(link.stream)
            except js_errors.NotFoundError:
                return None

        return await self._call(link, answered(), subject)

    # Publishing

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """See `Engine`."""
        link = await self._linked()
        # The headers as nats-py writes them: nats-py itself measures the body alone, and the server closes the connection.
        size = len(body) + 12 + sum([len(name) + len(value.encode()) + 4 for name, value in headers.items()])
        if size > self._max_payload:
            raise MessageTooLargeError(f"{size} bytes; the server takes {self._max_payload} in a message")
        call = link.stream.publish(subject, body, timeout=self._connection.timeout, headers=dict(headers) or None)
        ack = await self._call(link, call, subject)
        if not ack.seq:
            raise EngineError("the stream has not said where it keeps the message")
        return not ack.duplicate

    # Taking

    async def fetch(self, stream: str, consumer: str, *, most: int, seconds: float) -> Sequence[Message]:
        """See `Engine`."""
        link = await self._linked()
        pull = link.pulls.get((stream, consumer))
        if pull is None:
            pull = await self._call(link, link.stream.pull_subscribe_bind(consumer, stream=stream))
            link.pulls[stream, consumer] = pull
        return [_from_consumer(each) for each in await self.pull(link, pull, most, seconds)]

    async def pull(
        self, link: _Link, pull: JetStreamContext.PullSubscription, most: int, seconds: float
    ) -> Sequence[Msg]:
        """Return what a consumer delivers next, as `fetch` does. Raises EngineError."""
        denials = link.denials
        try:
            call = asyncio.wait_for(pull.fetch(most, timeout=seconds), seconds + PULL_MARGIN_SECONDS)
            return await link.run(call)
        except TimeoutError:  # nothing came, or the server is gone, which the next ping will show
            if link.denials != denials:
                raise NotPermittedError(link.denied) from None
            return []
        except js_errors.APIError as error:
            raise _api_error(error) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise EngineError(_text(error)) from None

    async def ack(self, message: Message) -> None:
        """See `Engine`."""
        await self._answer(message, Msg.Ack.Ack)

    async def extend(self, message: Message) -> None:
        """See `Engine`."""
        await self._answer(message, Msg.Ack.Progress)

    async def release(self, message: Message, seconds: float = 0.0) -> None:
        """See `Engine`."""
        options = b" " + json.dumps({"delay": int(seconds * 1e9)}).encode() if seconds > 0 else b""
        await self._answer(message, Msg.Ack.Nak + options)

    async def _answer(self, message: Message, text: bytes) -> None:
        link = await self._linked()
        await self._call(link, link.client.publish(message.reply, text))

    # Reading

    def reader(self, stream: str, subject: str, after: int) -> Reader:
        """See `Engine`."""
        return _Reader(self, stream, subject, after)

    async def open_reader(
        self, stream: str, subject: str, after: int
    ) -> tuple[_Link, JetStreamContext.PullSubscription]:
        """Return a new consumer of what comes after a number, and the connection that it lives on."""
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=READER_IDLE_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        link = await self._linked()
        return link, await self._call(link, link.stream.pull_subscribe(subject, stream=stream, config=config))

    async def next_stored(self, stream: str, subject: str, after: int) -> Message | None:
        """See `Engine`."""
        link = await self._linked()
        return await self._stored(link, link.stream.get_msg(stream, after + 1, subject, direct=True, next=True))

    async def last_seq(self, stream: str, subject: str) -> int:
        """See `Engine`: asks the stream's leader, because others may be behind."""
        link = await self._linked()
        found = await self._stored(link, link.stream.get_last_msg(stream, subject))
        return found.seq if found is not None else 0

    async def stream_state(self, stream: str) -> StreamState:
        """See `Engine`."""
        link = await self._linked()
        state = (await self._call(link, link.stream.stream_info(stream))).state
        return StreamState(state.messages, state.bytes, state.first_seq, state.last_seq)

    async def _stored(self, link: _Link, call: Coroutine[Any, Any, api.RawStreamMsg]) -> Message | None:
        try:
            found = await self._call(link, call)
        except _NotFoundError:
            return None
        return Message(found.subject or "", found.headers or {}, found.data or b"", found.seq or 0)

    # Keys

    async def get(self, key: str) -> Entry | None:
        """See `Engine`: asks the leader."""
        link = await self._linked()
        found = await self._stored(link, link.stream.get_last_msg(_KEYS, _subject_of(key)))
        return None if found is None or "KV-Operation" in found.headers else Entry(found.body, found.seq)

    async def put(self, key: str, value: bytes, revision: int = 0) -> int:
        """See `Engine`."""
        link = await self._linked()
        bucket = await self._bucket(link)
        call = bucket.update(key, value, last=revision) if revision else bucket.create(key, value)
        return await self._keyed(link, call)

    async def delete(self, key: str, revision: int) -> None:
        """See `Engine`."""
        link = await self._linked()
        bucket = await self._bucket(link)
        await self._keyed(link, bucket.delete(key, last=revision))

    async def _bucket(self, link: _Link) -> Any:  # noqa: ANN401 - its type is not exported
        return await self._call(link, link.stream.key_value(names.STATE))

    async def _keyed(self, link: _Link, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await self._call(link, call)
        except _WrongLastSequenceError:
            raise ConflictError("the key was changed by somebody else") from None

    # Objects

    async def load(self, name: str) -> bytes | None:
        """See `Engine`."""
        link = await self._linked()

        async def read() -> bytes | None:
            store = await link.stream.object_store(names.SNAPSHOTS)
            try:
                return (await store.get(name)).data
            except (js_errors.ObjectNotFoundError, js_errors.NotFoundError, js_errors.ObjectDeletedError):
                return None
            except nats.errors.Error as error:
                if "digest" in str(error).lower():  # it is damaged
                    return None
                raise

        return await self._call(link, read())

    async def save(self, name: str, data: bytes) -> None:
        """See `Engine`."""
        link = await self._linked()

        async def write() -> None:
            store = await link.stream.object_store(names.SNAPSHOTS)
            await store.put(name, data)

        await self._call(link, write())

    async def aclose(self) -> None:
        """See `Engine`."""
        self._closed = True
        await self._give_up()


def engine_for_relays(servers: Sequence[str], credentials: Path | None, team: str) -> NatsEngine:
    """Return the engine of a team's relays, and of those who look at the team."""
    return NatsEngine(Connection(tuple(servers), credentials, inbox_of_relays(team), "artifacts-agent relay"))


class _Reader:
    """See `agent.fleet.engine.Reader`: a consumer that is made anew, from where it was, whenever something is wrong with it."""

    def __init__(self, engine: NatsEngine, stream: str, subject: str, after: int) -> None:
        self._engine = engine
        self._stream = stream
        self._subject = subject
        self._after = after
        self._consumer: tuple[_Link, JetStreamContext.PullSubscription] | None = None
        self._delivered = 0

    async def read(self, most: int, seconds: float) -> Sequence[Message]:
        """See `Reader`."""
        if self._consumer is None or not self._consumer[0].is_open:
            self._consumer = await self._engine.open_reader(self._stream, self._subject, self._after)
            self._delivered = 0
        try:
            found = await self._engine.pull(*self._consumer, most, seconds)
        except EngineError:
            await self.aclose()
            raise
        messages = []
        for each in found:
            if each.metadata.sequence.consumer != self._delivered + 1:  # one was lost on the way here
                await self.aclose()
                break
            self._delivered += 1
            messages.append(_from_consumer(each))
        if messages:
            self._after = messages[-1].seq
        return messages

    async def aclose(self) -> None:
        """See `Reader`: the server forgets the consumer by itself."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None and consumer[0].is_open:
            with contextlib.suppress(nats.errors.Error):
                await consumer[1].unsubscribe()


_KEYS = f"KV_{names.STATE}"


class _NotFoundError(EngineError):
    """There is no such message."""


class _WrongLastSequenceError(EngineError):
    """A subject's last message is another one."""


def _subject_of(key: str) -> str:
    return f"$KV.{names.STATE}.{key}"


def _from_consumer(message: Msg) -> Message:
    found = message.metadata
    return Message(
        message.subject,
        message.headers or {},
        message.data,
        found.sequence.stream,
        found.num_delivered or 1,
        message.reply,
        found.timestamp.timestamp(),
    )


def _api_error(error: js_errors.APIError) -> EngineError:
    text = error.description or _text(error)
    if isinstance(error, js_errors.KeyWrongLastSequenceError) or error.err_code in _WRONG_LAST_SEQUENCE:
        return _WrongLastSequenceError(text)
    if isinstance(error, js_errors.ServiceUnavailableError) and error.description is None:
        return EngineError("JetStream does not answer: it is starting, electing a leader, or not set up")
    if error.err_code in _TOO_LARGE:
        return MessageTooLargeError(text)
    if isinstance(error, js_errors.BucketNotFoundError):
        return EngineError(f"there is no fleet yet: {_RUN_INIT}")
    if error.err_code in _NOT_SET_UP:
        return EngineError(f"{text}: {_RUN_INIT}")
    if isinstance(error, js_errors.NotFoundError):
        return _NotFoundError(text)
    return EngineError(text)


def _text(error: BaseException) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__


def _is_denied(error: BaseException, said: str) -> bool:
    return isinstance(error, _NOT_ALLOWED) or any(word in said.lower() for word in _AUTHENTICATION)


def _read_credentials(file: Path) -> RawCredentials:
    """Return what is in a file of credentials. Raises NotPermittedError, which says what is wrong with it."""
    try:
        text = file.read_text(encoding="ascii")
    except OSError as error:
        raise NotPermittedError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not all(f"BEGIN {part}" in text and f"END {part}" in text for part in ("NATS USER JWT", "USER NKEY SEED")):
        raise NotPermittedError(f"{file}: no credentials of NATS: a file as `nsc generate creds` makes it is wanted")
    return RawCredentials(text)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def _close(link: _Link) -> None:
    """Close a connection, whatever state it is in: it is not used again."""
    with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
        await link.close()
