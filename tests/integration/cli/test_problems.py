"""What is wrong, said in one line with a documented exit code; `check`, which says it before; and completion, help, output."""

import grp
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.accounts import ledger, ledger_of
from tests.support.api_server import ApiServer
from tests.support.command import COMMAND, environment, problems, run_command
from tests.support.daemon import Daemon
from tests.support.tools import require_tool
from tests.support.users import NOBODY, as_user
from tests.support.waiting import HUNG_AFTER

COMMANDS = (
    "run",
    "relay",
    "exec",
    "emit",
    "status",
    "top",
    "report",
    "web",
    "flush",
    "hook",
    "pause",
    "resume",
    "reload",
    "queue",
    "dead-letters",
    "monitoring",
    "rules",
    "config",
    "check",
    "fleet",
    "demo",
    "devserver",
    "completion",
)
NOWHERE = "http://127.0.0.1:1"
EVENT = b'{"sessionId":"11111111-2222-4333-8444-555555555555","source":"LOCAL","event":"MISS","hash":"h"}\n'


# run, and what keeps it from starting


def run_daemon(daemon: Daemon, env: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    done = run_command("run", "--config", daemon.config, env=env)
    return done.returncode, problems(done.stderr)


def test_a_second_daemon_on_the_same_queue_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with Daemon(tmp_path, NOWHERE) as daemon:
        code, said = run_daemon(daemon)
        assert ledger_of(daemon.status()) == ledger(0)
    assert code == 5
    assert said == [f"{daemon.queue}: another daemon uses this queue: stop it, or set another queue.directory"]


def test_a_file_in_a_sockets_place_is_left_alone(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    daemon.stream.write_text("precious")
    code, said = run_daemon(daemon)
    assert code == 6
    assert said == [f"{daemon.stream}: exists and is not a socket: move it away, or choose another path"]
    assert daemon.stream.read_text() == "precious"


def test_a_file_in_the_queues_place_is_left_alone(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    daemon.queue.write_text("precious")
    code, said = run_daemon(daemon)
    assert (code, len(said)) == (7, 1)
    assert said[0].startswith(f"{daemon.queue}: the queue directory cannot be used")
    assert daemon.queue.read_text() == "precious"


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("batch", {"max_event": 5}, r"batch\.max_event: unknown key; the nearest is batch\.max_events"),
        ("api", {"token_file": "."}, r"cannot read the token file: Is a directory"),
        ("api", {"token_file": "absent"}, r"cannot read the token file: No such file"),
        ("api", {"url": "ftp://example.org"}, r"api\.url = 'ftp://example\.org': should have a scheme and a host"),
        ("api", {"url": "http://example.org"}, r"should be https"),
        ("listen", {"control": "x" * 200}, r"listen\.control = .* a socket's path may have 107"),
        ("queue", {"max_bytes": "lots"}, r"queue\.max_bytes = 'lots': is not a size"),
    ],
    ids=["unknown key", "token is a directory", "no token file", "wrong URL", "plain http", "long path", "no size"],
)
def test_a_wrong_configuration_is_one_clear_line(
    tmp_path: Path, section: str, changes: dict[str, object], said: str
) -> None:
    daemon = Daemon(tmp_path, NOWHERE, {section: changes})
    code, found = run_daemon(daemon)
    assert (code, len(found)) == (78, 1)
    assert re.search(said, found[0])
    assert not daemon.queue.exists()


def test_every_mistake_of_a_configuration_is_named_at_once(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE, {"batch": {"max_event": 5}, "queue": {"max_bytes": "lots"}})
    code, found = run_daemon(daemon, env={"ARTIFACTS_AGENT_LOG_LEVEL": "loud"})
    assert (code, len(found)) == (78, 3)


def test_a_configuration_file_that_is_not_there_is_an_error_wherever_it_was_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    for args, env in ((["--config", str(absent)], {}), ([], {"ARTIFACTS_AGENT_CONFIG": str(absent)})):
        done = run_command("status", *args, env=env)
        assert done.returncode == 78
        assert problems(done.stderr) == [f"{absent}: cannot read: No such file or directory"]


# check


def test_a_check_finds_a_good_installation_good_and_leaves_nothing_behind(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    before = sorted(tmp_path.rglob("*"))
    done = run_command("check", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    assert f"token: from {daemon.token_file}" in done.stdout
    assert "daemon: not running" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_check_does_not_disturb_a_running_daemon(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url) as daemon:
        daemon.send_lines(2 * EVENT)
        delivered = ledger(2, delivered=2)
        before = daemon.wait_status(lambda now: ledger_of(now) == delivered and now["connections"] == 0)
        done = run_command("check", "--json", "--config", daemon.config)
        after, pid = daemon.status(), daemon.pid
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    assert {"check": "daemon", "ok": True, "message": f"running, pid {pid}"} in report["checks"]
    assert {**after, "uptime": 0} == {**before, "uptime": 0}


def test_a_check_tells_a_stale_socket_from_one_that_is_held_open(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        stale.bind(str(daemon.stream))
        stale.close()
        held.bind(str(daemon.datagram))
        done = run_command("check", "--config", daemon.config)
    assert done.returncode == 0
    assert f"stream socket: {daemon.stream}: left by a daemon that has ended; the next one replaces it" in done.stdout
    assert f"datagram socket: {daemon.datagram}: another process listens here" in done.stdout


def test_a_check_tells_a_daemon_that_is_stopped_from_another_process(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url) as daemon:
        daemon.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        done = run_command("check", "--config", daemon.config)
        daemon.signal(signal.SIGCONT)
        advice = f"`kill -CONT {daemon.pid}` lets it go on"
        assert (
            f"problem  daemon: stopped, pid {daemon.pid}, by a signal or a debugger: {advice}"
            in done.stdout.splitlines()
        )
        assert "another process" not in done.stdout
        assert done.returncode == 1


def test_a_check_tells_a_daemon_in_another_mount_namespace_from_another_process(tmp_path: Path) -> None:
    """As it is seen from here: its sockets are open, and their files are not here."""
    daemon = Daemon(tmp_path, "http://127.0.0.1:9")
    with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as stream:
        for each, path in ((control, daemon.control), (stream, daemon.stream)):
            each.bind(str(path))
            each.listen()
            path.unlink()
        done = run_command("check", "--config", daemon.config)
    elsewhere = (
        "a socket of this path is open in another mount namespace, such as a container's, or its file was removed"
    )
    assert f"ok       daemon: not running here: {elsewhere}" in done.stdout.splitlines()
    assert f"ok       stream socket: {daemon.stream}: not here: {elsewhere}" in done.stdout.splitlines()
    assert done.returncode == 0


def test_a_check_of_a_wrong_configuration_names_each_mistake(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE, {"batch": {"max_event": 5}, "queue": {"max_bytes": "lots"}})
    done = run_command("check", "--json", "--config", daemon.config)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert [(each["check"], each["ok"]) for each in report["checks"]] == [("configuration", False)] * 2


def test_a_check_warns_of_a_token_that_others_can_read_and_names_a_directory_that_others_can_write_to(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path / "d", NOWHERE)
    daemon.token_file.chmod(0o644)
    done = run_command("check", "--config", daemon.config)
    assert done.returncode == 0
    assert f"warning  token file: {daemon.token_file}: every user can read it: chmod o-r\n" in done.stdout
    daemon.token_file.chmod(0o600)
    daemon.directory.chmod(0o777)
    done = run_command("check", "--config", daemon.config)
    assert done.returncode == 1
    assert "warning" not in done.stdout
    assert f"problem  stream socket: {daemon.directory}: others can write there" in done.stdout


def test_a_check_says_what_is_missing_turned_off_or_does_not_answer(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    group = grp.getgrgid(os.getegid()).gr_name
    config.write_text(
        f'[listen]\nstream = "s.sock"\ndatagram = ""\ncontrol = "c.sock"\ngroup = "{group}"\n[queue]\ndirectory = "queue"\n'
    )
    with socket.socket(socket.AF_UNIX) as not_listening:
        not_listening.bind(str(tmp_path / "c.sock"))
        done = run_command("check", "--json", "--config", config)
    findings = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert {name for name, finding in findings.items() if not finding["ok"]} == {"token", "daemon"}
    assert "none found: set api.token_file" in findings["token"]["message"]
    assert "no daemon answers there (Connection refused)" in findings["daemon"]["message"]
    assert findings["datagram socket"]["message"] == "turned off"
    assert findings["group"]["message"] == group
    assert findings["queue directory"]["message"] == f"{tmp_path}/queue: the daemon will create it"


def test_a_check_by_a_user_without_places_of_its_own_is_about_the_daemon_of_the_system() -> None:
    command = [*as_user(NOBODY), *COMMAND, "check", "--json"]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "ARTIFACTS_AGENT_TOKEN": "t"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    findings = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert findings["configuration"]["ok"]
    assert findings["control socket"]["message"].startswith("/run")  # where systemd makes a directory for the daemon


# completion, help, output


def completions(shell: str, *words: str) -> list[str]:
    env = {
        "_ARTIFACTS_AGENT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = run_command(env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_completion_knows_commands_options_and_values() -> None:
    assert completions("bash", "artifacts-agent", "") == [f"plain,{name}" for name in COMMANDS]
    assert completions("bash", "artifacts-agent", "st") == ["plain,status"]
    assert completions("bash", "artifacts-agent", "status", "--j") == ["plain,--json"]
    assert completions("bash", "artifacts-agent", "emit", "--source", "L") == ["plain,LOCAL"]
    assert completions("bash", "artifacts-agent", "run", "--config", "/e") == ["file,/e"]
    assert completions("zsh", "artifacts-agent", "fl")[:2] == ["plain", "flush"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_this_command(shell: str) -> None:
    done = run_command("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_ARTIFACTS_AGENT_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_a_command_after_the_script_is_loaded(tmp_path: Path) -> None:
    bash = require_tool("bash", "apt-get install bash")
    command = tmp_path / "artifacts-agent"
    command.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(artifacts-agent completion bash) && COMP_WORDS=(artifacts-agent res) COMP_CWORD=1 && "
        "$(complete -p artifacts-agent | sed 's/.*-F \\([^ ]*\\) .*/\\1/') artifacts-agent && echo ${COMPREPLY[@]}"
    )
    env = environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "resume\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    short, long = run_command(command, "-h"), run_command(command, "--help")
    assert (short.returncode, short.stderr) == (0, "")
    assert short.stdout == long.stdout
    assert f"Usage: artifacts-agent {command}" in short.stdout
    assert len(short.stdout.splitlines()) > 6


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:  # noqa: PTH123 - a descriptor, not a path
        done = subprocess.run([*COMMAND, "completion", "zsh"], env=environment(), stdout=stdout, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_behind_the_output_is_one_clear_line() -> None:
    with Path("/dev/full").open("wb") as stdout:
        done = subprocess.run([*COMMAND, "completion", "zsh"], env=environment(), stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert problems(done.stderr.decode()) == ["standard output: cannot write: No space left on device"]
