"""The tests test the agent that is beside them, and not one that is installed elsewhere: a mutated copy depends on it."""

from pathlib import Path

import agent


def test_the_agent_under_test_is_the_one_beside_the_tests() -> None:
    assert Path(agent.__file__).parents[1] == Path(__file__).parents[2]
