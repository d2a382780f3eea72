"""Scripted work on the queue with a crash, or an error, at every single call: nothing durable is lost, all is accounted for."""

import copy
import errno
from collections.abc import Callable
from typing import Self

import pytest

from agent.queue.cursor import Outcome, Span
from agent.queue.store import Limits
from tests.support.fault_filesystem import MUTATING, Crash, RandomChooser
from tests.support.queue_model import CODES, QueueModel, StorageError, crash_choosers

Work = Callable[[QueueModel], None]

SMALL = Limits(segment_bytes=700, max_bytes=100_000, max_age=1000.0)
TIGHT = Limits(segment_bytes=500, max_bytes=1500, max_age=1000.0)


def fill_and_deliver(model: QueueModel) -> None:
    """Write three segments, deliver out of order, delete."""
    model.append((2, 100))
    model.append((1, 60), (3, 200), (1, 10))
    model.read_all()
    model.settle([Span(2, 4)])
    model.append((1, 500))
    model.settle([Span(1, 2)], Outcome.DEAD_LETTERED)
    model.commit()
    model.read_all()
    model.settle_all()
    model.append((4, 300))
    model.commit()
    model.sync()
    model.append((1, 20))
    model.close()
    model.open()
    model.append((1, 30))


def overflow_and_expire(model: QueueModel) -> None:
    """Fill the queue to its limit, drop the oldest, let the rest expire."""
    for _ in range(5):
        model.append((2, 350))
    model.read()
    model.settle_all()
    model.append((1, 350))
    model.now += 2000.0
    model.append((1, 350))
    model.commit()
    model.read_all()


def run_full(model: QueueModel) -> None:
    """Meet a full disk in the middle of a frame, and room again."""
    model.append((1, 300))
    model.disk.capacity = model.disk.used + 250
    model.append((2, 90), (1, 400))
    model.append((1, 60))
    model.commit()
    model.disk.capacity = None
    model.append((1, 500))
    model.read_all()
    model.settle_all()
    model.append((1, 500))
    model.commit()


def fail_a_sync(model: QueueModel) -> None:
    """Meet a sync of a segment that fails, and later one of the cursor."""
    model.append((1, 100))
    rule = model.fail(2, errno.EIO)  # free_bytes, write, then the sync
    model.append((2, 100))
    model.healthy()
    assert rule.at == "sync"
    model.append((1, 700))
    model.read_all()
    model.settle_all()
    model.fail(1, errno.EIO)
    model.commit()
    model.healthy()
    model.append((1, 100))
    model.commit()


WORK: list[tuple[Work, Limits]] = [
    (fill_and_deliver, SMALL),
    (overflow_and_expire, TIGHT),
    (run_full, SMALL),
    (fail_a_sync, SMALL),
]


def calls_of(work: Work, limits: Limits) -> list[tuple[int, str]]:
    """Return the calls that the work makes once the queue is open, and those of opening."""
    model = QueueModel(limits)
    work(model)
    return [(call.index, call.operation) for call in model.disk.log]


class Unopened(QueueModel):
    """A model whose disk can be prepared before the queue is opened for the first time."""

    opened = False

    def open(self) -> None:
        if self.opened:
            super().open()

    def start(self, work: Work) -> None:
        """Open the queue and do the work."""
        self.opened = True
        self.open()
        work(self)

    def twin(self) -> Self:
        """Return an equal model without the process, which has died, and without the log of its calls."""
        self.__dict__.pop("queue", None)
        self.__dict__.pop("reader", None)
        self.disk.log.clear()
        return copy.deepcopy(self)


@pytest.mark.parametrize(("work", "limits"), WORK, ids=[work.__name__ for work, _ in WORK])
def test_a_crash_at_any_call_loses_nothing_durable(work: Work, limits: Limits) -> None:
    calls = calls_of(work, limits)
    assert len(calls) > 70
    points = 0
    for index, operation in calls:
        for when in ("before", "after") if operation in MUTATING else ("before",):
            dead = Unopened(limits)
            dead.disk.partial = RandomChooser(index)
            dead.disk.crash_at(index, when)
            with pytest.raises(Crash):
                dead.start(work)
            for chooser in crash_choosers(range(index, index + 3)) if operation in MUTATING else [None]:
                model = dead.twin()
                model.disk.capacity = None
                model.die(chooser)
                model.open()
                model.finish()
                points += 1
    assert points > 5 * len(calls)


@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
@pytest.mark.parametrize(("work", "limits"), WORK[:3], ids=[work.__name__ for work, _ in WORK[:3]])
def test_an_error_at_any_call_loses_nothing_durable(work: Work, limits: Limits, code: int) -> None:
    calls = len(calls_of(work, limits))
    for n in range(calls):
        for lasting in (False, True):
            model = Unopened(limits)
            rule = model.fail(n, code, lasting=lasting, partial=RandomChooser(n) if n % 2 else None)
            try:
                model.start(work)
            except StorageError:
                assert rule.fired
            model.die(None if n % 3 else RandomChooser(n))
            model.disk.capacity = None
            model.open()
            model.finish()
