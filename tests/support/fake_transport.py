"""An API in memory: the fake of agent.delivery.transport. It decides nothing that the test has not told it."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import anyio.lowlevel
import msgspec

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, Event
from tests.support.json_array import to_json_array

ACCEPTED = Verdict(Kind.ACCEPTED, "200 OK", 200)


UNREACHED = Verdict(Kind.TRANSIENT, "cannot reach the API", unsent=True)


class Answer(NamedTuple):
    """What one batch gets, and whether the API takes its events: where it does and does not say so, the answer is lost."""

    verdict: Verdict
    taken: bool


LOST = Answer(Verdict(Kind.CUT_OFF, "the connection broke"), taken=True)
"""The API has taken the batch, and the agent will never know."""

_decode_events = msgspec.json.Decoder(list[Event]).decode

Rule = Callable[[Context, Sequence[Event]], Verdict | Answer]


@dataclass(frozen=True)
class Sent:
    """One batch as it arrived: `at` on the steady clock; `taken` once the API has its events."""

    at: float
    context: Context
    events: tuple[Event, ...]
    taken: bool
    kind: Kind

    @property
    def hashes(self) -> list[str]:
        """The events' hashes, which tests use as names."""
        return [event.hash for event in self.events]


def accept(_context: Context, _events: Sequence[Event]) -> Verdict:
    """Take every batch: the rule of an API in good health."""
    return ACCEPTED


async def pass_on(_context: Context) -> None:
    """Let a request go on at once."""


def reject(*hashes: str) -> Rule:
    """Return the rule of an API that refuses batches with these events."""

    def rule(_context: Context, events: Sequence[Event]) -> Verdict:
        bad = next((event.hash for event in events if event.hash in hashes), None)
        return ACCEPTED if bad is None else Verdict(Kind.REJECTED, f"400 Bad Request: Invalid event {bad}", 400)

    return rule


class FakeTransport:
    """Answers with the script first, then by the rule; `probe` answers with `status`. All may be changed at any time.

    `before` is awaited before each batch's answer. `hold` lets the requests that come from then on wait until `release`.
    `answered` has the batches in the order of their answers.
    """

    def __init__(self, rule: Rule = accept) -> None:
        self.rule = rule
        self.status: Verdict | None = None
        self.answered: list[Sent] = []
        self.probes: list[float] = []
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False
        self.before: Callable[[Context], Awaitable[None]] = pass_on
        self._script: deque[Verdict | Answer] = deque()
        self._gate: anyio.Event | None = None
        self._changed = anyio.Event()

    def script(self, answers: Iterable[Verdict | Answer]) -> None:
        """Give the next batches these answers, one each."""
        self._script.extend(answers)

    def hold(self) -> None:
        """Let what comes from now on wait."""
        self._gate = self._gate or anyio.Event()

    def release(self) -> None:
        """Let what waits, and what comes, go on."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    @property
    def taken(self) -> list[str]:
        """The hashes of all events that the API has, in the order it took them, repeats included."""
        return [name for sent in self.answered if sent.taken for name in sent.hashes]

    async def wait_until(self, holds: Callable[["FakeTransport"], bool]) -> None:
        """Return when `holds` does; it is asked after each change."""
        while not holds(self):
            await self._changed.wait()

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`."""
        context, events = batch.context, _decode_events(to_json_array(batch.lines))
        assert events, "an empty batch was sent"
        assert not self.closed, "a batch was sent through a closed transport"
        at, answer = anyio.current_time(), self._script.popleft() if self._script else self.rule(context, events)
        await self._arrive(lambda: self.before(context))
        if not isinstance(answer, Answer):
            answer = Answer(answer, answer.kind is Kind.ACCEPTED)
        self.answered.append(Sent(at, context, tuple(events), answer.taken, answer.verdict.kind))
        self._change()
        return answer.verdict

    async def probe(self) -> Verdict | None:
        """See `Transport`."""
        self.probes.append(anyio.current_time())
        await self._arrive(lambda: pass_on(Context()))
        return self.status

    async def aclose(self) -> None:
        """See `Transport`."""
        self.closed = True

    async def _arrive(self, before: Callable[[], Awaitable[None]]) -> None:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._change()
        try:
            await anyio.lowlevel.checkpoint()
            await before()
            if self._gate is not None:
                await self._gate.wait()
        finally:
            self.in_flight -= 1

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
