"""Intake: validates lines, queues the events in them, and says what became of them, whichever socket they came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import msgspec
import structlog

from agent.delivery.pipeline import Pipeline
from agent.events import MAX_LINE_BYTES, Block, Context, Reject, Session, decode_lines, decode_messages
from agent.ingest.framing import Lines
from agent.peers import Peer, Turns
from agent.queue.committer import CommitGroup
from agent.queue.cursor import Outcome
from agent.throttle import Throttle

NAMED_REJECTS = 5
MAX_REASON_CHARACTERS = 200
LOG_INTERVAL = 10.0


@dataclass
class ClientState:
    """What one client has set, and what became of the lines that it sent; `errors` names the first few rejects.

    A client that is not `answerable` may ask for acks, but nobody waits with them.
    """

    peer: Peer
    answerable: bool = True
    session: Session = field(default_factory=Session)
    lines: int = 0
    durable: int = 0
    rejected: int = 0
    dropped: int = 0
    errors: list[Reject] = field(default_factory=list)
    _acked: tuple[int, int, int] = (0, 0, 0)

    @property
    def wants_acks(self) -> bool:
        """Whether the client has asked for durable acks, and can be sent them."""
        return self.answerable and self.session.durable_acks

    def next_ack(self) -> bytes | None:
        """Return the cumulative counts as a line for the client; None if it asked for none or they have not changed."""
        counts = (self.durable, self.rejected, self.dropped)
        if not self.wants_acks or counts == self._acked:
            return None
        ack: dict[str, object] = {"durable": self.durable, "rejected": self.rejected}
        if self.dropped:
            ack["dropped"] = self.dropped
        if self.rejected != self._acked[1] and self.errors:
            ack["errors"] = [{"line": line, "reason": reason} for line, reason in self.errors]
        self._acked = counts
        return msgspec.json.encode(ack) + b"\n"


class Intake:
    """Submits what clients send to one pipeline; `rejected` counts the lines that were refused since the start.

    `wait_for_capacity` waits until there is room for more, so that what clients write stays in their sockets meanwhile. It does
    not wait for a disk that does not answer: then events are dropped, and counted.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.wait_for_capacity = pipeline.wait_for_capacity
        self._log = structlog.get_logger("agent.intake")
        self._throttle = Throttle(LOG_INTERVAL)
        self.rejected = 0
        self.turns = Turns()

    async def submit(self, lines: Lines, client: ClientState) -> None:
        """Validate and queue what a read brought; with durable acks, return when it is durable or dropped.

        Waits for room before it queues anything, so that a client is slowed down rather than memory filled.
        """
        waiting: list[tuple[int, CommitGroup]] = []
        for block in self._validate(lines, client):
            if await self._pipeline.wait_for_capacity():
                waiting.append((block.event_count, self._pipeline.submit(block)))
            else:
                self._pipeline.shed(block.event_count)
                client.dropped += block.event_count
        if client.wants_acks:
            for count, group in waiting:
                refused = (await group.wait()).refused
                client.durable += 0 if refused else count
                client.dropped += count if refused else 0

    def submit_messages(self, messages: Sequence[bytes]) -> list[int]:
        """Queue the events of whole messages from different senders, whose lines are complete, without waiting for anything.

        Returns the indexes of those that `submit` is for: nothing of them is queued. Call `wait_for_capacity` before.
        """
        blocks, others = decode_messages(messages)
        for block in blocks:
            if self._pipeline.should_drop:
                self._pipeline.shed(block.event_count)
            else:
                self._pipeline.submit(block)
        return others

    async def submit_all_or_none(self, chunks: Sequence[bytes], context: Context) -> Outcome | None:
        """Queue what `decode_array` has returned; return None when all of it is durable, or why none is kept."""
        if not chunks:
            return None
        blocks = [Block(context, chunk.count(b"\n"), chunk) for chunk in chunks]
        if not await self._pipeline.wait_for_capacity():
            self._pipeline.shed(sum(block.event_count for block in blocks))
            return Outcome.STALLED
        groups = [self._pipeline.submit(block) for block in blocks]  # the same one: nothing waits in between
        return (await groups[-1].wait()).refused

    def _validate(self, lines: Lines, client: ClientState) -> list[Block]:
        """Return the events, and count the rest; the rejects, which may be many, are not kept while somebody waits."""
        decoded = decode_lines(lines.block, client.session)
        client.session = decoded.session
        first = client.lines + lines.oversized
        client.lines = first + decoded.line_count
        if decoded.rejects or lines.oversized:
            too_long = Reject(0, f"Line is longer than {MAX_LINE_BYTES:,} bytes")
            self._reject([too_long] * lines.oversized + decoded.rejects, first, client)
        return decoded.blocks

    def _reject(self, rejects: list[Reject], first: int, client: ClientState) -> None:
        """Count rejects, name the first few to the client, and log one now and then. `first` is how many lines came before."""
        self.rejected += len(rejects)
        client.rejected += len(rejects)
        for line, reason in rejects[: NAMED_REJECTS - len(client.errors)]:
            client.errors.append(Reject(first + line, reason[:MAX_REASON_CHARACTERS]))
        sender = {"uid": client.peer.uid, "pid": client.peer.pid}
        held_back = self._throttle.allow("lines_rejected", anyio.current_time(), **sender)
        if held_back is not None:
            facts = {"lines": len(rejects), **client.peer.facts, "suppressed": held_back}
            self._log.warning("lines_rejected", reason=rejects[0].reason[:MAX_REASON_CHARACTERS], **facts)
