"""No command lets what came from outside command the terminal of who reads it: each is run on one, over hostile text."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.queue.filesystem import OsFilesystem
from agent.queue.lock import lock_queue
from agent.secret import Secret
from agent.spools import identity
from agent.spools.identity import Account
from tests.support.api_server import ApiServer, error
from tests.support.command import Terminal, run_command
from tests.support.daemon import TOKEN, Daemon, Sections

# C0 with a title and a cleared screen, DEL, C1 with CSI and OSC, bidi controls, separators of lines and paragraphs, a tag.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x08\x7f\x85\x9b8m\x9d0;owned\x9c\u202e\u2066\u2028\u2029\u200f\ufeff\U000e0041"
IN_TEXT = r"\x1b]0;owned\x07\x1b[2J\x08\x7f\x85\x9b8m\x9d0;owned\x9c\u202e\u2066\u2028\u2029\u200f\ufeff\U000e0041"
IN_JSON = r"\u007f\u0085\u009b8m\u009d0;owned\u009c\u202e\u2066\u2028\u2029\u200f\ufeff\udb40\udc41"
NAME = "spool-\x1b[2J-\x9b2J-\n-\u202e"  # of a directory
NAME_IN_TEXT = r"spool-\x1b[2J-\x9b2J-\n-\u202e"
SESSION = f"session-{HOSTILE}"
REFUSED, QUEUED, FINE = (f"{name}-{HOSTILE}" for name in ("refused", "queued", "fine"))
_OWN = re.compile(r"\x1b\[(?:\?25[lh]|[0-9;]*m|[0-9]*[AK])")  # colours, and what a progress bar needs


def line(hash_: str) -> bytes:
    event = {"sessionId": SESSION, "source": "LOCAL", "event": "HIT", "hash": hash_, "duration": 1}
    return (
        json.dumps(event, ensure_ascii=False)
        .replace("\x1b", "\\u001b")
        .replace("\x07", "\\u0007")
        .replace("\x08", "\\b")
        .encode()
        + b"\n"
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.reject_hashes = {REFUSED}
        server.routes["GET", "/v8/artifacts/status"] = error(403, "forbidden", f"No {HOSTILE}")
        yield server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, server: ApiServer) -> Iterator[Daemon]:
    """A paused daemon with an event that waits, a dead letter, and spools with names and accounts to be wary of."""
    directory = tmp_path_factory.mktemp("hostile")
    spools = directory / "spools"
    for name, url in ((NAME, "http://127.0.0.1:9"), ("other-account", f"http://{HOSTILE}")):
        lock = lock_queue(OsFilesystem(), spools / name)
        identity.identify(OsFilesystem(), spools / name, Account(url).with_token(Secret(TOKEN)), name)
        lock.release()
    sections: Sections = {"queue": {"adopt": str(spools)}, "pause": {"rejections_in_a_row": 1000}}
    with Daemon(directory / "d", server.url, sections) as daemon:
        daemon.send_lines(line(REFUSED) + line(FINE))
        daemon.wait_status(lambda status: status["destinations"]["default"]["ledger"]["dead_lettered"] == 1)
        daemon.wait_status(lambda status: len(status["adopted"]["left"]) == 2)
        daemon.request("POST", "/pause")
        daemon.send_lines(line(QUEUED))
        daemon.wait_status(lambda status: status["destinations"]["default"]["ledger"]["queued"] == 1)
        yield daemon


def shown(*args: str | Path) -> str:
    """Run a command on a terminal; return what it showed, of which no character commands the terminal but its own."""
    with Terminal(*args, env={"PYTHONUTF8": "1"}) as terminal:
        terminal.finish()
    return plain(terminal.output)


def plain(output: str) -> str:
    text = _OWN.sub("", output).replace("\r\n", "\n").replace("\r", "")
    raw = {character for character in text if not character.isprintable()} - {"\n"}
    assert raw == set(), f"{raw} in {text!r}"
    return text


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("queue cat", IN_JSON),
        ("queue cat --json", IN_JSON),
        ("queue export -", IN_JSON),
        ("queue export - --json", IN_JSON),
        ("queue ls", "1 event queued"),
        ("queue verify", "no problem"),
        ("dead-letters ls --json", IN_JSON),
        ("dead-letters ls", r"refused-\x1b]0;owned"),
        ("dead-letters show 1", IN_TEXT),
        ("dead-letters show 1 --json", IN_JSON),
        ("dead-letters export -", IN_JSON),
        ("dead-letters export - --json", IN_JSON),
        ("status --json", IN_JSON),
        ("status", r"http://\x1b]0;owned"),
        ("status", r"spool-\x1b[2J-\x9b2J"),
        ("status --check", "paused"),
        ("top --once --interval 500ms", r"session-\x1b]0;own"),
        ("check --online", "403 Forbidden: No"),
        ("check --online --json", "403 Forbidden: No"),
        ("flush --deadline 100ms", "paused by an operator"),
    ],
)
def test_what_came_from_outside_is_escaped_on_a_terminal(daemon: Daemon, command: str, said: str) -> None:
    text = shown(*command.split(), "--config", daemon.config)
    assert said in text.replace("\n", ""), text


@pytest.mark.parametrize(
    "args",
    [
        (HOSTILE,),
        ("status", f"--{HOSTILE}"),
        ("status", HOSTILE),
        ("status", "--config", f"/nonexistent/{HOSTILE}"),
        ("emit", "--event", HOSTILE, "--source", "LOCAL", "--hash", "h"),
        ("emit", "--event", HOSTILE, "--source", "LOCAL", "--hash", "h", "--strict"),
        ("emit", "--event", "HIT", "--source", "LOCAL", "--hash", "h", "--socket", f"/nonexistent/{HOSTILE}"),
        ("exec", f"/nonexistent/{HOSTILE}"),
        ("queue", "ls", "--config", f"/nonexistent/{HOSTILE}"),
        ("hook", HOSTILE),
        ("completion", HOSTILE),
        ("status", "--config", "/nonexistent/\udc9b31m\udcff"),  # bytes of another encoding
    ],
    ids=range(12),
)
def test_mistakes_are_told_of_with_what_is_in_them_escaped(args: tuple[str, ...]) -> None:
    text = shown(*args)
    assert r"\x9b8m" in text or r"\udc9b" in text
    assert r"\x9b8m" not in text or IN_TEXT in text, text


def test_a_session_is_escaped_in_the_report_of_a_flush(daemon: Daemon) -> None:
    text = shown("flush", "--deadline", "100ms", "--session", HOSTILE, "--config", daemon.config)
    assert r"\x9b8m" in text


def test_bad_lines_of_standard_input_are_told_of_with_what_is_in_them_escaped(daemon: Daemon) -> None:
    bad = {"sessionId": "s", "source": HOSTILE, "event": "HIT", "hash": "h", HOSTILE: 1}
    done = run_command("emit", "-", "--socket", daemon.stream, stdin=json.dumps(bad).encode() + b"\n")
    assert done.stderr.startswith("artifacts-agent: line 1: ")
    plain(done.stderr)


def test_an_export_is_escaped_in_the_file_as_well_and_holds_the_same_values(daemon: Daemon, tmp_path: Path) -> None:
    target = tmp_path / f"export-{NAME}"
    text = shown("queue", "export", target, "--config", daemon.config)
    assert f"1 event exported to {tmp_path}/export-{NAME_IN_TEXT}\n" == text
    exported = target.read_text()
    assert exported.isascii()
    assert [json.loads(each).get("hash") for each in exported.splitlines()][-1] == QUEUED


def test_a_file_in_the_queue_is_named_with_its_controls_escaped(daemon: Daemon) -> None:
    foreign = daemon.queue / "default" / "segments" / f"{NAME}.tmp"
    foreign.write_bytes(b"")
    try:
        text = shown("queue", "verify", "--config", daemon.config)
        assert NAME_IN_TEXT in text
        assert text.count("\n-") == 0
    finally:
        foreign.unlink()


def test_the_log_on_a_terminal_shows_what_came_from_outside_escaped(tmp_path: Path, server: ApiServer) -> None:
    daemon = Daemon(tmp_path / "d", server.url, {"queue": {"adopt": str(tmp_path / "spools")}})
    lock = lock_queue(OsFilesystem(), tmp_path / "spools" / NAME)
    identity.identify(OsFilesystem(), tmp_path / "spools" / NAME, Account(f"http://{HOSTILE}"), "id")
    lock.release()
    with Terminal("run", "--config", daemon.config, env={"PYTHONUTF8": "1"}) as terminal:
        terminal.wait_for("spool_left")
        daemon.send_lines(line(REFUSED) + line(FINE))
        terminal.wait_for("dead_letter")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.finish()
    text = plain(terminal.output)
    assert r"\x9b8m" in text
    assert NAME_IN_TEXT in text


def test_the_test_server_shows_what_it_receives_escaped() -> None:
    with Terminal("devserver", env={"PYTHONUTF8": "1"}) as terminal:
        terminal.wait_for("Ctrl-C ends the server")
        found = re.search(r"The API is at (\S+), and its token is (\S+)", terminal.text)
        assert found is not None
        headers = {b"authorization": b"Bearer " + found[2].encode(), b"x-artifact-client-ci": b"\x9b2J"}
        team = {"slug": HOSTILE}
        events = f"[{line(FINE).decode()}]".encode()
        assert httpx.post(f"{found[1]}/v8/artifacts/events", params=team, headers=headers, content=events).is_success
        httpx.post(f"{found[1]}/\x9b2J", headers=headers)
        terminal.wait_for("404")
        terminal.process.send_signal(signal.SIGINT)
        terminal.finish()
    text = plain(terminal.output)
    assert f"fine-{IN_TEXT}" in text.replace("\n", "")
