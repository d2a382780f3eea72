"""CHANGELOG.md keeps to the form that it names: https://keepachangelog.com/en/1.1.0/."""

import re

import pytest

from agent import __version__
from tests.release import problems
from tests.support.documents import read

CHANGELOG = read("CHANGELOG.md")
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
VERSIONS = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)


def test_the_newest_is_first_and_each_version_has_a_date() -> None:
    assert CHANGELOG.startswith("# Changelog\n")
    unreleased, *released = VERSIONS
    assert unreleased == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", each) for each in released]
    order = [tuple(map(int, each.groups()[:3])) for each in found if each]
    dates = [each[4] for each in found if each]
    assert len(order) == len(released) > 0
    assert (order, dates) == (sorted(order, reverse=True), sorted(dates, reverse=True))
    assert f"[{__version__}] - {dates[0]}" == released[0]


def test_changes_are_grouped_by_kind() -> None:
    for section in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert kinds == [each for each in KINDS if each in kinds], section.partition("\n")[0]
    assert not re.search(r"^####", CHANGELOG, re.MULTILINE)


@pytest.mark.parametrize(
    ("changelog", "wrong"),
    [
        ("## [Unreleased]\n\n## [1.0.0] - 2026-01-02\n\n- A\n", []),
        ("## [1.0.0] - 2026-01-02\n\n- A\n", []),
        ("## [Unreleased]\n\n- B\n\n## [1.0.0] - 2026-01-02\n", ["has changes that are not released"]),
        ("## [1.0.0]\n\n- A\n", ["gives no date for 1.0.0"]),
        ("## [Unreleased]\n", ["has no section for 1.0.0"]),
    ],
)
def test_what_it_does_not_say_is_not_released(changelog: str, wrong: list[str]) -> None:
    found = problems(changelog, "1.0.0")
    assert len(found) == len(wrong)
    assert all(f"CHANGELOG.md {reason}" in each for reason, each in zip(wrong, found, strict=True))
