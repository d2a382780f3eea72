"""Random sequences of what an API, an operator and a machine may do to a pipeline, and what must be true all along.

It knows events and answers. It must never know how the pipeline keeps its promises.
"""

from collections.abc import Sequence
from typing import Any

import anyio
from hypothesis import strategies as st

from agent.delivery.transport import Kind, Verdict
from agent.events import Context
from agent.pipeline import Pipeline
from tests.support.crash_model import RandomChooser
from tests.support.fake_transport import ACCEPTED, LOST, Answer, FakeTransport
from tests.support.pipelines import Host, balanced, dead_letters, numbered, submit

TRANSIENT = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required", 402)
MISCONFIGURED = Verdict(Kind.MISCONFIGURED, "404 Not Found", 404)

Action = Sequence[Any]

CONTEXTS = [Context(), Context("GITHUB_ACTIONS", 0), Context("GITHUB_ACTIONS", 1)]
VERDICTS: list[Verdict | Answer] = [
    ACCEPTED,
    TRANSIENT,
    Verdict(Kind.TRANSIENT, "429", 429, 30.0),
    Verdict(Kind.REJECTED, "400", 400),
    Verdict(Kind.TOO_LARGE, "413", 413),
    Verdict(Kind.CUT_OFF, "reset"),
    LOST,
    BLOCKED,
    MISCONFIGURED,
]
STATUSES: list[Verdict | None] = [None, ACCEPTED, BLOCKED, TRANSIENT]
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 12), st.integers(0, len(CONTEXTS) - 1)),
    st.tuples(st.just("script"), st.lists(st.sampled_from(range(len(VERDICTS))), min_size=1, max_size=6)),
    st.tuples(st.just("status"), st.integers(0, len(STATUSES) - 1)),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.5, 3.0, 40.0, 400.0])),
    st.sampled_from([("hold",), ("release",), ("pause",), ("resume",), ("reconfigure",), ("restart",), ("kill",)]),
    st.tuples(st.just("cut_power"), st.integers(0, 1000)),
)
MAX_EVENTS = 5


class Story:
    """One random sequence of actions, and what has to be true of it."""

    def __init__(self, h: Host) -> None:
        self.host = h
        self.submitted: dict[str, Context] = {}
        self.transports = [self.new_transport()]
        self.pipeline: Pipeline = h.start()

    @property
    def transport(self) -> FakeTransport:
        """The one in use."""
        return self.transports[-1]

    def new_transport(self) -> FakeTransport:
        """Put a fresh transport in the host."""
        transport = FakeTransport()
        self.host.transport = transport
        return transport

    async def play(self, action: Action) -> None:
        """Do what the action says: a method's name, and its arguments."""
        name, *arguments = action
        await getattr(self, name)(*arguments)

    async def submit(self, count: int, context: int) -> None:
        """Submit a record; what is refused is not the pipeline's."""
        names = numbered(count, f"e{len(self.submitted)}-")
        if not (await submit(self.pipeline, names, CONTEXTS[context]).wait()).refused:
            self.submitted |= dict.fromkeys(names, CONTEXTS[context])

    async def script(self, indexes: list[int]) -> None:
        """Give the next batches these answers of VERDICTS."""
        self.transport.script(VERDICTS[index] for index in indexes)

    async def status(self, index: int) -> None:
        """Let the API say this to a probe."""
        self.transport.status = STATUSES[index]

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await anyio.sleep(seconds)

    async def hold(self) -> None:
        """Keep requests open."""
        self.transport.hold()

    async def release(self) -> None:
        """Answer what is kept open."""
        self.transport.release()

    async def pause(self) -> None:
        """Be an operator who pauses."""
        self.pipeline.pause()

    async def resume(self) -> None:
        """Be an operator who resumes."""
        self.pipeline.resume()

    async def reconfigure(self) -> None:
        """Deliver through another transport."""
        self.transport.release()
        self.transports.append(self.new_transport())
        self.pipeline.reconfigure(self.host.delivery)

    async def restart(self) -> None:
        """Stop in good order, and start again."""
        await self.host.stop(1.0)
        self.begin_again()

    async def kill(self) -> None:
        """End without a word, and start again."""
        await self.host.kill()
        self.begin_again()

    async def cut_power(self, seed: int) -> None:
        """Lose what is not durable, and start again."""
        await self.host.kill(RandomChooser(seed))
        self.begin_again()

    def begin_again(self) -> None:
        """Start another pipeline on what is left on the disk."""
        self.transports.append(self.new_transport())
        self.pipeline = self.host.start()

    async def end_well(self) -> None:
        """Let the API and the operator be kind, until the queue is empty."""
        self.pipeline.resume()
        await self.reconfigure()
        await self.pipeline.flush()
        await self.host.stop(1.0)

    def check(self) -> None:
        """Assert what is true at every moment."""
        assert balanced(self.pipeline)
        for sent in (sent for transport in self.transports for sent in transport.answered):
            assert 0 < len(sent.events) <= MAX_EVENTS
            assert {self.submitted[name] for name in sent.hashes} == {sent.context}

    def check_end(self) -> None:
        """Assert what is true when all is over."""
        taken = {name for transport in self.transports for name in transport.taken}
        letters = {letter.event.hash for letter in dead_letters(self.host.fs)}
        assert taken | letters >= self.submitted.keys()
        refused = {
            sent.hashes[0]
            for transport in self.transports
            for sent in transport.answered
            if sent.kind in {Kind.REJECTED, Kind.TOO_LARGE} and len(sent.events) == 1
        }
        assert letters <= refused
        ledger = self.pipeline.ledger()
        assert (ledger.queued, ledger.dropped, ledger.accepted) == (0, {}, len(self.submitted))
        assert ledger.delivered <= len(taken)
        assert ledger.dead_lettered <= len(dead_letters(self.host.fs))
