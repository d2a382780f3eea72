"""Unmodified turbo, alone and through the agent: the same build, the same events, and none lost once they are handed over."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import turbo
from tests.support.accounts import flushed, ledger, ledger_of, received
from tests.support.api_server import Answer, error
from tests.support.artifacts_api import ArtifactsApi
from tests.support.builds import cold_builds, sessions, three_builds
from tests.support.capture import EVENTS_PATH, Captured, CapturingServer
from tests.support.command import run_command
from tests.support.front import Front, front
from tests.support.monorepo import Monorepo
from tests.support.turborepo import turborepo_server
from tests.support.waiting import eventually

MOST_PACKAGES = 130
SENT_AT_ONCE = 100  # turbo sends when it has so many events, and what is left when it ends
_PER_CONNECTION = {"host", "connection", "transfer-encoding", "content-length"}


@pytest.fixture
def api() -> Iterator[ArtifactsApi]:
    """An API with a remote cache, which checks the token and the schema."""
    with ArtifactsApi(token=turbo.TOKEN) as server:
        server.status = "enabled"
        yield server
    assert server.violations == []


@pytest.mark.parametrize("packages", [3, MOST_PACKAGES])
def test_a_build_has_the_same_results_and_the_same_events_as_without_the_agent(tmp_path: Path, packages: int) -> None:
    """From nothing, from turbo's own cache, and from the real remote cache."""
    with turborepo_server(tmp_path / "storage-alone") as server:
        alone = three_builds(Monorepo(tmp_path / "alone", packages), server.url, server.captured)
    caches = [{task.cache for task in build.tasks.values()} for build in alone]
    assert caches == [{"MISS"}, {"LOCAL"}, {"REMOTE"}]

    with turborepo_server(tmp_path / "storage-through") as server, front(tmp_path / "agent", server.url) as agent:
        through = three_builds(Monorepo(tmp_path / "through", packages), agent.handed.url, agent.handed)
        assert_all_taken(agent)
        assert flushed(agent.daemon)
        assert received(server.captured.accepted()) == received(agent.handed.posts())
        assert artifacts(server.captured) == artifacts(agent.handed)
    assert through == alone
    assert len(sessions(agent.handed.posts())) == len(through)


def test_exec_runs_turbo_with_an_agent_of_its_own_and_delivers_its_events(tmp_path: Path, api: ArtifactsApi) -> None:
    monorepo, config = Monorepo(tmp_path / "monorepo", 30), tmp_path / "config.toml"
    config.write_text('[batch]\nmax_delay = "1h"\n')
    job = {"ARTIFACTS_AGENT_CONFIG": str(config), "STATE_DIRECTORY": str(tmp_path / "state")}
    for cache, events in (("MISS", 60), ("LOCAL", 90), ("REMOTE", 150)):
        if cache == "REMOTE":
            monorepo.forget_local_results()
        done = run_command("exec", "--", *turbo.command(monorepo), env=turbo.environment(monorepo, api.url) | job)
        assert done.returncode == 0, done.stderr
        assert "30 successful, 30 total" in done.stdout
        assert received(api.accepted()).total() == events
    assert sorted(sessions(api.accepted()).values()) == [30, 60, 60]


@pytest.mark.parametrize("release", turbo.RELEASES)
def test_exec_says_what_the_cache_did_for_turbo_beside_an_agent_that_runs(
    tmp_path: Path, api: ArtifactsApi, release: int
) -> None:
    monorepo = Monorepo(tmp_path / "monorepo", 10, release=release)
    with front(tmp_path / "agent", api.url) as agent:
        job = turbo.environment(monorepo, api.url) | {"ARTIFACTS_AGENT_CONFIG": str(agent.daemon.config)}
        for rate in ("0 of 10 tasks (0 %)", "10 of 10 tasks (100 %)", "10 of 10 tasks (100 %)"):
            done = run_command(
                "exec", "--start-deadline", "1m", "--job", "b / 7", "--", *turbo.command(monorepo), env=job
            )
            assert done.returncode == 0, done.stderr
            assert f"artifacts-agent: cache: {rate}" in done.stderr
            if rate.startswith("0"):
                monorepo.forget_local_results()
        assert flushed(agent.daemon)
    assert received(api.accepted()).total() == 50


def test_what_turbo_signs_and_asks_for_beforehand_passes_and_its_ci_system_is_known(
    tmp_path: Path, api: ArtifactsApi
) -> None:
    """Signed artifacts, and preflight requests, without whose answer turbo would leave out its token."""
    monorepo = Monorepo(tmp_path / "monorepo", 3, signed=True)
    signing = {"TURBO_REMOTE_CACHE_SIGNATURE_KEY": "0123456789abcdef" * 2, "TURBO_PREFLIGHT": "true"}
    with front(tmp_path / "agent", api.url) as agent:
        for cache in ("MISS", "REMOTE"):
            run = turbo.run(monorepo, agent.handed.url, signing | {"GITHUB_ACTIONS": "true", "CI": "true"})
            assert {task.cache for task in run.tasks.values()} == {cache}
            monorepo.forget_local_results()
        assert_all_taken(agent)
        assert flushed(agent.daemon)
        assert artifacts(api) == artifacts(agent.handed)
    assert all("x-artifact-tag" in request.headers for request in api.requests if request.method == "PUT")
    assert received(api.accepted()) == received(agent.handed.posts())
    assert {request.headers["x-artifact-client-ci"] for request in api.accepted()} == {"GITHUB_ACTIONS"}


def test_what_turbo_has_handed_over_is_kept_when_it_is_killed(tmp_path: Path, api: ArtifactsApi) -> None:
    """The API hangs meanwhile: of turbo alone nothing would be left."""
    api.default = Answer(mode="hang")
    monorepo = Monorepo(tmp_path / "monorepo", MOST_PACKAGES, gated=True)
    handed_over = 2 * MOST_PACKAGES // SENT_AT_ONCE * SENT_AT_ONCE
    with front(tmp_path / "agent", api.url) as agent:
        with turbo.running(monorepo, agent.handed.url) as build:
            agent.handed.wait_for_accepted(handed_over)
            eventually(monorepo.started.exists, bool)
            build.kill()
            assert build.wait() == -signal.SIGKILL
        monorepo.open_gate()
        assert ledger_of(agent.daemon.status()) == ledger(handed_over, queued=handed_over)
        api.default = Answer()
        assert flushed(agent.daemon)
    assert received(api.accepted()) == received(agent.handed.posts())
    assert received(api.accepted()).total() == handed_over


def test_an_agent_that_is_killed_fails_no_build_and_has_what_it_took(tmp_path: Path, api: ArtifactsApi) -> None:
    api.default = Answer(mode="hang")
    monorepo = Monorepo(tmp_path / "monorepo", 60, gated=True)
    with front(tmp_path / "agent", api.url) as agent:
        with turbo.running(monorepo, agent.handed.url) as build:
            agent.handed.wait_for_accepted(SENT_AT_ONCE)
            eventually(monorepo.started.exists, bool)
            agent.daemon.kill()
            monorepo.open_gate()
            build.communicate()
        assert build.returncode == 0
        api.default = Answer()
        agent.daemon.start()
        assert flushed(agent.daemon)
    assert received(api.accepted()) == received(agent.handed.accepted())
    assert received(api.accepted()).total() == SENT_AT_ONCE


def test_an_agent_that_hangs_holds_turbo_up_only_as_long_as_an_api_that_hangs(
    tmp_path: Path, api: ArtifactsApi
) -> None:
    """Its events wait in the agent's socket, and are taken although turbo has gone."""
    monorepo = Monorepo(tmp_path / "monorepo", 1)
    with front(tmp_path / "agent", api.url) as agent:
        agent.daemon.signal(signal.SIGSTOP)
        run = turbo.run(
            monorepo, agent.handed.url, {"TURBO_REMOTE_CACHE_TIMEOUT": "1", "TURBO_REMOTE_CACHE_UPLOAD_TIMEOUT": "1"}
        )
        agent.daemon.signal(signal.SIGCONT)
        assert (run.code, {task.cache for task in run.tasks.values()}) == (0, {"MISS"})
        handed = received(agent.handed.posts())
        assert handed
        agent.daemon.wait_status(lambda status: ledger_of(status)["accepted"] == handed.total())
        assert flushed(agent.daemon)
    assert received(api.accepted()) == handed


TROUBLE = {
    "hanging": Answer(mode="hang"),
    "slow by 500 ms": Answer(delay=0.5),
    "down": Answer(mode="reset"),
    "429": error(429, "rate_limited", "Too many requests"),
    "403": error(403, "forbidden", "Not allowed"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE.keys())
def test_trouble_with_events_slows_no_build_and_costs_none_of_them(
    tmp_path: Path, api: ArtifactsApi, trouble: Answer
) -> None:
    """The agent answers 200 at once, whatever the API would have said, and turbo sends nothing a second time."""
    with front(tmp_path / "agent", api.url) as agent:
        pairs = [_well_and_in_trouble(tmp_path / f"{number}", api, trouble, agent) for number in range(3)]
        assert all(well.tasks == troubled.tasks for well, troubled in pairs)
        assert_all_taken(agent)  # at once: turbo leaves 200 ms after its last task, with an answer or without
        api.default = Answer()
        agent.daemon.request("POST", "/resume").raise_for_status()
        assert flushed(agent.daemon)
    assert received(api.accepted()) == received(agent.handed.posts())
    assert received(api.accepted()).total() == 2 * 30 * 2 * len(pairs)


def _well_and_in_trouble(directory: Path, api: ArtifactsApi, trouble: Answer, agent: Front) -> list[turbo.Run]:
    runs = []
    for number, answer in enumerate([Answer(), trouble]):
        api.forget_artifacts()
        api.default = answer
        runs.append(turbo.run(Monorepo(directory / f"{number}", 30), agent.handed.url))
    return runs


def test_an_api_that_is_gone_for_the_whole_build_costs_no_time_and_no_event(tmp_path: Path, api: ArtifactsApi) -> None:
    """Its artifacts cannot be had, which turbo says; its events come when the API is back."""
    with front(tmp_path / "agent", api.url) as agent:
        api.stop()
        (run,) = cold_builds(tmp_path, agent.handed.url, builds=1, packages=3)
        assert (run.code, {task.cache for task in run.tasks.values()}) == (0, {"MISS"})
        asked = Counter((request.method, request.path) for request in agent.handed.requests)
        assert {count for (_, path), count in asked.items() if path != EVENTS_PATH} == {1}, (
            "turbo waits, and asks again"
        )
        assert_all_taken(agent)
        api.start()
        assert flushed(agent.daemon)
    assert received(api.accepted()) == received(agent.handed.posts())
    assert received(api.accepted()).total() >= 3


def test_fifty_builds_at_once_are_as_good_as_one_after_the_other(tmp_path: Path, api: ArtifactsApi) -> None:
    with front(tmp_path / "agent", api.url, {"api": {"timeout": "60s"}}) as agent:
        runs = cold_builds(tmp_path, agent.handed.url, builds=50, packages=3, at_once=50)
        assert [run.code for run in runs] == [0] * 50
        handed = received(agent.handed.posts())
        agent.daemon.wait_status(lambda status: ledger_of(status)["accepted"] == handed.total())
        assert flushed(agent.daemon)
    assert received(api.accepted()) == handed
    assert len(api.accepted()) < len(agent.handed.posts())


def assert_all_taken(agent: Front) -> None:
    """Every answer to events was the API's 200; on a busy machine turbo may not have waited for one."""
    posts = agent.handed.posts()
    answers = {request.status for request in posts}
    assert 200 in answers
    assert answers <= {200, None}


def artifacts(server: CapturingServer) -> Counter[object]:
    """Return every request that is not about events, as far as it is not about the connection that it came on."""
    return Counter(_essence(request) for request in server.requests if request.path != EVENTS_PATH)


def _essence(request: Captured) -> object:
    headers = {name: value for name, value in request.headers.items() if name not in _PER_CONNECTION}
    query = tuple(request.query.items())
    return request.method, request.path, query, tuple(sorted(headers.items())), request.body, request.status
