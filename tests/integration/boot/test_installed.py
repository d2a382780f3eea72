"""The agent as systemd/README.md installs it, on a real systemd that has booted: word for word, as a user with sudo.

Each test leaves the service running. They are run for this machine's own release, or for those that BOOT_RELEASES names.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.api_server import Answer, ApiServer, error
from tests.support.daemon import TOKEN
from tests.support.debian import releases
from tests.support.documents import read, section
from tests.support.installed import CHECKOUT, CONFIG, PAGE, SERVICE, SOCKET, Installed, checkout, prepared_machine
from tests.support.waiting import eventually

STATE = "/var/lib/artifacts-agent"
DOWN = error(503, "unavailable", "Come back later")


@pytest.fixture(scope="module", params=releases())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A machine for all tests here."""
    with ApiServer(token=TOKEN) as api, prepared_machine(request.param, tmp_path_factory.mktemp("machine")) as machine:
        yield Installed(machine, api)
    assert api.violations == []


@pytest.fixture
def agent(host: Installed) -> Iterator[Installed]:
    """The agent, installed and running; afterwards nothing may have been killed by its system call filter."""
    host.install()
    host.wait_running()
    yield host
    assert "SIGSYS" not in host.machine.journal(SERVICE)


def test_what_the_page_says_installs_it(agent: Installed) -> None:
    assert agent.emit("installed", 3).returncode == 0
    agent.wait_delivered("installed", 3)
    assert {post.headers["authorization"] for post in agent.api.accepted()} == {f"Bearer {TOKEN}"}
    assert agent.check().stdout == "ready\n"
    assert agent.machine.show(SERVICE, "ActiveState", "NRestarts", "UnitFileState") == ["active", "0", "enabled"]
    assert agent.machine.show(SOCKET, "ActiveState", "UnitFileState") == ["active", "enabled"]


def test_members_of_the_group_may_send_and_nobody_else(agent: Installed) -> None:
    refused = agent.emit("stranger", user="stranger")
    assert (refused.returncode, "Permission denied" in refused.stdout) == (4, True), refused.stdout
    assert agent.emit("member").returncode == 0
    agent.wait_delivered("member", 1)
    assert agent.delivered("stranger") == []


@pytest.mark.parametrize("user", ["ci", "stranger"])
@pytest.mark.parametrize(
    "script",
    [
        "cat /etc/artifacts-agent/token",
        "ls /var/lib/artifacts-agent",
        "ls /run/credentials/artifacts-agent.service",
        f"artifacts-agent status --config {CONFIG}",
        "rm /run/artifacts-agent/events.sock",
        "kill $(pgrep -f 'artifacts-agent run')",
    ],
)
def test_who_may_send_may_do_nothing_else(agent: Installed, script: str, user: str) -> None:
    assert agent.machine.run(script, user).returncode != 0


def test_the_sandbox_is_as_tight_as_it_can_be(agent: Installed) -> None:
    said = agent.machine.must(f"systemd-analyze security --no-pager {SERVICE}").splitlines()[-1]
    assert float(said.split(": ")[1].split()[0]) < 1.5, said


def test_a_client_starts_a_daemon_that_was_stopped(agent: Installed) -> None:
    agent.machine.must(f"systemctl stop {SERVICE}")
    assert agent.emit("activation").returncode == 0
    agent.wait_delivered("activation", 1)


def test_it_runs_under_its_filter_of_system_calls_when_that_kills(agent: Installed) -> None:
    """By default a call that is not allowed fails with EPERM, which might go unnoticed."""
    with agent.drop_in("SystemCallErrorNumber="):
        before = agent.wait_running()
        assert agent.emit("filtered", 1000).returncode == 0
        agent.must(f"sudo systemctl reload {SERVICE}; sudo artifacts-agent flush --config {CONFIG}")
        assert agent.status()["version"]
        agent.machine.must("systemctl stop artifacts-agent")
        agent.machine.must("systemctl start artifacts-agent")
        assert agent.wait_running() != before
        agent.wait_delivered("filtered", 1000)
        assert agent.machine.show(SERVICE, "Result", "NRestarts") == ["success", "0"]


def test_what_the_filter_does_not_allow_is_killed_by_it(agent: Installed) -> None:
    forbidden = "import os; os.chroot('/')"
    with agent.drop_in("SystemCallErrorNumber=", "Restart=no", f'ExecStartPre=/usr/bin/python3 -c "{forbidden}"'):
        assert agent.machine.show(SERVICE, "ActiveState", "Result") == ["failed", "signal"]
    agent.machine.must("journalctl --rotate --vacuum-time=1us")


def test_a_restart_loses_nothing_that_clients_send_meanwhile(agent: Installed) -> None:
    emit = 'artifacts-agent emit --strict --event HIT --source LOCAL --hash "beat-$n"'
    beat = f"n=0; while ! read -r -t 0.01 _; do {emit}; n=$((n + 1)); done; echo $n"
    with agent.machine.running(f"bash -ec {beat!r}", "ci") as clients:
        for _ in range(3):
            agent.machine.must(f"systemctl restart {SERVICE}")
        said, _ = clients.communicate("enough\n")
    assert clients.returncode == 0, said
    agent.wait_delivered("beat", int(said))
    assert len(agent.delivered("beat")) == int(said)


def test_no_build_notices_an_upgrade(agent: Installed) -> None:
    agent.machine.write(checkout("99.0"), CHECKOUT, "admin")
    loop = "n=0; while ! read -r -t 0.01 _; do artifacts-agent exec -- true; n=$((n + 1)); done; echo $n"
    with agent.machine.running(f"bash -ec {loop!r}", "ci") as builds:
        agent.follow("Upgrade")
        said, _ = builds.communicate("enough\n")
    assert (builds.returncode, said.isascii() and int(said.splitlines()[-1]) > 0) == (0, True), said
    assert agent.status()["version"] == "99.0"
    assert agent.machine.must("artifacts-agent --version", "ci").split()[-1] == "99.0"


def test_a_killed_daemon_comes_back_with_what_it_had_accepted(agent: Installed) -> None:
    agent.api.default = DOWN
    with agent.drop_in("RestartSec=100ms"):
        before = agent.wait_running()
        assert agent.emit("killed", 500).returncode == 0
        eventually(lambda: agent.ledger()["queued"], lambda queued: queued == 500)
        agent.machine.must(f"kill -KILL {before}")
        agent.wait_running(before)
        agent.api.default = Answer()
        agent.wait_delivered("killed", 500)


def test_the_watchdog_restarts_a_daemon_that_stands_still(agent: Installed) -> None:
    with agent.drop_in("WatchdogSec=2s", "TimeoutAbortSec=1s", "RestartSec=100ms"):
        before = agent.wait_running()
        agent.machine.must(f"kill -STOP {before}")
        assert agent.emit("watchdog").returncode == 0
        agent.wait_running(before)
        agent.wait_delivered("watchdog", 1)
    assert "Watchdog timeout" in agent.machine.journal(SERVICE)


@pytest.mark.parametrize("min_free", ["64MiB", "0"], ids=["at min_free_bytes", "to the last byte"])
def test_a_disk_that_others_fill_shows_and_passes(agent: Installed, min_free: str) -> None:
    """A small disk of its own, mounted where the queue is."""
    with small_disk(agent), agent.drop_in(f"Environment=ARTIFACTS_AGENT_QUEUE_MIN_FREE_BYTES={min_free}"):
        agent.api.default = DOWN
        assert agent.emit("before", 100).returncode == 0
        eventually(lambda: agent.ledger()["queued"], lambda queued: queued == 100)
        agent.machine.must(f"head -c 1G /dev/zero > {STATE}/full 2>/dev/null || true")
        agent.emit("full", 10_000)
        eventually(agent.check, lambda check: check.returncode == 7)
        assert agent.ledger()["dropped"]["disk_full"] > 0
        assert agent.machine.show(SERVICE, "ActiveState", "NRestarts") == ["active", "0"]
        agent.machine.must(f"rm {STATE}/full")
        agent.api.default = Answer()
        eventually(agent.check, lambda check: check.returncode == 0)
        assert agent.emit("after", 100).returncode == 0
        agent.wait_delivered("before", 100)
        agent.wait_delivered("after", 100)
        agent.must(f"sudo artifacts-agent flush --config {CONFIG} || test $? = 8")
        ledger = agent.ledger()
        assert ledger["accepted"] == ledger["delivered"] + ledger["dropped"]["disk_full"] == 10_200


@contextmanager
def small_disk(agent: Installed) -> Iterator[None]:
    """Have the queue on a disk of 80 MiB for the block, with a queue that is new."""
    owner = "uid=$(id -u artifacts-agent),gid=$(id -g artifacts-agent)"
    agent.machine.must(f"systemctl stop {SERVICE}; mount -t tmpfs -o size=80M,mode=0700,{owner} tmpfs {STATE}")
    try:
        yield
    finally:
        agent.machine.must(f"systemctl stop {SERVICE}; umount {STATE}; systemctl start {SERVICE}")


def test_its_memory_is_limited_and_suffices(agent: Installed) -> None:
    agent.api.default = DOWN
    with agent.drop_in("MemoryMax=96M"):
        for n in range(10):
            assert agent.emit(f"memory{n}", 10_000).returncode == 0
        agent.api.default = Answer()
        for n in range(10):
            agent.wait_delivered(f"memory{n}", 10_000)
        assert agent.machine.show(SERVICE, "Result", "NRestarts") == ["success", "0"]
    with agent.drop_in("MemoryMax=16M", "Restart=no"):
        eventually(lambda: agent.machine.show(SERVICE, "Result"), lambda result: result in (["oom-kill"], ["signal"]))


def test_a_reload_takes_a_new_configuration(agent: Installed) -> None:
    agent.edit('s|^slug = .*|slug = "another-team"|')
    agent.must("sudo systemctl reload artifacts-agent")
    assert agent.status()["api"]["slug"] == "another-team"
    agent.edit('s|^slug = .*|slug = "my-team"|')
    agent.must("sudo systemctl reload artifacts-agent")
    assert agent.status()["api"]["slug"] == "my-team"


# Who runs a hook, where its instructions put it, and how the system runs it.
HOOKS = {
    "github": ("ci", "/usr/local/lib/artifacts-agent/job-completed.sh", "bash -e {}"),
    "gitlab": ("gitlab-runner", "/usr/local/lib/artifacts-agent/after-job.sh", "set -o pipefail; {}"),
    "buildkite": ("buildkite-agent", "/etc/buildkite-agent/hooks/pre-exit", "bash -c '. {}'"),
}


@pytest.mark.parametrize("system", HOOKS)
def test_a_hook_that_is_installed_by_its_instructions_flushes_as_its_systems_user(
    agent: Installed, system: str
) -> None:
    user, path, command = HOOKS[system]
    instructions = re.findall(r"^#   (.*)$", agent.must(f"artifacts-agent hook {system}"), re.MULTILINE)
    (rule,) = (line for line in instructions if "NOPASSWD" in line)
    agent.must(f"sudo install -d /etc/buildkite-agent/hooks; sudo usermod --append --groups artifacts-agent {user}")
    agent.must("\n".join(line for line in instructions if " install " in line))
    agent.must(f"echo '{rule}' | sudo install -m 0440 /dev/stdin /etc/sudoers.d/artifacts-agent; sudo visudo --check")
    assert agent.emit(system, 3, user).returncode == 0
    said = agent.must(command.format(path), user)
    assert "Everything that was sent before has left the queue" in said, said
    agent.must(f"sudo rm -r /etc/sudoers.d/artifacts-agent {path}; sudo rm -rf /usr/local/lib/artifacts-agent")
    assert sorted(agent.delivered(system)) == [f"{system}-{n}" for n in range(3)]


def test_what_clients_send_to_a_daemon_with_a_wrong_configuration_waits_until_the_page_has_mended_it(
    agent: Installed,
) -> None:
    agent.edit("s|^slug = .*|slug = 7|")
    assert agent.machine.run(f"systemctl restart {SERVICE}").returncode != 0
    assert agent.machine.show(SERVICE, "ExecMainStatus") == ["78"]
    for n in range(25):
        assert agent.emit(f"waits{n}").returncode == 0
    agent.edit('s|^slug = .*|slug = "my-team"|')
    (mend,) = (
        each for each in re.findall(r"`([^`]+)`", section(read(PAGE), "Socket activation")) if "reset-failed" in each
    )
    agent.must(f"sudo sh -ec {shlex.quote(mend)}")
    for n in range(25):
        agent.wait_delivered(f"waits{n}", 1)


def test_a_refused_reload_fails_and_the_daemon_goes_on(agent: Installed) -> None:
    before = agent.wait_running()
    agent.edit("s|^slug = .*|slug = 7|")
    assert agent.machine.run("sudo systemctl reload artifacts-agent", "admin").returncode != 0
    agent.edit('s|^slug = .*|slug = "my-team"|')
    agent.must("sudo systemctl reload artifacts-agent")
    assert agent.wait_running() == before


def test_nothing_is_left_of_it_after_its_removal(agent: Installed) -> None:
    agent.follow("Uninstall")
    left = "find / -xdev -name '*artifacts-agent*' -not -path '/home/*' -not -path '/proc/*' -not -path '/sys/*'"
    assert agent.machine.must(left) == ""
    assert agent.machine.must("getent passwd artifacts-agent || getent group artifacts-agent || true") == ""
    assert agent.machine.must("systemctl list-units --all --plain --no-legend 'artifacts-agent*'") == ""
