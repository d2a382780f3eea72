"""What takes time is looked for once, remembered, and not waited for."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.abc import TaskGroup

from agent.cli.web.remembered import BusyError, Remembered, RememberedByKey
from tests.support import virtual_time

FRESH = 60.0


@pytest.fixture(params=virtual_time.NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Slow:
    """A number that is one more each time, found within some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.times = 0

    async def find(self) -> int:
        self.times += 1
        found = self.times
        await anyio.sleep(self.seconds)
        return found


def play(backend: str, slow: Slow, story: Callable[[Remembered[int], TaskGroup], Awaitable[None]]) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await story(Remembered(slow.find, FRESH, tasks), tasks)

    virtual_time.run(backend, main)


def test_it_is_looked_for_once_however_many_ask(backend: str) -> None:
    slow, answers = Slow(0.5), list[int | None]()

    async def story(known: Remembered[int], _tasks: TaskGroup) -> None:
        async def ask() -> None:
            answers.append(await known.get(1.0))

        async with anyio.create_task_group() as asking:
            for _ in range(100):
                asking.start_soon(ask)
        await anyio.sleep(FRESH - 1)
        await ask()
        assert slow.times == 1
        await anyio.sleep(1)
        await ask()

    play(backend, slow, story)
    assert answers == [1] * 101 + [2]


def test_who_has_no_patience_gets_the_old_answer_or_none(backend: str) -> None:
    async def story(known: Remembered[int], _tasks: TaskGroup) -> None:
        assert await known.get(1.0) is None
        assert known.is_looking
        await anyio.sleep(5)
        assert await known.get(0.0) == 1
        assert not known.is_looking
        await anyio.sleep(FRESH)
        before = anyio.current_time()
        assert await known.get(1.0) == 1
        assert anyio.current_time() == before + 1.0
        await anyio.sleep(5)
        assert await known.get(0.0) == 2

    play(backend, Slow(5), story)


def test_what_is_renewed_is_looked_for_again_also_if_it_is_being_looked_for(backend: str) -> None:
    async def story(known: Remembered[int], _tasks: TaskGroup) -> None:
        assert await known.get(1.0) == 1
        known.renew()
        assert await known.get(0.1) == 1
        known.renew()  # before the second answer has come: it may be of before
        await anyio.sleep(1)
        assert await known.get(1.0) == 3
        assert await known.get(1.0) == 3

    play(backend, Slow(0.5), story)


def test_of_many_keys_those_that_were_asked_for_last_are_remembered(backend: str) -> None:
    slow = Slow(0.5)

    async def story(_known: Remembered[int], tasks: TaskGroup) -> None:
        known = RememberedByKey[str, int](lambda _: slow.find(), FRESH, 2, tasks)
        assert [await known.get(key, 1.0) for key in ("a", "b", "a", "c", "a", "b")] == [1, 2, 1, 3, 1, 4]
        assert len(known) == 2
        known.renew()
        assert await known.get("a", 1.0) == 5

    play(backend, slow, story)


def test_not_more_is_looked_for_than_is_remembered(backend: str) -> None:
    slow = Slow(5)

    async def story(_known: Remembered[int], tasks: TaskGroup) -> None:
        known = RememberedByKey[int, int](lambda _: slow.find(), FRESH, 2, tasks)
        assert [await known.get(key, 0.0) for key in (1, 2)] == [None, None]
        with pytest.raises(BusyError):
            await known.get(3, 0.0)
        await anyio.sleep(6)
        assert await known.get(3, 10.0) == 3

    play(backend, slow, story)
