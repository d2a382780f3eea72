"""Random work on the queue, with crashes, full disks and errors anywhere, held to the promises by tests.support.queue_model."""

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import StorageError
from agent.queue.cursor import Outcome, Span
from agent.queue.store import Limits
from tests.support.fault_filesystem import Chooser, Crash, KeepAll, LoseAll, RandomChooser
from tests.support.queue_model import CODES, QueueModel

LIMITS = st.builds(
    Limits,
    segment_bytes=st.sampled_from([300, 1000, 4000]),
    max_bytes=st.sampled_from([2500, 1_000_000]),
    max_age=st.just(1000.0),
    overflow=st.sampled_from(["drop-oldest", "drop-newest"]),
    min_free_bytes=st.sampled_from([0, 500]),
)
ENTRIES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 900)), min_size=1, max_size=4)
CHOOSERS: st.SearchStrategy[Chooser] = st.one_of(
    st.just(LoseAll()), st.just(KeepAll()), st.builds(RandomChooser, st.integers(0, 10_000))
)
DEATHS: st.SearchStrategy[Chooser | None] = st.one_of(st.none(), CHOOSERS)
OUTCOMES = st.sampled_from([Outcome.DELIVERED, Outcome.DELIVERED, Outcome.DEAD_LETTERED])
CALLS = st.integers(0, 14)


class QueueMachine(RuleBasedStateMachine):
    """One queue; while `down`, nothing has it open."""

    model: QueueModel
    down = False

    @initialize(limits=LIMITS)
    def create(self, limits: Limits) -> None:
        self.model = QueueModel(limits)

    @precondition(lambda self: not self.down)
    @rule(sizes=ENTRIES)
    def append(self, sizes: list[tuple[int, int]]) -> None:
        self.model.append(*sizes)

    @precondition(lambda self: not self.down)
    @rule(
        sizes=ENTRIES,
        n=CALLS,
        code=st.sampled_from(CODES),
        lasting=st.booleans(),
        partial=CHOOSERS,
        again=st.booleans(),
    )
    def append_with_an_error(
        self, sizes: list[tuple[int, int]], n: int, code: int, partial: Chooser, *, lasting: bool, again: bool
    ) -> None:
        self.model.fail(n, code, lasting=lasting, partial=partial)
        self.model.append(*sizes)
        if again:
            self.model.append(*sizes)
        self.model.healthy()

    @precondition(lambda self: not self.down)
    @rule(sizes=ENTRIES, n=CALLS, code=st.sampled_from(CODES), partial=CHOOSERS, crash=CALLS, death=DEATHS)
    def append_and_die_on_the_way(
        self, sizes: list[tuple[int, int]], n: int, code: int, partial: Chooser, crash: int, death: Chooser | None
    ) -> None:
        model = self.model
        model.fail(n, code, partial=partial)
        model.disk.crash_at(model.disk.calls + crash, "after" if n % 2 else "before")
        with suppress(Crash):
            model.append(*sizes)
            model.commit()
        model.healthy()
        self.die(death)

    @precondition(lambda self: not self.down)
    @rule(room=st.one_of(st.none(), st.integers(0, 2000)))
    def change_room(self, room: int | None) -> None:
        self.model.disk.capacity = None if room is None else self.model.disk.used + room

    @precondition(lambda self: not self.down)
    @rule(max_bytes=st.sampled_from([1, 300, 5000]))
    def read(self, max_bytes: int) -> None:
        self.model.read(max_bytes)

    @precondition(lambda self: not self.down)
    @rule(n=st.integers(0, 3), code=st.sampled_from(CODES))
    def read_with_an_error(self, n: int, code: int) -> None:
        self.model.fail(n, code)
        try:
            self.model.read()
        except StorageError:
            self.model.healthy()
        self.model.healthy()
        self.model.read()

    @precondition(lambda self: not self.down and self.model.read_frames)
    @rule(data=st.data(), outcome=OUTCOMES)
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        frame = data.draw(st.sampled_from(self.model.read_frames))
        start = data.draw(st.integers(frame.first_seq, frame.next_seq - 1))
        self.model.settle([Span(start, data.draw(st.integers(start + 1, frame.next_seq)))], outcome)

    @precondition(lambda self: not self.down)
    @rule()
    def settle_all(self) -> None:
        self.model.settle_all()

    @precondition(lambda self: not self.down)
    @rule()
    def checkpoint(self) -> None:
        assert self.model.commit().refused is None

    @precondition(lambda self: not self.down)
    @rule()
    def sync(self) -> None:
        try:
            self.model.sync()
        except StorageError:
            assert self.model.disk.capacity is not None or self.model.faults

    @precondition(lambda self: not self.down)
    @rule(seconds=st.sampled_from([1.0, 400.0, 2000.0]))
    def wait(self, seconds: float) -> None:
        self.model.now += seconds

    @precondition(lambda self: not self.down)
    @rule()
    def close(self) -> None:
        self.model.disk.capacity = None
        self.model.close()
        self.down = True

    @precondition(lambda self: not self.down)
    @rule(death=DEATHS)
    def die(self, death: Chooser | None) -> None:
        self.model.die(death)
        self.down = True

    @precondition(lambda self: self.down)
    @rule()
    def open(self) -> None:
        self.model.open()
        self.down = False

    @precondition(lambda self: self.down)
    @rule(n=st.integers(0, 30), code=st.sampled_from(CODES), partial=CHOOSERS, death=DEATHS)
    def open_with_an_error(self, n: int, code: int, partial: Chooser, death: Chooser | None) -> None:
        """Open it while a call fails; what cannot start now can start later."""
        self.model.fail(n, code, partial=partial)
        try:
            self.model.open()
        except StorageError:
            self.model.die(None)
        else:
            self.down = False
        self.model.healthy()

    @precondition(lambda self: self.down)
    @rule(crash=st.integers(0, 30), death=DEATHS)
    def die_while_opening(self, crash: int, death: Chooser | None) -> None:
        self.model.disk.crash_at(self.model.disk.calls + crash, "after")
        with suppress(Crash):
            self.model.open()
        self.model.die(death)

    @invariant()
    def ledger_is_exact(self) -> None:
        if hasattr(self, "model") and not self.down:
            self.model.check_ledger()

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.model.disk.capacity = None
        if self.down:
            self.model.open()
        self.model.finish()


TestQueue = pytest.mark.timeout(300)(QueueMachine.TestCase)  # a failure takes long to shrink
TestQueue.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
