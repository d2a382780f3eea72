"""Coverage-guided fuzzing finds nothing, for as long as there is time."""

import importlib.util

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS
from tests.support.nightly import NIGHTLY

SECONDS = 60 if NIGHTLY else 1
CHOSEN = list(TARGETS) if NIGHTLY else ["frame"]


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", CHOSEN)
def test_the_engine_finds_nothing(name: str) -> None:
    run = fuzz(name, SECONDS, seed=0)
    assert (run.findings, run.failed) == ([], False), run.report
    assert run.executions > len(TARGETS[name].seeds())
    assert run.coverage > 10
