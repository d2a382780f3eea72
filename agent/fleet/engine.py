"""The seam between the fleet and the engine that carries it: streams, consumers and keys with compare-and-set.

`agent.fleet.nats_engine` is the real implementation, `tests.support.memory_engine` the one in memory.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class EngineError(Exception):
    """What the engine could not do now: it is down, electing, full, or did not answer. The text is fit for people."""


class NotPermittedError(EngineError):
    """The credentials are not accepted, or do not allow this."""


class MessageTooLargeError(EngineError):
    """More than the server takes in one message, headers included."""


class StreamFullError(EngineError):
    """The stream holds as much as it may: it takes nothing before somebody makes room."""


class ConflictError(EngineError):
    """The key is not, or no longer, as it was read."""


class Message(NamedTuple):
    """A message of a stream: its number there, and, from a consumer, how often it was delivered and what acknowledges it.

    `kept_at` is when the stream took it, in seconds since the epoch by the server's clock; 0 where that is not asked for.
    """

    subject: str
    headers: Mapping[str, str]
    body: bytes
    seq: int
    deliveries: int = 1
    reply: str = ""
    kept_at: float = 0.0


class Entry(NamedTuple):
    """A key's value, and the revision that replacing it has to name."""

    value: bytes
    revision: int


class StreamState(NamedTuple):
    """How much a stream holds; `max_bytes` is the most that it may, 0 without a limit.

    `created` tells it from one that had its name before, and counted from 1, too.
    """

    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    created: str
    max_bytes: int = 0


class ConsumerState(NamedTuple):
    """The messages of a durable consumer: `waiting` were never given out, `held` were, and are not acknowledged.

    What somebody held who ended counts as held until somebody else takes it.
    `asking` is how many calls of `fetch` wait for one now. `taken_at` is when one was given out last, in seconds since the epoch
    by the server's clock; None is never.
    """

    waiting: int
    held: int
    asking: int
    taken_at: float | None


class Reader(Protocol):
    """Reads a stream that keeps its messages in order, from a place on, for as long as it is wanted."""

    async def read(self, most: int, seconds: float) -> Sequence[Message]:
        """Return the next messages, at most so many; none if there are none within `seconds`. Raises EngineError: try again."""

    async def aclose(self) -> None:
        """Let go of what the server holds for it."""


class Engine(Protocol):
    """A connection, made when it is first needed and again after it broke. All calls take a bounded time and raise EngineError.

    A call that raises may have happened all the same.
    """

    @property
    def max_payload(self) -> int:
        """How many bytes a message may have, headers included, as far as is known."""

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Return when the stream has the message durably; False if it had one of this `Nats-Msg-Id` before.

        Raises MessageTooLargeError, StreamFullError, NotPermittedError, EngineError. What has raised is not sent later.
        """

    async def fetch(self, stream: str, consumer: str, *, most: int, seconds: float) -> Sequence[Message]:
        """Take the next messages of a durable consumer, at most so many; none if there are none within `seconds`."""

    async def consumer_state(self, stream: str, consumer: str) -> ConsumerState:
        """Return what a durable consumer has to give out, and to whom."""

    async def ack(self, message: Message) -> None:
        """Let the work queue forget a message. It may be lost: then the message comes again."""

    async def extend(self, message: Message) -> None:
        """Ask for more time before the message comes again to somebody else."""

    async def release(self, message: Message, seconds: float = 0.0) -> None:
        """Let the message come again, to anybody, after `seconds`."""

    def reader(self, stream: str, subject: str, after: int) -> Reader:
        """Return a reader of what comes after the number `after` in a stream on a subject."""

    async def next_stored(self, stream: str, subject: str, after: int) -> Message | None:
        """Return the first message behind the number `after`, without taking it; None if there is none."""

    async def last_seq(self, stream: str, subject: str) -> int:
        """Return the number of the last message on a subject; 0 if there is none."""

    async def stream_state(self, stream: str) -> StreamState:
        """Return how much a stream holds."""

    async def get(self, key: str) -> Entry | None:
        """Return a key of the bucket STATE; None if it is not there. Raises EngineError."""

    async def put(self, key: str, value: bytes, revision: int = 0) -> int:
        """Set a key that is at `revision`, or is not there for 0; return the new revision. Raises ConflictError, EngineError."""

    async def delete(self, key: str, revision: int) -> None:
        """Remove a key that is at `revision`. Raises ConflictError, EngineError."""

    async def load(self, name: str) -> bytes | None:
        """Return an object of the store SNAPSHOTS; None if there is none, or a damaged one. Raises EngineError."""

    async def save(self, name: str, data: bytes) -> None:
        """Replace an object of the store SNAPSHOTS. Raises EngineError."""

    async def aclose(self) -> None:
        """Close the connection."""
