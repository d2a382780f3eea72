"""`exec` where the configuration has several destinations: a job's own agent serves all of them, and one that runs is waited for
only where the job's events go.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_server import Answer, ApiServer, error
from tests.support.command import run_command
from tests.support.daemon import TOKEN, Daemon
from tests.support.waiting import HUNG_AFTER

WEB_TOKEN = "token-of-web"
PATIENT = ("--start-deadline", "60s")  # the machine may be busy
DOWN = error(503, "unavailable", "Down")
SEND = """
import json, os, socket
def send(destination, *names):
    context = {"ack": "durable", "destination": destination}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["ARTIFACTS_AGENT_SOCKET"])
        event = {"sessionId": "s", "source": "LOCAL", "event": "HIT"}
        lines = [json.dumps({"context": context}), *(json.dumps(event | {"hash": name}) for name in names)]
        client.sendall("".join(line + "\\n" for line in lines).encode())
        answers = client.makefile()
        while json.loads(answers.readline())["durable"] < len(names):
            pass
"""


@pytest.fixture
def web() -> Iterator[ApiServer]:
    """The API of the other destination."""
    with ApiServer(token=WEB_TOKEN) as server:
        yield server
        assert not server.violations


def destination(web: ApiServer) -> str:
    """Return what a configuration says of it."""
    rules = '[[rules]]\nasks_for = "web"\ndestination = "web"\n'
    return f'\n[destinations.web]\nurl = "{web.url}"\n{rules}'


class Job:
    """What a job has whose configuration has both, and no agent."""

    def __init__(self, directory: Path, default: ApiServer, web: ApiServer) -> None:
        config = directory / "config.toml"
        config.write_text(
            f'[listen]\ncontrol = "{directory / "c"}"\nstream = "{directory / "s"}"\ndatagram = ""\n'
            '[batch]\nmax_delay = "1h"\n[retry]\ninitial_delay = "20ms"\nmax_delay = "100ms"\n'
            f'[shutdown]\ndeadline = "500ms"\n{destination(web)}'
        )
        self.spools = directory / "state" / "spools"
        self.env = {
            "STATE_DIRECTORY": str(directory / "state"),
            "ARTIFACTS_AGENT_CONFIG": str(config),
            "ARTIFACTS_AGENT_API_URL": default.url,
            "ARTIFACTS_AGENT_DESTINATIONS_WEB_TOKEN": WEB_TOKEN,
            "TURBO_TOKEN": TOKEN,
            "XDG_CONFIG_HOME": str(directory / "nothing"),
        }

    def run(self, code: str) -> list[str]:
        """Run Python with an agent beside it; return the lines that `exec` says."""
        done = run_command("exec", *PATIENT, "--", sys.executable, "-c", SEND + code, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()


@pytest.fixture
def job(tmp_path: Path, api_server: ApiServer, web: ApiServer) -> Job:
    """A job of its own."""
    return Job(tmp_path, api_server, web)


def hashes(server: ApiServer) -> list[str]:
    """Return what an API has got."""
    return sorted(event["hash"] for event in server.accepted_events())


def test_a_jobs_own_agent_delivers_to_all_leaves_nothing_and_counts_what_the_cache_did_for_all(
    job: Job, api_server: ApiServer, web: ApiServer
) -> None:
    said = job.run("send(None, 'a', 'b'); send('web', 'c')")
    assert said == ["artifacts-agent: cache: 3 of 3 tasks (100 %), 0s of task time saved"]
    assert (hashes(api_server), hashes(web)) == (["a", "b"], ["c"])
    assert list(job.spools.iterdir()) == []


def test_what_one_destination_does_not_take_stays_in_the_spool_and_the_next_job_delivers_it(
    job: Job, api_server: ApiServer, web: ApiServer
) -> None:
    web.default = DOWN
    said = job.run("send(None, 'a', 'b'); send('web', 'c')")
    (spool,) = job.spools.iterdir()
    taker = f"an agent with queue.adopt = '{job.spools}' will deliver them"
    assert said[0] == f"artifacts-agent: 1 event not delivered yet, in {spool}: {taker}"
    assert (hashes(api_server), hashes(web)) == (["a", "b"], [])
    web.default = Answer()
    job.run(
        "import sys, time\n"
        "for _ in range(400):\n"
        f"    os.path.exists({str(spool)!r}) or sys.exit(0)\n"
        "    time.sleep(0.05)"
    )
    assert (hashes(api_server), hashes(web)) == (["a", "b"], ["c"])
    assert list(job.spools.iterdir()) == []


def test_dead_letters_of_one_destination_keep_its_spool_alone(job: Job, api_server: ApiServer, web: ApiServer) -> None:
    web.reject_hashes = {"d"}
    said = job.run("send(None, 'a'); send('web', 'c', 'd')")
    (spool,) = job.spools.iterdir()
    inner = spool / "destinations" / "web"
    assert said[0] == f"artifacts-agent: {inner} stays because of 1 dead letter"
    assert (hashes(api_server), hashes(web)) == (["a"], ["c"])
    env = {**job.env, "ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(spool)}
    shown = run_command("dead-letters", "ls", "--json", "--destination", "web", env=env)
    letter: dict[str, Any] = json.loads(shown.stdout)
    assert letter["event"]["hash"] == "d"


def test_with_a_deadline_nobody_waits_for_a_destination_that_rules_keep_from_the_job(
    tmp_path: Path, api_server: ApiServer, web: ApiServer
) -> None:
    web.default = error(401, "unauthorized", "Who are you?")
    daemon = Daemon(tmp_path / "agent", api_server.url, {"http": {"socket": "h.sock"}})
    (daemon.directory / "web-token").write_text(WEB_TOKEN)
    more = f'\n[destinations.web]\nurl = "{web.url}"\ntoken_file = "web-token"\n'
    daemon.config.write_text(daemon.config.read_text() + more + '[[rules]]\nslug = "webs"\ndestination = "web"\n')
    with daemon:
        transport = httpx.HTTPTransport(uds=str(daemon.directory / "h.sock"))
        with httpx.Client(transport=transport, base_url="http://agent", timeout=HUNG_AFTER) as client:
            event = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "w"}
            assert client.post("/v8/artifacts/events?slug=webs", json=[event]).status_code == 200
        env = {"TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        command = ["exec", *PATIENT, "--deadline", "4m", "--", sys.executable, "-c", SEND + "send(None, 'a')"]
        said = {team: run_command(*command, env={**env, "TURBO_TEAM": team}).stderr for team in ("", "webs")}
        queued = daemon.report().destinations["web"].ledger.queued
    assert queued == 1
    assert "not delivered yet" not in said[""]
    assert (
        "1 event not delivered yet: still in the queue of the agent, which goes on: web: paused: blocked"
        in said["webs"]
    )
    assert hashes(api_server) == ["a", "a"]
