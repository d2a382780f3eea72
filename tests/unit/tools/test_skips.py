"""No test is skipped in silence: what a machine lacks fails under CI, and elsewhere is named with the way to get it."""

import re
from pathlib import Path

import pytest

from tests.support.tools import missing, require_tool, unavailable

TESTS = Path(__file__).parents[2]
SKIPS = re.compile(r"pytest\.skip|mark\.skip|importorskip|SkipTest")


def test_one_module_alone_skips_tests() -> None:
    files = [path for path in TESTS.rglob("*.py") if "npm" not in path.parts and path != Path(__file__)]
    assert [path for path in files if SKIPS.search(path.read_text())] == [TESTS / "support" / "tools.py"]


def test_what_is_missing_is_a_failure_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(
        pytest.fail.Exception, match="no-such-tool is not installed; install it with: apt-get install it"
    ):
        require_tool("no-such-tool", "apt-get install it")
    with pytest.raises(pytest.fail.Exception, match="run the tests as root"):
        unavailable("run the tests as root")


def test_what_is_missing_is_a_skip_elsewhere_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="this is not installed; install it with: that"):
        missing("this", "that")
