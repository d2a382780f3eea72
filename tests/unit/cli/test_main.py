"""What the command line decides without a daemon: exit codes, the configuration's place, what it imports."""

import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import errors
from agent.cli.checks.local import examine
from agent.cli.commands.flush import LONGEST
from agent.cli.main import cli
from agent.cli.options import SYSTEM_CONFIG, find_config
from agent.cli.views.emit import NAMED_REJECTS, EmitReport
from agent.control import flush_routes as control_flush
from agent.errors import AgentError
from tests.support.command import environment

HEAVY = {"agent.config", "anyio", "asyncio", "h11", "httpx", "pydantic", "rich", "structlog", "uvloop"}


def imported_by(*args: str, env: dict[str, str] | None = None) -> set[str]:
    script = (
        "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr)); "
        f"sys.argv[1:] = {list(args)!r}; from agent.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(env), capture_output=True, stdin=subprocess.DEVNULL, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["emit", "--event", "HIT", "--source", "LOCAL", "--hash", "h"], {"ARTIFACTS_AGENT_SOCKET": ""}),
        (["emit", "-"], {}),
        (["--version"], {}),
        (["--help"], {}),
        ([], {"_ARTIFACTS_AGENT_COMPLETE": "bash_complete", "COMP_WORDS": "artifacts-agent ", "COMP_CWORD": "1"}),
    ],
    ids=["emit", "emit -", "version", "help", "completion"],
)
def test_what_must_be_quick_imports_nothing_heavy(args: list[str], env: dict[str, str]) -> None:
    assert imported_by(*args, env=env) & HEAVY == set()


def test_emitting_one_event_imports_nothing_but_click_and_the_client() -> None:
    options = ("--event", "MISS", "--source", "LOCAL", "--hash", "h")
    modules = imported_by("emit", *options, env={"ARTIFACTS_AGENT_SOCKET": ""})
    assert "pathlib" not in modules
    ours = {name for name in modules if name.startswith("agent.")}
    assert {".".join(name.split(".")[:2]) for name in ours} == {
        *("agent.cli", "agent.client", "agent.errors", "agent.escaping")
    }


def test_the_agent_of_a_job_does_without_a_command_line() -> None:
    script = (
        "import sys; from agent.cli.job import process; process.daemon_process.prepare(None); "
        "print(*sys.modules); import click"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert {"click", "pydantic"}.isdisjoint(done.stdout.split())


def agent_errors(root: type[AgentError] = AgentError) -> set[type[AgentError]]:
    below = {each for each in root.__subclasses__() if each.__module__ == errors.__name__}
    return {root}.union(*(agent_errors(each) for each in below))


def test_the_help_documents_every_exit_code() -> None:
    epilog = cli.epilog or ""
    documented = {int(words[0]) for line in epilog.splitlines() if (words := line.split()) and words[0].isdigit()}
    assert documented == {0, 2, 9, 10, 130, 141} | {error.exit_code for error in agent_errors()}


def test_the_longest_deadline_is_the_control_sockets() -> None:
    assert LONGEST == control_flush.MAX_DEADLINE


def raising(statement: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the real group whose work is to raise."""
    script = (
        "import sys, click; from agent.cli.main import cli, main; from agent.errors import *\n"
        f"def work():\n    {statement}\n"
        "cli.get_command = lambda ctx, name: click.Command('fail', callback=work)\n"
        "sys.argv[1:] = ['fail']\nsys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("error", sorted(agent_errors(), key=attrgetter("exit_code")), ids=attrgetter("__name__"))
def test_each_error_becomes_one_line_and_its_exit_code(error: type[AgentError]) -> None:
    done = raising(f"raise {error.__name__}('this is wrong: do that')")
    assert (done.returncode, done.stdout, done.stderr) == (
        error.exit_code,
        "",
        "artifacts-agent: this is wrong: do that\n",
    )


def test_errors_out_of_task_groups_become_a_line_each_and_repeats_are_said_once() -> None:
    done = raising(
        "raise ExceptionGroup('', [ExceptionGroup('', [StorageError('one'), ListenError('two')]), StorageError('one')])"
    )
    assert (done.returncode, done.stderr) == (7, "artifacts-agent: one\nartifacts-agent: two\n")


def test_each_line_of_a_message_is_a_problem() -> None:
    done = raising(r"raise ConfigError('one\ntwo')")
    assert (done.returncode, done.stderr) == (78, "artifacts-agent: one\nartifacts-agent: two\n")


def test_a_bug_keeps_its_traceback_and_hides_no_problem_beside_it() -> None:
    done = raising("raise ExceptionGroup('', [StorageError('one'), KeyError('bug')])")
    assert done.returncode == 1
    assert done.stderr.startswith("artifacts-agent: one\n")
    assert "Traceback" in done.stderr
    assert "KeyError: 'bug'" in done.stderr


def test_an_interrupt_ends_it_quietly() -> None:
    done = raising("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_the_configuration_is_the_named_file_else_the_systems_if_there_is_one(tmp_path: Path) -> None:
    system, named = tmp_path / "config.toml", tmp_path / "other.toml"
    assert find_config(None, system) is None
    system.touch()
    assert find_config(None, system) == system
    assert find_config(named, system) == named
    assert str(SYSTEM_CONFIG) == "/etc/artifacts-agent/config.toml"


@pytest.mark.parametrize(
    ("unsent", "rejected", "code"),
    [({}, 0, 0), ({"absent": 1, "full": 1}, 0, 4), ({"denied": 1}, 1, 4), ({"full": 1}, 0, 1), ({}, 1, 1)],
)
def test_strict_tells_a_missing_daemon_from_other_trouble(unsent: dict[str, int], rejected: int, code: int) -> None:
    report = EmitReport()
    report.unsent.update(unsent)
    for line in range(rejected):
        report.reject(line, "why")
    assert report.exit_code == code


def test_rejects_are_all_counted_and_only_the_first_named() -> None:
    report = EmitReport()
    for line in range(1000):
        report.reject(line, "why")
    assert report.rejected == 1000
    assert report.rejects == [(line, "why") for line in range(NAMED_REJECTS)]


def test_a_check_reports_a_systems_problems_all_at_once(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    config = tmp_path / "config.toml"
    config.write_text(
        f'[api]\ntoken_file = "absent"\n'
        f'[listen]\nstream = "file"\ndatagram = "file/d.sock"\ncontrol = "absent/deep/c.sock"\ngroup = "no-such-group"\n'
        f'[queue]\ndirectory = "file/queue"\nmin_free_bytes = "{2**62}"\n'
    )
    before = sorted(tmp_path.iterdir())
    findings = {finding.check: finding for finding in examine(config, {}, online=False)}
    problems = {name: finding.message for name, finding in findings.items() if not finding.ok}
    assert problems.keys() == {
        "token",
        "stream socket",
        "datagram socket",
        "control socket",
        "group",
        "queue directory",
        "free space",
    }
    assert f"{in_the_way}: exists and is not a socket" in problems["stream socket"]
    assert f"{in_the_way}: not a directory" in problems["datagram socket"]
    assert f"{tmp_path / 'absent'}: does not exist" in problems["control socket"]
    assert f"{in_the_way}: not a directory" in problems["queue directory"]
    assert "events would be dropped" in problems["free space"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_check_names_where_the_token_comes_from_and_never_the_token(tmp_path: Path) -> None:
    environ = {"TURBO_TOKEN": "do-not-show-me", "RUNTIME_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path)}
    findings = list(examine(None, environ, online=False))
    assert all(finding.ok for finding in findings), findings
    assert "token: from the variable TURBO_TOKEN" in [f"{finding.check}: {finding.message}" for finding in findings]
    assert "do-not-show-me" not in str(findings)


PROXIES = [
    ({}, True),
    ({"https_proxy": "http://p:1"}, True),
    ({"HTTP_PROXY": "http://p:1"}, False),
    ({"http_proxy": "http://p:1", "NO_PROXY": "a.example"}, False),
    ({"all_proxy": "http://p:1", "no_proxy": "a.example,127.0.0.1"}, True),
    ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, True),
]


@pytest.mark.parametrize(("variables", "ok"), PROXIES)
def test_a_proxy_that_clients_of_the_front_would_use_is_a_problem(
    variables: dict[str, str], ok: bool, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[http]\nlisten = "127.0.0.1:0"\n[front]\nenabled = true\n')
    environ = {"TURBO_TOKEN": "t", "RUNTIME_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path)}
    (found,) = [each for each in examine(config, environ | variables, online=False) if each.check == "proxy"]
    assert found.ok is ok
    assert ok or "add 127.0.0.1 to NO_PROXY" in found.message


@pytest.mark.parametrize(
    ("word", "hint"), [("statsu", " Did you mean 'status'?"), ("flsh", " Did you mean 'flush'?"), ("xyzzy", "")]
)
def test_a_misspelt_command_is_told_the_nearest_one(word: str, hint: str) -> None:
    done = CliRunner().invoke(cli, [word])
    assert done.exit_code == 2
    assert done.output.rstrip().endswith(f"No such command {word!r}.{hint}")


@pytest.mark.parametrize("group", [[], ["queue"], ["dead-letters"], ["monitoring"]])
def test_no_line_of_a_help_is_cut_off_on_a_terminal_of_80_columns(group: list[str]) -> None:
    text = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).output
    _, _, commands = text.partition("Commands:\n")
    assert commands
    assert "..." not in commands
