"""Teams in requests: what two readers could take for two teams, or for another path, is refused before a token is lent."""

import pytest

from agent.ingest.teams import ambiguous_team, is_for_artifacts, plain_path


@pytest.mark.parametrize(
    "query", ["", "slug=web", "teamId=team_1&slug=web", "slug=", "slug=w%65b", "x=slug&y=teamId", "slugs=a&slug=b"]
)
def test_a_team_that_is_said_once_is_clear(query: str) -> None:
    assert ambiguous_team(query) is None


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("slug=mobile&slug=web", "slug"),
        ("slug=web&slug=web", "slug"),
        ("slug=mobile;x=1&slug=web", "slug"),
        ("slug=web;slug=mobile", "slug"),
        ("slug[]=mobile&slug=web", "slug"),
        ("slug%5B0%5D=mobile", "slug"),
        ("sl%75g=mobile", "slug"),
        ("SLUG=mobile", "slug"),
        ("+slug=mobile", "slug"),
        ("teamid=team_2", "teamId"),
        ("team_id=team_2", "teamId"),
        ("teamId=team_1&teamId=team_2", "teamId"),
    ],
)
def test_a_team_that_is_said_twice_or_in_another_spelling_is_not(query: str, name: str) -> None:
    assert name in (ambiguous_team(query) or "")


@pytest.mark.parametrize(
    "path",
    [
        "/v8/artifacts/events",
        "/v8/artifacts/%65vents",
        "/v8/artifacts/%2565vents",
        "/v8/artifacts/events/",
        "//v8//artifacts/./events",
        "/v8/x/../artifacts/events",
        "/v8/artifacts/%2e%2e/artifacts%2Fevents",
        "/v8/artifacts/Events;x=1",
        "/v8\\artifacts\\events",
    ],
)
def test_a_path_is_read_as_leniently_as_any_server_may(path: str) -> None:
    assert plain_path(path) == "/v8/artifacts/events"


@pytest.mark.parametrize(
    "path", ["/v8/artifacts", "/v8/artifacts/abc", "/v8/artifacts/status", "/v8/artifacts/a-b_c.d/"]
)
def test_paths_of_artifacts_are_known(path: str) -> None:
    assert is_for_artifacts(path)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/user",
        "/v3/user/tokens",
        "/v8/artifacts/../user",
        "/v8/artifacts/%2e%2e/user",
        "//v8/artifacts/a",
        "/v8/artifactsx",
    ],
)
def test_a_path_that_may_lead_elsewhere_is_none_of_artifacts(path: str) -> None:
    assert not is_for_artifacts(path)
