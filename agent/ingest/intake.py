"""Intake: validates lines, queues the events in them, and says what became of them, whichever socket they came from."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
import msgspec
import structlog

from agent.cache_use import CacheUse
from agent.delivery.pipeline import Pipeline
from agent.events import (
    MAX_LINE_BYTES,
    Block,
    Context,
    Reject,
    Session,
    cut_lines,
    decode_bare_events,
    decode_lines,
    decode_messages,
    line_count,
    may_hold_items,
)
from agent.ingest.cache_uses import CacheUses
from agent.ingest.framing import Lines
from agent.peers import Peer, Turns
from agent.queue.committer import Submission
from agent.queue.cursor import Outcome
from agent.throttle import Throttle

NAMED_REJECTS = 5
MAX_REASON_CHARACTERS = 200
LOG_INTERVAL = 10.0

# Of lines with bad ones among them so many bytes are looked at in one turn: to refuse a line costs more than to take one.
TURN_BYTES = 1024
# After so many bad lines in a row from one process its lines are looked at only where they do not begin with bad ones again.
PATIENCE = 1000
GLANCE_BYTES = 256
GLANCE_REJECTS = 2
# Of so many processes it is remembered how many bad lines they have sent in a row.
REMEMBERED_PEERS = 1024


@dataclass
class ClientState:
    """What one client has set, and what became of the lines that it sent; `errors` names the first few rejects.

    `uncommitted` is what it waits for acks of, oldest first: how many events, and their submission. A client that is not
    `answerable` may ask for acks, but nobody waits with them.
    """

    peer: Peer
    answerable: bool = True
    session: Session = field(default_factory=Session)
    lines: int = 0
    durable: int = 0
    rejected: int = 0
    dropped: int = 0
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    errors: list[Reject] = field(default_factory=list)
    uncommitted: deque[tuple[int, Submission]] = field(default_factory=deque)
    _acked: tuple[int, int, int] = (0, 0, 0)

    @property
    def wants_acks(self) -> bool:
        """Whether the client has asked for durable acks, and can be sent them."""
        return self.answerable and self.session.durable_acks

    def drop(self, count: int, reason: Outcome) -> None:
        """Count events that were dropped."""
        self.dropped += count
        self.dropped_by_reason[reason] = self.dropped_by_reason.get(reason, 0) + count

    async def wait_committed(self) -> None:
        """Wait for the oldest commit of what is uncommitted, if there is one; count what has become durable or was dropped."""
        while self.uncommitted:
            count, submission = self.uncommitted[0]
            refused = (await submission.wait()).refused
            del self.uncommitted[0]
            if refused is None:
                self.durable += count
            else:
                self.drop(count, refused)
            if not self.is_answer_due:
                return

    @property
    def is_answer_due(self) -> bool:
        """Whether there is no commit to be waited for, or the oldest one is over."""
        return not self.uncommitted or self.uncommitted[0][1].group.is_over

    def next_ack(self) -> bytes | None:
        """Return the cumulative counts as a line for the client; None if it asked for none or they have not changed."""
        counts = (self.durable, self.rejected, self.dropped)
        if not self.wants_acks or counts == self._acked:
            return None
        ack: dict[str, object] = {"durable": self.durable, "rejected": self.rejected}
        if self.dropped:
            ack["dropped"] = self.dropped
            ack["dropped_by_reason"] = self.dropped_by_reason
        if self.rejected != self._acked[1] and self.errors:
            ack["errors"] = [{"line": line, "reason": reason} for line, reason in self.errors]
        self._acked = counts
        return msgspec.json.encode(ack) + b"\n"


class Intake:
    """Submits what clients send to one pipeline; `rejected` counts the lines that were refused since the start, and `cache_uses`
    what the others say of the cache.

    `wait_for_capacity` waits until there is room for more, so that what clients write stays in their sockets meanwhile. It does
    not wait for a disk that does not answer: then events are dropped, and counted.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.wait_for_capacity = pipeline.wait_for_capacity
        self._log = structlog.get_logger("agent.intake")
        self._throttle = Throttle(LOG_INTERVAL)
        self.rejected = 0
        self.cache_uses = CacheUses()
        self.turns = Turns()
        self._bad_in_a_row: dict[Peer, int] = {}

    async def submit(self, lines: Lines, client: ClientState) -> None:
        """Validate and queue what a read brought; with durable acks, its events are `uncommitted` then.

        Waits for room before it queues anything, so that a client is slowed down rather than memory filled.
        """
        if lines.oversized:
            client.lines += lines.oversized
            self._reject([Reject(0, f"Line is longer than {MAX_LINE_BYTES:,} bytes")] * lines.oversized, client)
        waiting: list[tuple[int, Submission]] = []
        block = decode_bare_events(lines.block, client.session.context)
        if block is not None:
            client.lines += block.event_count
            self._bad_in_a_row.pop(client.peer, None)
            await self._queue(block, client, waiting)
        else:
            await self._submit_in_pieces(lines.block, client, waiting)
        if client.wants_acks:
            client.uncommitted += waiting

    def submit_messages(
        self, messages: Sequence[bytes], owners: Sequence[int], client_of: Callable[[int], ClientState]
    ) -> list[int]:
        """Queue the events of whole messages from different senders, whose lines are complete, without waiting for anything.

        `owners` are the uids of their senders; `client_of` returns the sender of the message with an index. Returns the indexes
        of those that `submit` is for: nothing of them is queued. Call `wait_for_capacity` before.
        """
        others: list[int] = []
        for owner in dict.fromkeys(owners):  # nearly always one
            indexes = [index for index, each in enumerate(owners) if each == owner]
            block = decode_bare_events(b"".join([messages[index] for index in indexes]), Context())
            if block is not None:
                blocks = [block]
            else:
                indexes = [index for index in indexes if not self.dismiss(messages[index], client_of(index))]
                blocks, left = decode_messages([messages[index] for index in indexes])
                others += [indexes[index] for index in left]
            for block in blocks:
                self.cache_uses.add(block.context.ci, block.use)
                if self._pipeline.should_drop:
                    self._pipeline.shed(block.event_count)
                else:
                    self._pipeline.submit(block, owner=owner)
        return others

    async def submit_all_or_none(
        self, chunks: Sequence[bytes], use: CacheUse, context: Context, owner: int
    ) -> Outcome | None:
        """Queue what `decode_array` has returned; return None when all of it is durable, or why none is kept.

        `owner` is the uid of the sender.
        """
        if not chunks:
            return None
        blocks = [Block(context, chunk.count(b"\n"), chunk) for chunk in chunks]
        if not await self._pipeline.wait_for_capacity():
            self._pipeline.shed(sum(block.event_count for block in blocks))
            return Outcome.STALLED
        refused = (await self._pipeline.submit(*blocks, owner=owner).wait()).refused
        if refused is None:  # else the client is told, and sends them again
            self.cache_uses.add(context.ci, use)
        return refused

    def dismiss(self, text: bytes, client: ClientState) -> bool:
        """Reject all lines of a sender of many bad ones if none of them can be valid; tell whether they were."""
        if not self._is_rubbish(client) or may_hold_items(text):
            return False
        decoded = decode_lines(next(cut_lines(text, GLANCE_BYTES), b""), client.session, max_rejects=GLANCE_REJECTS)
        if decoded.blocks or not decoded.rejects:
            return False
        count = line_count(text)
        self._reject(decoded.rejects, client, more=count - len(decoded.rejects))
        client.lines += count
        return True

    async def _submit_in_pieces(self, text: bytes, client: ClientState, waiting: list[tuple[int, Submission]]) -> None:
        """Queue the events, and reject the rest. Others have their turns in between if there is something to reject."""
        turn, done = self.turns.of(client.peer), 0
        await turn.wait()  # it may be the first piece of each of many connections
        for piece in cut_lines(text, TURN_BYTES):
            if self._is_rubbish(client) and self.dismiss(text[done:], client):
                return
            done += len(piece)
            decoded = decode_lines(piece, client.session)
            client.session = decoded.session
            if decoded.blocks:
                self._bad_in_a_row.pop(client.peer, None)
            if decoded.rejects:
                self._reject(decoded.rejects, client)
            client.lines += decoded.line_count
            for block in decoded.blocks:
                await self._queue(block, client, waiting)
            if decoded.rejects:
                await turn.wait()

    async def _queue(self, block: Block, client: ClientState, waiting: list[tuple[int, Submission]]) -> None:
        self.cache_uses.add(block.context.ci, block.use)
        if await self._pipeline.wait_for_capacity():
            waiting.append((block.event_count, self._pipeline.submit(block, owner=client.peer.uid)))
        else:
            self._pipeline.shed(block.event_count)
            client.drop(block.event_count, Outcome.STALLED)

    def _is_rubbish(self, client: ClientState) -> bool:
        """Tell whether a client has sent so many bad lines that it is worth a look whether any of the next ones can be valid."""
        in_a_row = self._bad_in_a_row.get(client.peer, 0)
        return in_a_row >= PATIENCE or (not client.answerable and client.rejected >= PATIENCE)

    def _reject(self, rejects: list[Reject], client: ClientState, more: int = 0) -> None:
        """Count rejects, and `more` lines; name the first few to the client, and log one now and then."""
        count = len(rejects) + more
        self.rejected += count
        client.rejected += count
        for line, reason in rejects[: NAMED_REJECTS - len(client.errors)]:
            client.errors.append(Reject(client.lines + line, reason[:MAX_REASON_CHARACTERS]))
        in_a_row = self._bad_in_a_row.pop(client.peer, 0) + count
        self._bad_in_a_row[client.peer] = in_a_row  # the last one is the one that did it last
        if len(self._bad_in_a_row) > REMEMBERED_PEERS:
            del self._bad_in_a_row[next(iter(self._bad_in_a_row))]
        sender = {"uid": client.peer.uid, "pid": client.peer.pid}
        held_back = self._throttle.allow("lines_rejected", anyio.current_time(), **sender)
        if held_back is not None:
            facts = {"lines": count, **client.peer.facts, "suppressed": held_back}
            self._log.warning("lines_rejected", reason=rejects[0].reason[:MAX_REASON_CHARACTERS], **facts)
