"""`top` on a real terminal, watching a real daemon: what it shows, what its keys do, and that the terminal is left as it was."""

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.api_server import ApiServer
from tests.support.command import Terminal, problems, run_command
from tests.support.daemon import Daemon

OFTEN = ("--interval", "500ms")
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"  # the other screen of a terminal; the cursor is shown again
KEYS = "p pause · r try now · f flush · q quit"
HOSTILE = "s-\x1b]0;owned\x07\x9b2J\u202e"
_OWN = re.compile(r"\x1b\[(?:\?(?:25|1049)[lh]|[0-9;]*m|H)")


@pytest.fixture
def daemon(api_server: ApiServer) -> Iterator[Daemon]:
    """A daemon that delivers, with paths so short that a line with one of them fits on the screen."""
    with TemporaryDirectory(prefix="top-") as directory, Daemon(Path(directory), api_server.url) as daemon:
        yield daemon


def send(daemon: Daemon, session: str, hits: int, misses: int = 0) -> None:
    events = [("HIT", f"hit-{number}") for number in range(hits)]
    events += [("MISS", f"miss-{number}") for number in range(misses)]
    lines = [
        {"sessionId": session, "source": "REMOTE", "event": event, "hash": name, "duration": 0}
        for event, name in events
    ]
    with daemon.connect() as client:
        client.send(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        client.wait_settled(len(lines))


def watching(daemon: Daemon, *args: str, keyboard: bool = True, env: Mapping[str, str] | None = None) -> Terminal:
    return Terminal(
        "top", *OFTEN, *args, "--config", daemon.config, keyboard=keyboard, env={"PYTHONUTF8": "1", **(env or {})}
    )


def wait_for(terminal: Terminal, pattern: str) -> None:
    """Read until this has been shown."""
    while not re.search(pattern, terminal.text):
        terminal.wait_for_more()


def test_it_shows_events_as_they_come_and_the_builds_that_they_are_of(daemon: Daemon) -> None:
    with watching(daemon) as terminal:
        terminal.wait_for(KEYS)
        terminal.wait_for("delivering: nothing waits")
        terminal.wait_for("builds of the last 10 min: 0")
        send(daemon, "first-build", hits=3, misses=1)
        terminal.wait_for("builds of the last 10 min: 1")
        wait_for(terminal, r"first-build +75 % +4 +1 +0 +<?\d+s")
        terminal.wait_for("1 with 200")
        wait_for(terminal, r"  in  +[\d.]+/s +▁*█")
        send(daemon, "second-build", hits=1)
        terminal.wait_for("builds of the last 10 min: 2")
        terminal.type("q")
        assert terminal.finish() == 0


def test_it_shows_the_builds_of_all_destinations_those_that_are_retired_too(
    daemon: Daemon, api_server: ApiServer
) -> None:
    before = daemon.config.read_text()
    web = f'[destinations.web]\nurl = "{api_server.url}"\nslug = "webs"\n'  # without a token it is paused
    daemon.config.write_text(f'{before}{web}[[rules]]\nasks_for = "web"\ndestination = "web"\n')
    assert run_command("reload", "--config", daemon.config).returncode == 0
    send(daemon, "of-default", hits=2)
    with daemon.connect({"destination": "web"}) as client:
        client.send(b'{"sessionId":"of-web","source":"LOCAL","event":"HIT","hash":"h"}\n')
        client.wait_settled(1)
    builds = [r"of-default +default +100 % +2 ", r"of-web +web +100 % +1 "]
    shown = run_command("top", *OFTEN, "--once", "--config", daemon.config).stdout
    assert [bool(re.search(build, shown)) for build in builds] == [True, True], shown
    daemon.config.write_text(before)
    assert run_command("reload", "--config", daemon.config).returncode == 0
    assert "retired" in (shown := run_command("top", *OFTEN, "--once", "--config", daemon.config).stdout)
    assert [bool(re.search(build, shown)) for build in builds] == [True, True], shown


def test_its_keys_pause_resume_and_flush(daemon: Daemon, api_server: ApiServer) -> None:
    with watching(daemon) as terminal:
        terminal.wait_for(KEYS)
        terminal.type("x\x1bOP\x1b[A")  # no keys of its own: x, F1, up
        terminal.type("p")
        terminal.wait_for("p resume · r try now")
        assert daemon.destination().state == "paused"
        terminal.wait_for("paused by an operator")
        send(daemon, "s", hits=2)
        terminal.wait_for("2 events, the oldest is")
        terminal.type("f")
        terminal.wait_for("flushed: 0 events delivered, 2 still queued: ")
        terminal.type("p")
        terminal.wait_for("delivery goes on")
        daemon.wait_destination(lambda found: found.ledger.delivered == 2)
        terminal.type("p")
        daemon.wait_destination(lambda found: found.state == "paused")
        terminal.type("r")
        daemon.wait_destination(lambda found: found.state == "running")
        terminal.type("f")
        terminal.wait_for("flushed: 0 events delivered ")
        terminal.type("q")
        assert terminal.finish() == 0


def test_a_daemon_that_is_gone_or_restarted_is_said_and_it_goes_on(daemon: Daemon) -> None:
    with watching(daemon) as terminal:
        terminal.wait_for(KEYS)
        before = daemon.pid
        daemon.kill()
        terminal.wait_for("no daemon answers there")
        terminal.wait_for("what follows is 1 s old")
        terminal.type("p")  # which cannot be done
        daemon.start()
        terminal.wait_for(f"the daemon was restarted, or is another one: pid {daemon.pid}, before it pid {before}")
        send(daemon, "later", hits=1)
        terminal.wait_for("builds of the last 10 min: 1")
        terminal.type("q")
        assert terminal.finish() == 0


def test_a_daemon_that_hangs_is_said_and_does_not_keep_anybody_from_leaving(daemon: Daemon) -> None:
    with watching(daemon) as terminal:
        terminal.wait_for(KEYS)
        daemon.signal(signal.SIGSTOP)
        try:
            terminal.wait_for("no answer within 1 s")
            terminal.type("q")
            assert terminal.finish() == 0
        finally:
            daemon.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)]
)
def test_whatever_ends_it_the_terminal_is_as_it_was(daemon: Daemon, number: signal.Signals, code: int) -> None:
    with watching(daemon) as terminal:
        before = terminal.settings
        terminal.wait_for(KEYS)
        assert terminal.settings != before
        terminal.process.send_signal(number)
        assert terminal.finish() == code
        assert terminal.settings == before
        assert terminal.output.startswith(ENTERED)
        assert terminal.output.endswith(LEFT)


def test_while_it_is_suspended_the_terminal_is_as_it_was_and_then_it_goes_on(daemon: Daemon) -> None:
    # In a group of its own: the kernel does not suspend one whose parents are all elsewhere.
    with Terminal("top", *OFTEN, "--config", daemon.config, keyboard=True, group=0) as terminal:
        before = terminal.settings
        terminal.wait_for(KEYS)
        terminal.process.send_signal(signal.SIGTSTP)
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED)
        while LEFT not in terminal.output:
            terminal.wait_for_more()
        assert terminal.settings == before
        terminal.process.send_signal(signal.SIGCONT)
        while terminal.output.count(ENTERED) < 2 or KEYS not in terminal.output.rpartition(ENTERED)[2]:
            terminal.wait_for_more()
        assert terminal.settings != before
        terminal.type("q")
        assert terminal.finish() == 0
        assert terminal.settings == before


def last_screen(terminal: Terminal) -> list[str]:
    """The lines of the last whole screen: each begins at the top left."""
    return re.sub(r"\x1b\[[0-9;?]*[A-GI-Za-z]", "", terminal.output.split("\x1b[H")[-2]).split("\r\n")


def test_it_fits_a_terminal_of_any_size_and_follows_it(daemon: Daemon) -> None:
    send(daemon, "a-build-with-a-name-that-is-long", hits=1)
    with watching(daemon) as terminal:
        terminal.wait_for(KEYS)
        for lines, columns in ((30, 40), (50, 200), (3, 20)):
            terminal.resize(lines, columns)
            while len(last_screen(terminal)) != lines:
                terminal.wait_for_more()
            assert {len(line) for line in last_screen(terminal)} == {columns}
        terminal.type("q")
        assert terminal.finish() == 0


def test_hostile_names_command_no_terminal(daemon: Daemon) -> None:
    send(daemon, HOSTILE, hits=1)
    with watching(daemon) as terminal:
        terminal.resize(30, 200)  # room for the whole name
        terminal.wait_for(r"s-\x1b]0;owned\x07\x9b2J\u202e")
        terminal.type("q")
        terminal.finish()
    raw = {each for each in _OWN.sub("", terminal.output) if not each.isprintable()}
    assert raw == {"\r", "\n"}


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_only_where_they_are_wanted(daemon: Daemon, env: dict[str, str], coloured: bool) -> None:
    with watching(daemon, env=env) as terminal:
        terminal.wait_for("builds of the last 10 min: 0")
        terminal.type("q")
        assert terminal.finish() == 0
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.output)) == coloured


def test_without_a_keyboard_there_are_no_keys(daemon: Daemon) -> None:
    with watching(daemon, keyboard=False) as terminal:
        terminal.wait_for("builds of the last 10 min: 0")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.finish() == 143
    assert "q quit" not in terminal.text


def test_a_pipe_and_a_dumb_terminal_get_one_screen(daemon: Daemon) -> None:
    send(daemon, "a-build", hits=1)
    done = run_command("top", *OFTEN, "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for said in (
        "\ndefault\n",
        "  in             0/s",
        "\nbuilds of the last 10 min: 1\n",
        "  a-build     100 %      1",
    ):
        assert said in done.stdout
    with watching(daemon, env={"TERM": "dumb"}) as terminal:
        assert terminal.finish() == 0
    assert "a-build" in terminal.output
    assert "\x1b[" not in terminal.output
    with watching(daemon, "--once") as terminal:
        assert terminal.finish() == 0
    assert "a-build" in terminal.text
    assert ENTERED not in terminal.output


def test_where_the_queue_is_not_known_it_says_so_and_shows_the_rest(daemon: Daemon, tmp_path: Path) -> None:
    for env, why in (
        ({"ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(tmp_path / "nowhere")}, "there is no queue here"),
        ({"ARTIFACTS_AGENT_BATCH_MAX_EVENTS": "many"}, "ARTIFACTS_AGENT_BATCH_MAX_EVENTS"),
    ):
        done = run_command("top", "--once", *OFTEN, "--config", daemon.config, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "delivering: nothing waits" in done.stdout
        assert re.search(rf"\nbuilds\n  not known: .*{why}", done.stdout)


def test_without_a_daemon_or_with_an_interval_that_is_none_it_does_not_begin(daemon: Daemon) -> None:
    for interval in ("100ms", "2h", "soon"):
        done = run_command("top", "--interval", interval, "--config", daemon.config)
        assert done.returncode == 2
        assert "--interval" in done.stderr
    daemon.terminate()
    done = run_command("top", "--config", daemon.config)
    assert (done.returncode, done.stdout) == (4, "")
    assert "no daemon answers there" in problems(done.stderr)[0]
