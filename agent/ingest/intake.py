"""Intake: validates lines, queues the events in them, and says what became of them, whichever socket they came from."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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
from agent.ingest.rate_limits import RateLimits
from agent.peers import UNKNOWN, Peer, Turns
from agent.queue.committer import Submission
from agent.queue.cursor import Outcome
from agent.rules import DEFAULT, DENIED, NO_RULES, Route, Rules, Sender, SocketKind
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


class Refused(NamedTuple):
    """How many lines of a client were rejected or dropped before they were submitted, and how many of the rejects are named."""

    rejected: int
    named: int
    dropped: Mapping[str, int]


class Uncommitted(NamedTuple):
    """So many events of a client, their submission, whether they are to be acked, and what of the lines before was `refused`."""

    events: int
    submission: Submission
    acked: bool
    refused: Refused


@dataclass
class ClientState:
    """What one client has set, and what became of the lines that it sent; `errors` names the first few rejects.

    It came by `socket`, and is in the groups that `groups` returns, as far as the kernel says so. `uncommitted` is what it waits
    for acks of, in order, up to where it turned acks off; lines behind the first of them are in no ack so far. A client that is
    not `answerable` may ask for acks, but nobody waits with them.
    """

    peer: Peer
    answerable: bool = True
    socket: SocketKind = "stream"
    groups: Callable[[], frozenset[int]] = frozenset
    session: Session = field(default_factory=Session)
    lines: int = 0
    durable: int = 0
    rejected: int = 0
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    errors: list[Reject] = field(default_factory=list)
    uncommitted: deque[Uncommitted] = field(default_factory=deque)
    _dropped_by_commits: dict[str, int] = field(default_factory=dict)
    _ack_due: bool = False
    _acked: tuple[int, int, int] = (0, 0, 0)

    def drop(self, count: int, reason: str) -> None:
        """Count events that were dropped before they were submitted."""
        self.dropped_by_reason[reason] = self.dropped_by_reason.get(reason, 0) + count

    def submitted(self, block: Block, submission: Submission) -> None:
        """Wait for what was submitted if it is to be acked, or, to know where acks end, if what came before it was."""
        acked = self.answerable and block.durable_acks
        if acked or (self.uncommitted and self.uncommitted[-1].acked):
            self.uncommitted.append(Uncommitted(block.event_count, submission, acked, self._refused))

    def limited(self, block: Block, pipeline: Pipeline) -> None:
        """Drop what is more than this client may send; its ack says so when the count is on disk, where no kill takes it back."""
        pipeline.limit(block.event_count)
        if self.answerable and block.durable_acks:
            self.uncommitted.append(Uncommitted(0, pipeline.submit(), acked=True, refused=self._refused))
        self.drop(block.event_count, Outcome.RATE_LIMITED)

    async def wait_committed(self) -> None:
        """Wait for the oldest commit of what is uncommitted, if there is one; count what has become durable or was dropped."""
        while self.uncommitted:
            oldest = self.uncommitted[0]
            refused = (await oldest.submission.wait()).refused
            del self.uncommitted[0]
            if oldest.acked:
                self._ack_due = True
                if refused is None:
                    self.durable += oldest.events
                elif oldest.events:
                    dropped = self._dropped_by_commits
                    dropped[refused] = dropped.get(refused, 0) + oldest.events
            if not self.is_answer_due or (self.uncommitted and not self.uncommitted[0].acked):
                return

    @property
    def _refused(self) -> Refused:
        return Refused(self.rejected, len(self.errors), {**self.dropped_by_reason})

    @property
    def is_answer_due(self) -> bool:
        """Whether there is no commit to be waited for, or the oldest one is over."""
        return not self.uncommitted or self.uncommitted[0].submission.group.is_over

    def next_ack(self) -> bytes | None:
        """Return the cumulative counts as a line for the client; None if it asked for none or they have not changed.

        They are those of its lines up to the first that is uncommitted.
        """
        refused = self.uncommitted[0].refused if self.uncommitted else self._refused
        dropped = {**refused.dropped}
        for reason, count in self._dropped_by_commits.items():
            dropped[reason] = dropped.get(reason, 0) + count
        counts = (self.durable, refused.rejected, sum(dropped.values()))
        asked = self._ack_due or (self.answerable and self.session.durable_acks)
        self._ack_due = False
        if not asked or counts == self._acked:
            return None
        ack: dict[str, object] = {"durable": self.durable, "rejected": refused.rejected}
        if dropped:
            ack["dropped"] = counts[2]
            ack["dropped_by_reason"] = dropped
        if refused.rejected != self._acked[1] and refused.named:
            ack["errors"] = [{"line": line, "reason": reason} for line, reason in self.errors[: refused.named]]
        self._acked = counts
        return msgspec.json.encode(ack) + b"\n"


_NO_GROUPS = frozenset[int]()


def _ask_for_groups(rules: Rules) -> bool:
    return any(rule.gid is not None for rule in rules.rules)


class Intake:
    """Submits what clients send to the pipelines that rules lead to.

    `rejected` counts the lines that were refused since the start, `denied` the events that no rule lets in, and `cache_uses` what
    the others say of the cache.

    Before anything is read, `wait_for_capacity` waits until there is room for more, so that what clients write stays in their
    sockets meanwhile. It does not wait for a disk that does not answer: then events are dropped, and counted.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], rules: Rules = NO_RULES) -> None:
        """`pipelines` are those that take events, by destination; they may change at any time, DEFAULT is always there."""
        self._pipelines = pipelines
        self._rules = rules
        self._ask_for_groups = _ask_for_groups(rules)
        self._routes: dict[Sender, Route] = {}
        self._limits = RateLimits()
        self._log = structlog.get_logger("agent.intake")
        self._throttle = Throttle(LOG_INTERVAL)
        self.rejected = 0
        self.denied = 0
        self.cache_uses = CacheUses()
        self.turns = Turns()
        self._bad_in_a_row: dict[Peer, int] = {}

    def reconfigure(self, rules: Rules) -> None:
        """Go by other rules from now on, also for clients that are connected."""
        self._rules, self._ask_for_groups = rules, _ask_for_groups(rules)
        self._routes.clear()

    # Who may send, where to, and how much

    def sender(
        self, client: ClientState, asks_for: str | None, team_id: str | None = None, slug: str | None = None
    ) -> Sender:
        """Return what rules may ask of a client."""
        uid = None if client.peer.uid == UNKNOWN.uid else client.peer.uid
        gids = client.groups() if self._ask_for_groups else _NO_GROUPS
        return Sender(client.socket, uid, gids, team_id, slug, asks_for)

    def route(self, sender: Sender) -> Route:
        """Decide where a sender's events go."""
        found = self._routes.get(sender)
        if found is None:
            if len(self._routes) >= REMEMBERED_PEERS:
                self._routes.clear()
            found = self._routes[sender] = self._rules.route(sender)
        return found

    def pipeline(self, destination: str) -> Pipeline | None:
        """Return the pipeline that takes the events of a destination; None if it cannot, as long as it has no queue."""
        return self._pipelines.get(destination)

    async def wait_for_capacity(self, client: ClientState | None = None) -> bool:
        """Wait until more may be read, of this client or of anybody; False if a disk does not answer."""
        pipeline = self._pipelines[DEFAULT]
        if not self._rules.is_trivial:
            if client is None and any(not each.is_full for each in self._pipelines.values()):
                return True
            if client is not None:
                found = self.route(self.sender(client, client.session.asks_for)).destination
                pipeline = self._pipelines.get(found or DEFAULT, pipeline)
        return await pipeline.wait_for_capacity()

    def _way(self, client: ClientState, block: Block) -> tuple[Pipeline | None, int]:
        """Return where a client's events go, and their weight there.

        They may go nowhere, None, which is counted, logged, and said in its acks.
        """
        if self._rules.is_trivial and block.asks_for is None:
            return self._pipelines[DEFAULT], 1
        sender = self.sender(client, block.asks_for)
        route = self.route(sender)
        pipeline = None if route.destination is None else self._pipelines.get(route.destination)
        if pipeline is None:
            reason = route.reason or f"the queue of {route.destination!r} cannot be used now"
            self.deny(client.peer, block.event_count, reason)
            client.drop(block.event_count, DENIED)
        elif not self.is_within_limits(route, sender, block.event_count, len(block.lines)):
            client.limited(block, pipeline)
            pipeline = None
        return pipeline, self.weight(route)

    def weight(self, route: Route) -> int:
        """Return how large a share of a queue a rule gives, as a multiple of that of others."""
        rule = self._rules.rule_of(route)
        return 1 if rule is None else rule.weight

    def is_within_limits(self, route: Route, sender: Sender, events: int, size: int) -> bool:
        """Tell whether a sender may send so many events and bytes more now."""
        rule = self._rules.rule_of(route)
        if rule is None or (rule.max_events_per_second is None and rule.max_bytes_per_second is None):
            return True
        rates = rule.max_events_per_second, rule.max_bytes_per_second
        return self._limits.take((rule, sender.uid), rates, (events, size), anyio.current_time())

    def deny(self, peer: Peer, events: int, reason: str) -> None:
        """Count events that no rule lets in, and say so in the log now and then."""
        self.denied += events
        held_back = self._throttle.allow("events_denied", anyio.current_time(), uid=peer.uid, pid=peer.pid)
        if held_back is not None:
            self._log.warning("events_denied", events=events, reason=reason, **peer.facts, suppressed=held_back)

    async def submit(self, lines: Lines, client: ClientState) -> None:
        """Validate and queue what a read brought; with durable acks, its events are `uncommitted` then.

        Waits for room before it queues anything, so that a client is slowed down rather than memory filled.
        """
        client.lines += lines.oversized
        before = client.lines
        block = decode_bare_events(lines.block, client.session)
        if block is not None:
            client.lines += block.event_count
            self._bad_in_a_row.pop(client.peer, None)
            await self._queue(block, client)
        else:
            await self._submit_in_pieces(lines.block, client)
        if lines.oversized:  # wherever they were: no ack may count them before the others
            reject = Reject(before - client.lines, f"Line is longer than {MAX_LINE_BYTES:,} bytes")
            self._reject([reject] * lines.oversized, client)

    def submit_messages(
        self, messages: Sequence[bytes], owners: Sequence[int], client_of: Callable[[int], ClientState]
    ) -> list[int]:
        """Queue the events of whole messages from different senders, whose lines are complete, without waiting for anything.

        `owners` are the uids of their senders; `client_of` returns the sender of the message with an index. Returns the indexes
        of those that `submit` is for: nothing of them is queued. Call `wait_for_capacity` before.
        """
        others: list[int] = []
        senders: Sequence[Hashable] = owners
        if not self._rules.is_trivial:
            senders = [self.sender(client_of(index), None) for index in range(len(messages))]
        for sender in dict.fromkeys(senders):  # nearly always one
            indexes = [index for index, each in enumerate(senders) if each == sender]
            if isinstance(sender, Sender) and self._has_to_wait(sender):
                others += indexes
                continue
            block = decode_bare_events(b"".join([messages[index] for index in indexes]), Session())
            if block is not None:
                blocks = [block]
            else:
                indexes = [index for index in indexes if not self.dismiss(messages[index], client_of(index))]
                blocks, left = decode_messages([messages[index] for index in indexes])
                others += [indexes[index] for index in left]
            for block in blocks:
                self._submit_at_once(block, owners[indexes[0]], client_of(indexes[0]))
        return others

    def _has_to_wait(self, sender: Sender) -> bool:
        """Tell whether a destination has no room, while others may have: who sends to it waits alone."""
        pipeline = self._pipelines.get(self.route(sender).destination or "")
        return pipeline is not None and pipeline.is_full and not pipeline.should_drop

    def _submit_at_once(self, block: Block, owner: int, client: ClientState) -> None:
        pipeline, weight = self._way(client, block)
        if pipeline is None:
            return
        pipeline.jobs.note(block.context.job)
        self.cache_uses.add(block.context.ci, block.use)
        if pipeline.should_drop:
            pipeline.shed(block.event_count)
        else:
            pipeline.submit(block, owner=owner, weight=weight)

    async def submit_all_or_none(
        self, pipeline: Pipeline, chunks: Sequence[bytes], use: CacheUse, context: Context, owner: int, weight: int = 1
    ) -> Outcome | None:
        """Queue what `decode_array` has returned; return None when all of it is durable, or why none is kept.

        `owner` is the uid of the sender, `weight` that of its share.
        """
        if not chunks:
            return None
        pipeline.jobs.note(context.job)
        blocks = [Block(context, chunk.count(b"\n"), chunk) for chunk in chunks]
        if not await self._has_room(pipeline):
            pipeline.shed(sum(block.event_count for block in blocks))
            return Outcome.STALLED
        refused = (await pipeline.submit(*blocks, owner=owner, weight=weight).wait()).refused
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

    async def _submit_in_pieces(self, text: bytes, client: ClientState) -> None:
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
            for block in decoded.blocks:
                await self._queue(block, client)
            if decoded.rejects:  # after the events before them
                self._reject(decoded.rejects, client)
            client.lines += decoded.line_count
            if decoded.rejects:
                await turn.wait()

    async def _queue(self, block: Block, client: ClientState) -> None:
        pipeline, weight = self._way(client, block)
        if pipeline is None:
            return
        pipeline.jobs.note(block.context.job)
        self.cache_uses.add(block.context.ci, block.use)
        if not self._holds_others_up(client, pipeline) and await self._has_room(pipeline):
            client.submitted(block, pipeline.submit(block, owner=client.peer.uid, weight=weight))
        else:
            pipeline.shed(block.event_count)
            client.drop(block.event_count, Outcome.STALLED)

    def _holds_others_up(self, client: ClientState, pipeline: Pipeline) -> bool:
        """Tell whether a client's wait would be one of senders to other pipelines, too: all datagrams come by one socket."""
        return not client.answerable and pipeline.is_full and not all(each.is_full for each in self._pipelines.values())

    async def _has_room(self, pipeline: Pipeline) -> bool:
        """Wait until a pipeline takes more; False if its disk does not answer, or if it takes nothing any more after the wait."""
        waits = pipeline.is_full
        return await pipeline.wait_for_capacity() and (not waits or pipeline in self._pipelines.values())

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
