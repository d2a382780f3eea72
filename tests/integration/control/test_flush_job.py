"""A job's flush waits only for the destinations to which its events went: a team that is blocked costs no other team's job."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.client import EventClient, detect_job
from tests.integration.cli.test_hooks import SYSTEMS, buildkite, github, gitlab
from tests.integration.daemon.test_destinations import Host, directory, host
from tests.support.api_server import error
from tests.support.ci_systems import BUILDKITE, GITHUB, GITLAB
from tests.support.command import problems, run_command

__all__ = ["directory"]
RULES = 'WEB\n[[rules]]\nasks_for = "web"\ndestination = "web"\n'
BLOCKED = error(403, "forbidden", "The account is blocked")
UNHURRIED = {"batch": {"max_delay": "1h"}}
ENDS = [(github, GITHUB), (gitlab, GITLAB), (buildkite, BUILDKITE)]


@pytest.fixture
def shared(directory: Path) -> Iterator[Host]:
    """A host with two teams, of which that of default is blocked, with an event that waits."""
    with host(directory, RULES, UNHURRIED) as made:
        made.default.default = BLOCKED
        emit(made, "another", "d")
        assert flush(made, "--deadline", "100s")[0] == 3
        yield made


def emit(made: Host, job: str | None, *hashes: str, to: str | None = None) -> None:
    """Have a job send events, to a destination that it asks for."""
    with EventClient(made.daemon.stream, job=job, destination=to) as client:
        for name in hashes:
            client.emit("HIT", "LOCAL", name)


def flush(made: Host, *options: str, variables: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report."""
    done = run_command("flush", "--json", "--config", made.daemon.config, *options, stdin=variables)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(("system", "variables"), ENDS)
def test_a_hook_neither_waits_for_nor_reports_a_blocked_team_that_is_not_the_jobs(
    system: Any, variables: dict[str, str], shared: Host, tmp_path: Path
) -> None:
    assert system in SYSTEMS
    emit(shared, detect_job(variables), "a", "b", to="web")
    done = system(tmp_path, shared.daemon)
    assert "Everything that was sent before has left the queue: 2 events delivered." in done.stdout
    assert "blocked" not in done.stdout + done.stderr


def test_what_holds_the_job_up_is_said_with_the_destination_that_it_is_of(shared: Host) -> None:
    emit(shared, "mine", "a")
    done = run_command("flush", "--deadline", "100s", "--job", "mine", "--config", shared.daemon.config)
    (line,) = problems(done.stderr)
    assert (
        "and 2 events stay in the queue: default: paused: blocked: 403 Forbidden: The account is blocked; the" in line
    )


def test_a_job_of_which_nothing_is_known_waits_for_all_that_it_may_send_to(shared: Host) -> None:
    emit(shared, None, "a", to="web")
    code, report = flush(shared, "--deadline", "100s", "--job", "unknown")
    assert (code, report["delivered"], report["queued"]) == (3, 1, 1)
    user = os.geteuid()
    shared.reload(f'WEB\n[[rules]]\nuid = {user}\ndestination = "web"\n', UNHURRIED)
    emit(shared, None, "b")
    code, report = flush(shared, "--deadline", "100s", "--job", "-", variables=b"GITHUB_ACTIONS=true\n")
    assert (code, report["delivered"], report["queued"]) == (0, 2, 0)


def test_named_destinations_are_those_that_a_flush_is_of_whatever_the_job(shared: Host) -> None:
    emit(shared, "mine", "a", to="web")
    code, report = flush(shared, "--deadline", "100s", "--job", "mine", "--destination", "default")
    assert (code, report["queued"]) == (3, 1)
    assert flush(shared, "--deadline", "100s", "--job", "mine")[0] == 0


def test_exec_waits_only_for_where_the_events_of_its_job_went(shared: Host) -> None:
    code = (
        "from agent.client import EventClient\n"
        "with EventClient(destination='web') as client: client.emit('HIT', 'LOCAL', 'e')"
    )
    env = {"ARTIFACTS_AGENT_CONFIG": str(shared.daemon.config)}
    command = ["exec", "--start-deadline", "60s", "--deadline", "100s", "--job", "mine", "--", "python3", "-c", code]
    done = run_command(*command, env=env)
    assert (done.returncode, "not delivered yet" in done.stderr) == (0, False), done.stderr
    assert shared.status("web").ledger.delivered == 1
