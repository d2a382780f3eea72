"""Real turbo of two releases, beside busy loops: through the agent it fares as it does alone, and no event is lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import turbo
from tests.support.tools import missing
from tests.turbo.comparison import CASES, Outcome, busy_loops, differences, play
from tests.turbo.ways import WAYS

HITS = [{"MISS"}, {"LOCAL"}, {"REMOTE"}]
LEAST_SENT = {1: 10, 2: 100}
"""How many events turbo sends before its end, when it has so many."""


@pytest.fixture(scope="module", autouse=True)
def _load() -> Iterator[None]:
    with busy_loops():
        yield


@pytest.mark.parametrize("release", turbo.RELEASES)
@pytest.mark.parametrize("case", CASES)
def test_through_the_agent_turbo_fares_as_alone_and_what_it_has_written_arrives(
    tmp_path: Path, release: int, case: str
) -> None:
    if turbo.program(release) is None:
        missing(f"turbo {release}", turbo.HINT)

    def on(way: str) -> Outcome:
        return play(case, way, release, tmp_path / way)

    with ThreadPoolExecutor(len(WAYS)) as pool:
        alone, *others = pool.map(on, WAYS)
    assert [differences(alone, each) for each in others] == ["", ""]
    assert [each.missing for each in others] == [{}, {}]
    if case == "killed":
        assert all(each.arrived >= LEAST_SENT[release] for each in others)
    if case in {"cached", "signed"}:
        assert [{task.cache for task in build.tasks.values()} for build in alone.builds] == HITS
