"""The engine of production: NATS JetStream, by nats-py. Its exceptions become `EngineError`s, and go no further.

A connection that breaks is given up, and the next call makes another one to any of the servers: nothing of an old connection is
sent again, nothing waits for a reconnection, and no subscription survives one deaf.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

from agent.fleet import names
from agent.fleet.engine import (
    ConflictError,
    ConsumerState,
    EngineError,
    Entry,
    Message,
    MessageTooLargeError,
    Reader,
    StreamState,
)
from agent.fleet.nats_connection import Connection, Dialer, Link
from agent.fleet.nats_errors import NotFoundError, WrongLastSequenceError
from agent.fleet.nats_reader import NatsReader, message_of
from agent.fleet.permissions import inbox_of_relays

T = TypeVar("T")

DEFAULT_MAX_PAYLOAD: Final = 1024 * 1024

_KEYS: Final = f"KV_{names.STATE}"
_READ_SECONDS: Final = (1, 2, 4, 8, 16, 32)
"""An object is read again after so long: nats-py waits for ever for the parts of one that was replaced meanwhile."""

_NO_OBJECT: Final = (
    js_errors.ObjectNotFoundError,
    js_errors.NotFoundError,
    js_errors.ObjectDeletedError,
    js_errors.BadObjectMetaError,
    js_errors.LinkIsABucketError,
)


class NatsEngine:
    """See `agent.fleet.engine.Engine`. It connects when it is first used."""

    def __init__(self, connection: Connection) -> None:
        self._dialer = Dialer(connection)
        self._timeout = connection.timeout
        self._max_payload = DEFAULT_MAX_PAYLOAD

    @property
    def max_payload(self) -> int:
        """See `Engine`: what the server has said last."""
        return self._max_payload

    async def _linked(self) -> Link:
        link = await self._dialer.link()
        self._max_payload = link.client.max_payload
        return link

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

        return await link.call(answered(), subject)

    # Publishing

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """See `Engine`."""
        link = await self._linked()
        # The headers as nats-py writes them: nats-py itself measures the body alone, and the server closes the connection.
        size = len(body) + 12 + sum([len(name) + len(value.encode()) + 4 for name, value in headers.items()])
        if size > self._max_payload:
            raise MessageTooLargeError(f"{size} bytes; the server takes {self._max_payload} in a message")
        call = link.stream.publish(subject, body, timeout=self._timeout, headers=dict(headers) or None)
        ack = await link.call(call, subject)
        if not ack.seq:
            raise EngineError("the stream has not said where it keeps the message")
        return not ack.duplicate

    # Taking

    async def fetch(self, stream: str, consumer: str, *, most: int, seconds: float) -> Sequence[Message]:
        """See `Engine`."""
        link = await self._linked()
        pull = link.pulls.get((stream, consumer))
        if pull is None:
            pull = await link.call(link.stream.pull_subscribe_bind(consumer, stream=stream))
            link.pulls[stream, consumer] = pull
        return [message_of(each) for each in await link.pull(pull, most, seconds)]

    async def consumer_state(self, stream: str, consumer: str) -> ConsumerState:
        """See `Engine`."""
        link = await self._linked()
        subject = f"$JS.API.CONSUMER.INFO.{stream}.{consumer}"
        found = await link.call(link.stream.consumer_info(stream, consumer), subject)
        taken_at = found.delivered.last_active if found.delivered is not None else None
        return ConsumerState(
            found.num_pending or 0,
            found.num_ack_pending or 0,
            found.num_waiting or 0,
            taken_at.timestamp() if taken_at is not None else None,
        )

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
        await link.tell(message.reply, text)

    # Reading

    def reader(self, stream: str, subject: str, after: int) -> Reader:
        """See `Engine`."""
        return NatsReader(self._dialer, stream, subject, after)

    async def next_stored(self, stream: str, subject: str, after: int) -> Message | None:
        """See `Engine`."""
        link = await self._linked()
        return await _stored(link, link.stream.get_msg(stream, after + 1, subject, direct=True, next=True))

    async def last_seq(self, stream: str, subject: str) -> int:
        """See `Engine`: asks the stream's leader, because others may be behind."""
        link = await self._linked()
        found = await _stored(link, link.stream.get_last_msg(stream, subject))
        return found.seq if found is not None else 0

    async def stream_state(self, stream: str) -> StreamState:
        """See `Engine`."""
        link = await self._linked()
        found = await link.call(link.stream.stream_info(stream))
        state, created = found.state, found.created.isoformat() if found.created is not None else ""
        limit = max(found.config.max_bytes or 0, 0)
        return StreamState(state.messages, state.bytes, state.first_seq, state.last_seq, created, limit)

    # Keys

    async def get(self, key: str) -> Entry | None:
        """See `Engine`: asks the leader."""
        link = await self._linked()
        found = await _stored(link, link.stream.get_last_msg(_KEYS, f"$KV.{names.STATE}.{key}"))
        return None if found is None or "KV-Operation" in found.headers else Entry(found.body, found.seq)

    async def put(self, key: str, value: bytes, revision: int = 0) -> int:
        """See `Engine`."""
        link = await self._linked()
        bucket = await _bucket(link)
        call = bucket.update(key, value, last=revision) if revision else bucket.create(key, value)
        return await _keyed(link, call)

    async def delete(self, key: str, revision: int) -> None:
        """See `Engine`."""
        link = await self._linked()
        bucket = await _bucket(link)
        await _keyed(link, bucket.delete(key, last=revision))

    # Objects

    async def load(self, name: str) -> bytes | None:
        """See `Engine`."""
        link = await self._linked()

        async def read() -> bytes | None:
            store = await link.stream.object_store(names.SNAPSHOTS)
            try:
                for seconds in _READ_SECONDS:
                    await store.get_info(name)  # there is one, and the server answers
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            return (await store.get(name)).data
                raise TimeoutError
            except _NO_OBJECT:
                return None
            except nats.errors.Error as error:
                if "digest" in str(error).lower():  # it is damaged
                    return None
                raise

        return await link.call(read())

    async def save(self, name: str, data: bytes) -> None:
        """See `Engine`."""
        link = await self._linked()

        async def write() -> None:
            store = await link.stream.object_store(names.SNAPSHOTS)
            try:
                await store.put(name, data)
            except js_errors.BadObjectMetaError:  # nats-py replaces none that it cannot read
                meta = f"$O.{names.SNAPSHOTS}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
                await link.stream.purge_stream(f"OBJ_{names.SNAPSHOTS}", subject=meta)
                await store.put(name, data)

        await link.call(write())

    async def aclose(self) -> None:
        """See `Engine`."""
        await self._dialer.aclose()


def engine_for_relays(servers: Sequence[str], credentials: Path | None, team: str) -> NatsEngine:
    """Return the engine of a team's relays, and of those who look at the team."""
    return NatsEngine(Connection(tuple(servers), credentials, inbox_of_relays(team), "artifacts-agent relay"))


async def _stored(link: Link, call: Coroutine[Any, Any, api.RawStreamMsg]) -> Message | None:
    try:
        found = await link.call(call)
    except NotFoundError:
        return None
    return Message(found.subject or "", found.headers or {}, found.data or b"", found.seq or 0)


async def _bucket(link: Link) -> Any:  # noqa: ANN401 - its type is not exported
    return await link.call(link.stream.key_value(names.STATE))


async def _keyed(link: Link, call: Coroutine[Any, Any, T]) -> T:
    try:
        return await link.call(call)
    except WrongLastSequenceError:
        raise ConflictError("the key was changed by somebody else") from None
