"""The ready-made hooks, run as each CI system runs them: the job's events are delivered, and its result stays as it was."""

import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from agent.cli.commands.hook import FILES
from agent.client import EventClient, detect_job
from tests.support.api_server import Answer, ApiServer, error
from tests.support.ci_systems import BUILDKITE, GITHUB, GITLAB
from tests.support.command import environment, run_command
from tests.support.daemon import Daemon
from tests.support.tools import require_tool
from tests.support.waiting import HUNG_AFTER

HANG = Answer(mode="hang")
DOWN = error(503, "unavailable", "Come back later", {"Retry-After": "900"})
SCRIPTS = sysconfig.get_path("scripts")

Done = subprocess.CompletedProcess[str]
System = Callable[[Path, Daemon], Done]


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """An API for all tests here."""
    with ApiServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture(scope="module")
def daemon(api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests here, that delivers nothing by itself for an hour."""
    with Daemon(tmp_path_factory.mktemp("agent"), api.url, {"batch": {"max_delay": "1h"}}) as running:
        yield running


@cache
def text_of(system: str) -> str:
    """Return what the command prints."""
    return run_command("hook", system).stdout


def test_the_rule_for_sudo_names_the_command_where_it_is(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "artifacts-agent"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    odd = tmp_path / "a b" / "artifacts-agent"
    odd.parent.mkdir()
    odd.symlink_to(command)
    for directory, said in ((command.parent, command), (odd.parent, Path("/usr/local/bin/artifacts-agent"))):
        for system in ("github", "gitlab", "buildkite"):
            text = run_command("hook", system, env={"PATH": str(directory)}).stdout
            assert f" NOPASSWD: {said} flush " in text


def printed(system: str, directory: Path, name: str) -> Path:
    """Install a hook as its instructions say: what the command prints, as an executable file."""
    path = directory / name
    path.write_text(text_of(system))
    path.chmod(0o755)
    return path


def run(*command: str | Path, variables: Mapping[str, str], daemon: Daemon, script: str = "") -> Done:
    """Run what a CI system's runner would, with the command on its path and its configuration named."""
    env = environment({**variables, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)})
    env["PATH"] = f"{SCRIPTS}:{env['PATH']}"
    return subprocess.run(
        [*command], input=script, capture_output=True, text=True, env=env, timeout=HUNG_AFTER, check=False
    )


def github(directory: Path, daemon: Daemon) -> Done:
    """As the runner does: `bash -e FILE`, where FILE has to end in .sh."""
    hook = printed("github", directory, "job-completed.sh")
    return run("bash", "-e", hook, variables=GITHUB, daemon=daemon)


def github_without_bash(directory: Path, daemon: Daemon) -> Done:
    """As the runner does on a machine that has no bash."""
    return run("sh", "-e", printed("github", directory, "job-completed.sh"), variables=GITHUB, daemon=daemon)


def gitlab(directory: Path, daemon: Daemon) -> Done:
    """As the runner's shell executor does: a script on bash's standard input, which ends at the first line that fails."""
    hook = printed("gitlab", directory, "after-job.sh")
    lines = f"export PATH={SCRIPTS}:$PATH\\n{hook}\\n"  # a login shell has begun with a path of its own
    script = f"set -eo pipefail\nset +o noclobber\n: | eval $'{lines}'\nexit 0\n"
    return run("bash", "--login", variables=GITLAB, daemon=daemon, script=script)


def gitlab_in_yaml(directory: Path, daemon: Daemon) -> Done:
    """As part of a longer script under sh, as in the images without bash: the lines after it still run."""
    hook = printed("gitlab", directory, "after-job.sh")
    done = run("sh", variables=GITLAB, daemon=daemon, script=f"set -e\n{hook}\necho 'and the rest'\n")
    assert done.stdout.endswith("and the rest\n")
    return done


def buildkite(directory: Path, daemon: Daemon) -> Done:
    """As the agent does: a wrapper sources the hook, and compares the variables before and after."""
    hook = printed("buildkite", directory, "pre-exit")
    wrapper = directory / "wrapper"
    wrapper.write_text(
        f"export -p > {directory}/before\n. {hook}\nexport BUILDKITE_HOOK_EXIT_STATUS=$?\n"
        f"export -p > {directory}/after\nset > {directory}/all\nexit $BUILDKITE_HOOK_EXIT_STATUS\n"
    )
    done = run("bash", wrapper, variables=BUILDKITE, daemon=daemon)
    new = set((directory / "after").read_text().splitlines()) - set((directory / "before").read_text().splitlines())
    assert new == {'declare -x BUILDKITE_HOOK_EXIT_STATUS="0"'}
    assert "\ndeadline=" not in (directory / "all").read_text()
    return done


def kubernetes(directory: Path, daemon: Daemon) -> Done:
    """As the kubelet does: the command in the container, without a shell but its own."""
    text = printed("kubernetes", directory, "snippet.yaml").read_text()
    (command,) = re.findall(r"^ +command: (\[.*\])$", text, re.MULTILINE)
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", text)
    (deadline,) = re.findall(r"--deadline (\d+)s", text)
    assert int(grace) >= int(deadline) + 10 + 15
    return run(*json.loads(command), variables={}, daemon=daemon)


SYSTEMS = [github, github_without_bash, gitlab, gitlab_in_yaml, buildkite, kubernetes]


def sent(daemon: Daemon, count: int) -> None:
    """Send events, and return when they are durable."""
    with daemon.connect() as client:
        client.send(b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h"}\n' * count)
        client.wait_settled(count)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_hook_delivers_what_the_job_has_sent_and_says_so(
    system: System, tmp_path: Path, daemon: Daemon, api: ApiServer
) -> None:
    before = len(api.accepted_events())
    sent(daemon, 7)
    done = system(tmp_path, daemon)
    assert done.returncode == 0, done.stderr
    assert "Everything that was sent before has left the queue: 7 events delivered." in done.stdout
    assert len(api.accepted_events()) == before + 7


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_hook_says_what_is_wrong_and_ends_well(system: System, tmp_path: Path) -> None:
    done = system(tmp_path, Daemon(tmp_path / "never started", "http://127.0.0.1:1"))
    assert done.returncode == 0, done.stderr
    assert "no daemon answers there" in done.stdout + done.stderr


USAGE = "cache: 1 of 2 tasks (50 %), 7s of task time saved, 1 unanswered"
ENDS = [(github, GITHUB), (gitlab, GITLAB), (buildkite, BUILDKITE)]


def sent_by_job(daemon: Daemon, variables: Mapping[str, str]) -> None:
    """Send what a job does whose clients have its variables, and another one's."""
    with EventClient(daemon.stream, job=detect_job(variables), session_id=str(variables)) as client:
        client.emit("HIT", "REMOTE", "a", duration=7000)
        client.emit("MISS", "LOCAL", "b")
    with EventClient(daemon.stream, job="another", session_id="other") as client:
        client.emit("HIT", "LOCAL", "c")


@pytest.mark.parametrize(("system", "variables"), ENDS)
def test_a_hook_says_what_the_cache_did_for_the_job(
    system: System, variables: Mapping[str, str], tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_by_job(daemon, variables)
    tools = tmp_path / "bin"
    tools.mkdir()
    os.mkfifo(tmp_path / "annotation")
    (tools / "buildkite-agent").write_text(f'#!/bin/sh\n(echo "$*"; cat) > {tmp_path}/annotation\n')
    (tools / "buildkite-agent").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setitem(GITHUB, "GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    done = system(tmp_path, daemon)
    assert done.returncode == 0, done.stderr
    assert "3 events delivered" in done.stdout
    markdown = f"**{USAGE}**. Tasks run in parallel: the build got shorter by less.\n"
    if system is gitlab:
        (begin, inside) = re.findall(r"\x1b\[0Ksection_start:\d+:(.*)\s\x1b\[0K(.*)\n", done.stdout)[0]
        assert (begin, inside) == ("artifacts_agent_flush[collapsed=true]", USAGE)
        assert re.search(r"\x1b\[0Ksection_end:\d+:artifacts_agent_flush\s\x1b\[0K\n", done.stdout)
    else:
        assert USAGE in done.stdout.splitlines()
    if system is github:
        assert (tmp_path / "summary.md").read_text() == markdown + "\n"
    if system is buildkite:
        options, text = (tmp_path / "annotation").read_text().split("\n", 1)
        assert (options, text) == ("annotate --style info --context artifacts-agent-7", markdown)


@pytest.mark.parametrize("system", ["github", "gitlab", "buildkite"])
def test_a_hook_ends_well_where_the_agent_is_not_installed(system: str, tmp_path: Path) -> None:
    hook = printed(system, tmp_path, "hook.sh")
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-e", hook], capture_output=True, text=True, env=env, timeout=HUNG_AFTER, check=False
    )
    assert (done.returncode, "artifacts-agent" in done.stdout) == (0, True)


def test_the_daemon_is_asked_through_sudo_where_only_that_may(tmp_path: Path, daemon: Daemon, api: ApiServer) -> None:
    """A sudo of the test's own stands for one whose rule allows exactly this command line."""
    tools = tmp_path / "bin"
    tools.mkdir()
    allowed = "artifacts-agent flush --deadline 15s --job -"
    fake = f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n[ "$1" = -n ] && shift\n[ "$1" = -l ] && list=1 && shift\n'
    fake += f'[ "$1 $2" = "-u artifacts-agent" ] && shift 2\n[ "$*" = "{allowed}" ] || exit 1\n'
    fake += f'[ -n "$list" ] || PATH={SCRIPTS}:$PATH exec "$@"\n'
    (tools / "sudo").write_text(fake)
    (tools / "sudo").chmod(0o755)
    for system, rule in (("github", "ci"), ("gitlab", "gitlab-runner"), ("buildkite", "buildkite-agent")):
        hook = printed(system, tmp_path, "hook.sh")
        assert f"{rule} ALL=(artifacts-agent) NOPASSWD: /usr/local/bin/{allowed}\n" in hook.read_text()
        sent(daemon, 2)
        env = {"PATH": f"{tools}:/usr/bin:/bin", "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        done = subprocess.run([hook], capture_output=True, text=True, env=env, timeout=HUNG_AFTER, check=False)
        assert "2 events delivered" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "asked").read_text().count(f"-n -u artifacts-agent {allowed}\n") == 3


def test_what_is_left_at_the_deadline_is_a_warning_in_a_github_job(
    tmp_path: Path, daemon: Daemon, api: ApiServer
) -> None:
    api.default = HANG
    sent(daemon, 3)
    hook = printed("github", tmp_path, "hook.sh")
    hook.write_text(hook.read_text().replace("deadline=15s", "deadline=200ms"))
    done = run("bash", "-e", hook, variables=GITHUB | {"GITHUB_RUN_ID": "43"}, daemon=daemon)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "::warning title=artifacts-agent::artifacts-agent: the deadline of 0.2 s passed with 3 events"
    )
    api.default = Answer()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_hook_ends_at_once_and_says_why_where_nothing_can_be_delivered(
    system: System, tmp_path: Path, api: ApiServer
) -> None:
    """Nobody waits a quarter of an hour for what the server wants to be left alone for."""
    api.default = DOWN
    with Daemon(tmp_path / "agent", api.url, {"batch": {"max_delay": "1h"}}) as daemon:
        sent(daemon, 3)
        done = system(tmp_path, daemon)
    api.default = Answer()
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "artifacts-agent: nothing can be delivered before the deadline of" in said
    assert "3 events stay in the queue: backing off: 503 Service Unavailable: Come back later; the next" in said


def test_the_scripts_are_free_of_shellcheck_warnings(tmp_path: Path) -> None:
    shellcheck = require_tool("shellcheck", "apt-get install shellcheck")
    scripts = [printed(system, tmp_path, name) for system, name in FILES.items() if name.endswith(".sh")]
    done = subprocess.run([shellcheck, "--shell=sh", *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert all(os.access(script, os.X_OK) for script in scripts)
