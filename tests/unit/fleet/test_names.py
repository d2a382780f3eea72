"""Names of teams and pools are parts of subjects: nothing in them may mean something there."""

import pytest

from agent.fleet import names


@pytest.mark.parametrize("text", ["web", "a", "0", "linux-x64_2", "a" * 32])
def test_plain_names_are_taken(text: str) -> None:
    assert names.check_token(text) == text


@pytest.mark.parametrize("text", ["", "a.b", "*", ">", "Web", "a b", "-a", "a" * 33, "ä", "a\n"])
def test_what_means_something_in_a_subject_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no name: 1 to 32 of a-z, 0-9, - and _"):
        names.check_token(text)


def test_a_subject_names_its_team_and_pool() -> None:
    assert names.pool_of(names.events_subject("web", "linux")) == ("web", "linux")


@pytest.mark.parametrize("subject", ["aa.e.web", "aa.e.web.linux.x", "aa.l.web.linux", "bb.e.web.linux"])
def test_other_subjects_name_no_pool(subject: str) -> None:
    assert names.pool_of(subject) is None


def test_each_team_has_subjects_keys_and_a_consumer_of_its_own() -> None:
    makers = [names.team_events, names.ledger_subject, names.dead_subject, names.consumer]
    keys = [names.pause_key, names.rate_key, names.probe_key]
    found = [make(team) for make in [*makers, *keys] for team in ("web", "api")]
    assert len(set(found)) == len(found)
