"""Coverage-guided fuzzing finds nothing, for as long as there is time."""

import importlib.util

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS
from tests.support import profiles
from tests.support.tools import missing

SECONDS = 60 if profiles.is_nightly() else 1
CHOSEN = list(TARGETS) if profiles.is_nightly() else ["frame"]


@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", CHOSEN)
def test_the_engine_finds_nothing(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris", "pip install -e '.[dev]', on a machine that it has a wheel for")
    run = fuzz(name, SECONDS, seed=0)
    assert (run.findings, run.failed) == ([], False), run.report
    assert run.executions > len(TARGETS[name].seeds())
    assert run.coverage > 10
