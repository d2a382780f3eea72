"""Intake: validates a block of lines, queues what is valid, and says what became of it.

It knows events and the pipeline. It must never know which socket the block came from, or how an answer travels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import msgspec
import structlog

from agent.delivery.pipeline import Pipeline
from agent.events import MAX_LINE_BYTES, Block, Context, Decoded, Reject, Session, decode_lines, decode_messages
from agent.ingest.framing import Lines
from agent.queue.committer import CommitGroup
from agent.queue.cursor import Outcome
from agent.throttle import Throttle

NAMED_REJECTS = 5
MAX_REASON_CHARACTERS = 200
LOG_INTERVAL = 10.0


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a socket, as the kernel says."""

    pid: int
    uid: int


@dataclass
class Conversation:
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
    _answered: tuple[int, int, int] = (0, 0, 0)

    @property
    def wants_acks(self) -> bool:
        """Whether the client has asked for durable acks, and can be sent them."""
        return self.answerable and self.session.durable_acks

    def answer(self) -> bytes | None:
        """Return the cumulative counts as a line for the client; None if it asked for none or they have not changed."""
        counts = (self.durable, self.rejected, self.dropped)
        if not self.wants_acks or counts == self._answered:
            return None
        answer: dict[str, object] = {"durable": self.durable, "rejected": self.rejected}
        if self.dropped:
            answer["dropped"] = self.dropped
        if self.rejected != self._answered[1] and self.errors:
            answer["errors"] = [{"line": line, "reason": reason} for line, reason in self.errors]
        self._answered = counts
        return msgspec.json.encode(answer) + b"\n"


class Intake:
    """Takes blocks of lines for one pipeline; `rejected` counts the lines that were refused since the start."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._log = structlog.get_logger("agent.intake")
        self._throttle = Throttle(LOG_INTERVAL)
        self.rejected = 0

    async def wait_for_capacity(self) -> None:
        """Wait until there is room for more, so that what clients write stays in their sockets meanwhile.

        Does not wait for a disk that does not answer: then `take` sheds.
        """
        await self._pipeline.wait_for_capacity()

    async def take(self, lines: Lines, conversation: Conversation) -> None:
        """Validate and queue what a read brought; with durable acks, return when its fate is known.

        Waits for room before it queues anything, so that a client is slowed down rather than memory filled.
        """
        waiting = await self._submit(self._validate(lines, conversation), conversation)
        if conversation.wants_acks:
            for count, group in waiting:
                refused = (await group.wait()).refused
                conversation.durable += 0 if refused else count
                conversation.dropped += count if refused else 0

    def take_messages(self, messages: Sequence[bytes]) -> list[int]:
        """Queue the events of whole messages from different senders, whose lines are complete, without waiting for anything.

        Returns the indexes of those that `take` is for: nothing of them is queued. Call `room` before.
        """
        blocks, others = decode_messages(messages)
        for block in blocks:
            if self._pipeline.should_drop:
                self._pipeline.shed(block.event_count)
            else:
                self._pipeline.submit(block)
        return others

    async def take_whole(self, pieces: Sequence[bytes], context: Context) -> Outcome | None:
        """Queue what `decode_array` has returned, all or nothing; return when it is durable, or why it is not kept."""
        if not pieces:
            return None
        blocks = [Block(context, piece.count(b"\n"), piece) for piece in pieces]
        if not await self._pipeline.wait_for_capacity():
            self._pipeline.shed(sum(block.event_count for block in blocks))
            return Outcome.STALLED
        groups = [self._pipeline.submit(block) for block in blocks]  # the same one: nothing waits in between
        return (await groups[-1].wait()).refused

    def _validate(self, lines: Lines, conversation: Conversation) -> list[Block]:
        """Return the events; the rejects, which may be many, are not kept while somebody waits."""
        decoded = decode_lines(lines.block, conversation.session)
        conversation.session = decoded.session
        self._reject(lines, decoded, conversation)
        return decoded.blocks

    async def _submit(self, blocks: list[Block], conversation: Conversation) -> list[tuple[int, CommitGroup]]:
        waiting: list[tuple[int, CommitGroup]] = []
        for block in blocks:
            if await self._pipeline.wait_for_capacity():
                waiting.append((block.event_count, self._pipeline.submit(block)))
            else:
                self._pipeline.shed(block.event_count)
                conversation.dropped += block.event_count
        return waiting

    def _reject(self, lines: Lines, decoded: Decoded, conversation: Conversation) -> None:
        too_long = Reject(0, f"Line is longer than {MAX_LINE_BYTES:,} bytes")
        rejects = [too_long] * lines.oversized + decoded.rejects
        first = conversation.lines + lines.oversized
        conversation.lines = first + decoded.line_count
        if not rejects:
            return
        self.rejected += len(rejects)
        conversation.rejected += len(rejects)
        for line, reason in rejects[: NAMED_REJECTS - len(conversation.errors)]:
            conversation.errors.append(Reject(first + line, reason[:MAX_REASON_CHARACTERS]))
        self._complain(rejects[0], conversation.peer, len(rejects))

    def _complain(self, reject: Reject, peer: Peer, count: int) -> None:
        held_back = self._throttle.allow("rejected", anyio.current_time())
        if held_back is not None:
            reason = reject.reason[:MAX_REASON_CHARACTERS]
            facts = {"reason": reason, "lines": count, "uid": peer.uid, "pid": peer.pid, "suppressed": held_back}
            self._log.warning("lines_rejected", **facts)
