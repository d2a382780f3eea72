"""The commands `queue` and `dead-letters` on real queues: asked of a daemon, and without one, they say and do the same."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.accounts import flushed, holds, ledger, ledger_of
from tests.support.api_server import Answer, ApiServer
from tests.support.command import Terminal, environment, problems, run_command
from tests.support.daemon import Daemon, Sections
from tests.support.tools import require_root
from tests.support.waiting import HUNG_AFTER

SESSIONS = ("11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-aaaaaaaaaaaa")
CONTEXT = b'{"context":{"ci":"VERCEL","interactive":0}}\n'
NOWHERE = "http://127.0.0.1:1"
PAUSED = {"pause": {"rejections_in_a_row": 1000}}


def event(number: int, **more: object) -> dict[str, Any]:
    return {
        "sessionId": SESSIONS[number % 2],
        "source": ("LOCAL", "REMOTE")[number % 2],
        "event": ("HIT", "MISS")[number % 3 == 0],
        "hash": f"{number:016x}",
        **more,
    }


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps(event(number)).encode() + b"\n" for number in numbers)


def run(daemon: Daemon, *args: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    done = run_command(*args, "--config", daemon.config, stdin=stdin)
    return done.returncode, done.stdout, done.stderr


def ok(daemon: Daemon, *args: str | Path) -> str:
    """Run a command that has nothing to complain about."""
    code, out, err = run(daemon, *args)
    assert (code, err) == (0, ""), (args, code, out, err)
    return out


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def hashes(text: str) -> list[int]:
    return [int(row["hash"], 16) for row in rows(text)]


def settled(daemon: Daemon, **counts: int) -> None:
    daemon.wait_status(lambda status: counts.items() <= ledger_of(status).items())


def filled(daemon: Daemon, api_server: ApiServer) -> None:
    """Have four events delivered, two refused, and eight that wait, in two contexts."""
    api_server.reject_hashes = {f"{number:016x}" for number in (2, 5)}
    with daemon.connect() as client:
        client.send(lines(*range(6)))
        client.wait_settled(6)
    settled(daemon, delivered=4, dead_lettered=2)
    daemon.request("POST", "/pause")
    with daemon.connect() as client:
        client.send(lines(10, 11, 12))
        client.send(CONTEXT + lines(13, 14, 15, 16, 17))
        client.wait_settled(8)


class Filled(NamedTuple):
    """A daemon with a queue, its configuration, and the server's."""

    daemon: Daemon
    api_server: ApiServer


@pytest.fixture
def waiting(tmp_path: Path, api_server: ApiServer) -> Iterator[Filled]:
    """A daemon that is paused, over a queue with something of everything."""
    with Daemon(tmp_path / "d", api_server.url, PAUSED) as daemon:
        filled(daemon, api_server)
        yield Filled(daemon, api_server)


LOOKS: list[tuple[str, ...]] = [
    ("queue", "ls", "--json"),
    ("queue", "cat"),
    ("queue", "cat", "--json", "--session", SESSIONS[0], "--event", "HIT"),
    ("queue", "verify", "--json"),
    ("queue", "export", "-", "--limit", "5"),
    ("dead-letters", "ls", "--json"),
]


def test_every_look_is_the_same_with_a_daemon_and_without_and_changes_nothing(waiting: Filled) -> None:
    daemon = waiting.daemon
    online = [ok(daemon, *look) for look in LOOKS]
    daemon.kill()
    before = contents(daemon)
    assert [ok(daemon, *look) for look in LOOKS] == online
    assert contents(daemon) == before
    listing, events, some, verified, exported, letters = online
    (segment,) = json.loads(listing)["segments"]
    assert {name: segment[name] for name in ("events", "queued", "damaged")} == {
        "events": 14,
        "queued": 8,
        "damaged": 0,
    }
    assert hashes(events) == [10, 11, 12, 13, 14, 15, 16, 17]
    assert events.encode() == lines(*range(10, 18)).replace(b": ", b":").replace(b", ", b",")
    assert [(row["seq"], row["context"]["ci"]) for row in rows(some)] == [(7, None), (11, "VERCEL"), (13, "VERCEL")]
    assert json.loads(verified)["ok"]
    assert rows(exported)[0] == {"context": {"ci": None, "interactive": None}}
    assert rows(exported)[4] == {"context": {"ci": "VERCEL", "interactive": 0}}
    assert len(rows(exported)) == 7
    assert [(row["seq"], row["status"]) for row in rows(letters)] == [(3, 400), (6, 400)]
    shown = ok(daemon, "dead-letters", "show", "6")
    assert re.search(r"message +400 Bad Request: Invalid event 0000000000000005\n", shown)


def contents(daemon: Daemon) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in daemon.queue.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_purge_drops_what_waits_under_its_own_name_and_gives_the_room_back(waiting: Filled, online: bool) -> None:
    daemon = waiting.daemon
    if not online:
        daemon.kill()
    done = json.loads(ok(daemon, "queue", "purge", "--yes", "--json"))
    assert (done["purged"], done["problem"]) == (8, None)
    assert done["freed_bytes"] > 1000
    if not online:
        daemon.start()
    expected = ledger(14, delivered=4, dead_lettered=2) | {"dropped": {"purged": 8}}
    assert ledger_of(daemon.status()) == expected
    assert sum(path.stat().st_size for path in segments(daemon)) < 100
    daemon.request("POST", "/resume")
    with daemon.connect() as client:
        client.send(lines(20))
        client.wait_settled(1)
    settled(daemon, delivered=5)
    assert holds(ledger_of(daemon.status()))
    assert 'events_dropped_total{destination="default",reason="purged"} 8.0' in daemon.request("GET", "/metrics").text


def segments(daemon: Daemon) -> list[Path]:
    return sorted((daemon.queue / "default" / "segments").iterdir())


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_retry_after_the_server_changed_its_mind_delivers_the_event_and_counts_it(
    waiting: Filled, online: bool
) -> None:
    daemon, api_server = waiting
    api_server.reject_hashes = {f"{5:016x}"}
    if not online:
        daemon.kill()
    assert ok(daemon, "dead-letters", "retry") == "2 events of dead letters put back into the queue\n"
    if not online:
        daemon.start()
    assert daemon.request("GET", "/dead-letters").json() == {"letters": [], "next": None, "unreadable": 0}
    assert ledger_of(daemon.status()) == ledger(16, delivered=4, dead_lettered=2, queued=10, retried=2)
    daemon.request("POST", "/resume")
    assert flushed(daemon)
    assert ledger_of(daemon.status()) == ledger(16, delivered=13, dead_lettered=3, retried=2)
    letters = daemon.request("GET", "/dead-letters").json()["letters"]
    assert [(row["seq"], int(row["event"]["hash"], 16)) for row in letters] == [(16, 5)]
    assert 'events_retried_total{destination="default"} 2.0' in daemon.request("GET", "/metrics").text


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_retry_that_finds_no_room_sends_nobody_to_a_daemon_that_does_not_run(waiting: Filled, online: bool) -> None:
    daemon, api_server = waiting
    daemon.terminate()
    daemon.configure(api_server.url, {**PAUSED, "queue": {"min_free_bytes": "1000000GiB"}})
    if online:
        daemon.start()
    code, out, err = run(daemon, "dead-letters", "retry")
    (said,) = problems(err)
    assert (code, out) == (1, "No event was put back\n")
    assert said.startswith("2 letters stayed: the queue takes no more now (")
    hint = "`artifacts-agent status` says why" if online else "no daemon runs that would make room"
    assert said.endswith(f"): {hint}")


def test_requests_under_way_are_not_purged_but_end_first(tmp_path: Path, api_server: ApiServer) -> None:
    """The first request is answered late, and taken; whatever follows is never answered."""
    sections: Sections = {"batch": {"max_events": 4, "concurrency": 1}, "api": {"timeout": "3s"}}
    with Daemon(tmp_path / "d", api_server.url, sections) as daemon:
        api_server.script([Answer(delay=0.5)])
        api_server.default = Answer(mode="hang")
        with daemon.connect() as client:
            client.send(lines(*range(10)))
            client.wait_settled(10)
        api_server.wait_for_posts(1)
        answer = daemon.request("POST", "/queue/purge").json()
        assert (answer["purged"], answer["problem"]) == (6, None)
        assert [each["hash"] for each in api_server.accepted_events()] == [f"{number:016x}" for number in range(4)]
        assert ledger_of(daemon.status()) == ledger(10, delivered=4) | {"dropped": {"purged": 6}}


def test_a_purge_that_cannot_wait_any_longer_has_purged_nothing(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "d", api_server.url, {"api": {"timeout": "30s"}}) as daemon:
        api_server.default = Answer(mode="hang")
        daemon.send_lines(lines(1, 2))
        api_server.wait_for_posts(1)
        answer = daemon.request("POST", "/queue/purge?deadline=0.05")
        assert answer.status_code == 504
        assert "nothing was purged" in answer.json()["error"]["message"]
        assert ledger_of(daemon.status()) == ledger(2, queued=2)


def test_a_purge_asks_on_a_terminal_and_takes_no_for_an_answer(waiting: Filled) -> None:
    config = waiting.daemon.config
    for answer, code, left in (("n", 1, 8), ("y", 0, 0)):
        with Terminal("queue", "purge", "--config", config, keyboard=True) as terminal:
            terminal.wait_for("[y/N]")
            assert re.search(r"Drop 8 queued events, up to \d+ s old, for good\?", terminal.text)
            terminal.type(answer + "\n")
            assert terminal.finish() == code
        assert ledger_of(waiting.daemon.status())["queued"] == left
    with Terminal("queue", "purge", "--config", config, keyboard=True) as terminal:
        assert terminal.finish() == 0
        assert "[y/N]" not in terminal.text
        assert "0 events dropped: purged" in terminal.text


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_damaged_queue_is_verified_repaired_verified_and_delivered(waiting: Filled, online: bool) -> None:
    daemon, api_server = waiting
    daemon.terminate()
    (segment,) = segments(daemon)
    data = bytearray(segment.read_bytes())
    where = data.index(f"{11:016x}".encode())
    data[where] ^= 1
    segment.write_bytes(data)
    segment.chmod(0o644)
    (daemon.queue / "default" / "cursor.new").touch()
    if online:
        daemon.start()
    code, out, err = run(daemon, "queue", "verify")
    assert (code, err) == (1, "")
    place = rf"problem  segments/{segment.name}, offset [\d,]+: "
    assert re.search(place + r"\d+ damaged bytes in the place of 3 events from number 7 on\n", out)
    assert "costs: 3 queued events" in out
    assert "has mode 0644 instead of 0600" in out
    assert "2 problems in 1 segment, 2 records" in out
    code, _, err = run(daemon, "queue", "cat")
    assert (code, problems(err)) == (1, ["3 queued events cannot be read: `artifacts-agent queue verify` says why"])
    repaired = ok(daemon, "queue", "repair")
    assert "counted 3 events as dropped: corrupt\n" in repaired
    assert f"restored the permissions of segments/{segment.name}\n" in repaired
    assert "removed cursor.new, left by interrupted writes\n" in repaired
    verified = ok(daemon, "queue", "verify")
    assert "note" in verified
    assert "all of them are settled already" in verified
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600
    assert len(list((daemon.queue / "default" / "quarantine").iterdir())) == 1
    if not online:
        daemon.start()
    daemon.request("POST", "/resume")
    assert flushed(daemon)
    assert ledger_of(daemon.status()) == ledger(14, delivered=9, dead_lettered=2) | {"dropped": {"corrupt": 3}}
    assert [int(each["hash"], 16) for each in api_server.accepted_events()][4:] == [13, 14, 15, 16, 17]


def test_an_export_replays_byte_for_byte_in_its_contexts(waiting: Filled, tmp_path: Path) -> None:
    daemon, api_server = waiting
    copy = tmp_path / "copy.ndjson"
    assert ok(daemon, "queue", "export", copy) == f"8 events exported to {copy}\n"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"copy.ndjson", "d"}
    code, _, err = run(daemon, "queue", "export", copy)
    assert (code, problems(err)) == (1, [f"{copy}: already exists: choose another name, or add --force to replace it"])
    ok(daemon, "queue", "export", copy, "--force")
    daemon.request("POST", "/queue/purge")
    replayed = run_command(
        "emit",
        "--strict",
        "-",
        "--socket",
        daemon.stream,
        stdin=copy.read_bytes(),
        env={"CI": "1", "GITHUB_ACTIONS": "1"},
    )
    assert (replayed.returncode, replayed.stderr) == (0, "")
    settled(daemon, queued=8)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.stream))
        client.sendall(copy.read_bytes())
    settled(daemon, queued=16)
    daemon.request("POST", "/resume")
    assert flushed(daemon)
    systems = {request.headers.get("x-artifact-client-ci") for request in api_server.accepted()[1:]}
    assert systems == {None, "VERCEL"}


def test_letters_are_selected_by_number_status_message_and_age(waiting: Filled) -> None:
    daemon = waiting.daemon
    for query, numbers in (
        ("message=INVALID%20event%200000000000000005", [6]),
        ("status=422", []),
        ("before=1000000000", []),
        ("numbers=6,9", [6]),
        (f"session={SESSIONS[0]}&status=400", [3]),
    ):
        found = daemon.request("GET", f"/dead-letters?{query}").json()
        assert [row["seq"] for row in found["letters"]] == numbers
    assert ok(daemon, "dead-letters", "ls", "--json", "--older-than", "1h") == ""
    (first,) = rows(ok(daemon, "dead-letters", "ls", "--json", "--newer-than", "1h", "--limit", "1"))
    assert first["seq"] == 3
    code, _, err = run(daemon, "dead-letters", "purge", "--yes", "6", "7")
    assert (code, problems(err)) == (
        1,
        ["there is no dead letter 7, and nothing was done: see `artifacts-agent dead-letters ls`"],
    )
    assert ok(daemon, "dead-letters", "purge", "--yes", "6") == "1 dead letter removed\n"
    assert (
        ok(daemon, "dead-letters", "export", "-")
        == '{"context":{"ci":null,"interactive":null}}\n' + json.dumps(event(2), separators=(",", ":")) + "\n"
    )
    assert ledger_of(daemon.status())["dead_lettered"] == 2


def letter_file(daemon: Daemon) -> Path:
    (file,) = (daemon.queue / "default" / "dead-letters").glob("*.seg")
    return file


def damage_letter(daemon: Daemon, number: int) -> None:
    """Flip a bit of the letter about an event."""
    file = letter_file(daemon)
    data = bytearray(file.read_bytes())
    data[data.index(f"{number:016x}".encode())] ^= 1
    file.write_bytes(data)


UNREAD = "1 dead letter cannot be read: `artifacts-agent queue verify` says why"


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_damaged_letter_is_never_left_out_in_silence(waiting: Filled, tmp_path: Path, online: bool) -> None:
    daemon, copy = waiting.daemon, tmp_path / "copy"
    daemon.terminate()
    damage_letter(daemon, 2)
    if online:
        daemon.start()
        page = daemon.request("GET", "/dead-letters").json()
        assert ([row["seq"] for row in page["letters"]], page["unreadable"]) == ([6], 1)
    for look in (("ls", "--json"), ("export", copy)):
        code, out, err = run(daemon, "dead-letters", *look)
        assert (code, problems(err)) == (1, [UNREAD])
        assert ("0000000000000005" in out) == (copy not in look)
    assert hashes(copy.read_text().partition("\n")[2]) == [5]
    ok(daemon, "dead-letters", "show", "6")
    code, _, err = run(daemon, "dead-letters", "show", "3")
    assert (code, problems(err)) == (1, [f"there is no dead letter 3: {UNREAD}"])


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("what", ["retry", "purge"])
def test_a_damaged_letter_that_goes_with_others_is_named(waiting: Filled, what: str, online: bool) -> None:
    daemon = waiting.daemon
    daemon.terminate()
    damage_letter(daemon, 2)
    if online:
        daemon.start()
    code, out, err = run(daemon, "dead-letters", what, *(["--yes"] if what == "purge" else []))
    assert (code, err) == (int(what == "retry"), "")
    done = {"retry": "1 event of dead letters put back into the queue", "purge": "1 dead letter removed"}[what]
    assert out == f"{done}; 1 damaged letter went too: the bytes are in dead-letters/quarantine\n"
    assert ok(daemon, "dead-letters", "ls") == "No dead letters.\n"


@pytest.mark.parametrize("what", ["retry", "purge"])
def test_damaged_letters_that_nothing_goes_with_stay_and_are_said(waiting: Filled, what: str) -> None:
    daemon = waiting.daemon
    for number in (2, 5):
        damage_letter(daemon, number)
    before = letter_file(daemon).read_bytes()
    answer = daemon.request("POST", f"/dead-letters/{what}").json()
    assert (answer["damaged"], answer["unreadable"]) == (0, 2)
    code, out, err = run(daemon, "dead-letters", what, *(["--yes"] if what == "purge" else []))
    assert (code, problems(err)) == (1, [UNREAD.replace("1 dead letter", "2 dead letters")])
    assert out == {"retry": "No event was put back\n", "purge": "No dead letter was removed\n"}[what]
    assert letter_file(daemon).read_bytes() == before
    code, out, _ = run(daemon, "dead-letters", "ls")
    assert (code, out) == (1, "")
    code, _, err = run(daemon, "dead-letters", what, "3")
    assert (code, "there is no dead letter 3, and nothing was done: 2 dead letters cannot be read" in err) == (1, True)


def test_letters_in_a_file_that_cannot_be_opened_are_never_reported_as_none(api_server: ApiServer) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # the queue's owner has to get there
        with Daemon(Path(directory) / "d", api_server.url, PAUSED) as daemon:
            filled(daemon, api_server)
        if os.geteuid() == 0:  # root may read everything; the commands read as the queue's owner
            for path in [daemon.queue, *daemon.queue.rglob("*")]:
                os.chown(path, 12345, 12345)
        letter_file(daemon).chmod(0)
        for command in (("ls",), ("ls", "--json"), ("export", "-"), ("retry",), ("purge", "--yes")):
            code, _, err = run(daemon, "dead-letters", *command)
            assert (code, problems(err)) == (1, [UNREAD]), command
        code, out, _ = run(daemon, "queue", "verify")
        assert (code, "costs: 1 dead letter\n" in out) == (1, True)
        assert "cannot be read: Permission denied; it may hold more letters than one" in out
        letter_file(daemon).chmod(0o600)
        assert len(rows(ok(daemon, "dead-letters", "ls", "--json"))) == 2


def test_the_status_and_the_metrics_say_how_many_letters_are_kept_now(waiting: Filled) -> None:
    daemon = waiting.daemon
    for start, kept in ((False, 2), (False, 1), (True, 1), (False, 0)):
        if start:
            daemon.terminate()
            daemon.start()
        elif kept < 2:
            ok(daemon, "dead-letters", "purge", "--yes", *(["3"] if kept else []))
        status = daemon.status()["destinations"]["default"]
        assert (status["dead_letters"], status["ledger"]["dead_lettered"]) == (kept, 2)
        assert f'dead_letters{{destination="default"}} {kept}.0' in daemon.request("GET", "/metrics").text


@pytest.mark.parametrize("body", [b"{}", b'{"numbers":[3]}', b"[]", b"no JSON"], ids=repr)
@pytest.mark.parametrize("what", ["purge", "retry"])
def test_a_selection_in_the_query_is_never_overlooked_because_of_a_body(
    idle_daemon: Daemon, what: str, body: bytes
) -> None:
    answer = idle_daemon.request("POST", f"/dead-letters/{what}?numbers=6&status=400", content=body)
    assert answer.status_code == 400
    said = answer.json()["error"]["message"]
    assert said == "the query (numbers, status) and the body both say what is meant: use one of the two"


def test_a_purge_of_the_queue_with_a_selection_drops_nothing_at_all(waiting: Filled) -> None:
    daemon = waiting.daemon
    for query, body in ((f"?session={SESSIONS[0]}", b""), ("", b'{"event":"HIT"}'), ("?numbers=1", b"")):
        assert daemon.request("POST", f"/queue/purge{query}", content=body).status_code == 400
    assert ledger_of(daemon.status())["queued"] == 8
    assert daemon.request("POST", "/queue/purge?deadline=5", content=b"{}").json()["purged"] == 8


@pytest.mark.parametrize("what", ["purge", "retry"])
def test_a_request_that_says_twice_what_is_meant_changes_nothing(waiting: Filled, what: str) -> None:
    daemon = waiting.daemon
    assert daemon.request("POST", f"/dead-letters/{what}?numbers=6", content=b"{}").status_code == 400
    assert [row["seq"] for row in rows(ok(daemon, "dead-letters", "ls", "--json"))] == [3, 6]
    assert daemon.request("POST", f"/dead-letters/{what}?numbers=6").status_code == 200
    assert [row["seq"] for row in rows(ok(daemon, "dead-letters", "ls", "--json"))] == [3]
    assert daemon.request("POST", f"/dead-letters/{what}", content=b'{"numbers":[3]}').status_code == 200
    assert ok(daemon, "dead-letters", "ls", "--json") == ""


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("queue", "purge"), 2, "there is no terminal on which to ask for confirmation: add --yes"),
        (("queue", "cat", "--older-than", "soon"), 2, "'soon' is not a duration"),
        (("queue", "cat", "--limit", "0"), 2, "--limit"),
        (("queue", "export", "/nowhere/at/all"), 1, "/nowhere/at/all: cannot write there: No such file or directory"),
        (("dead-letters", "show", "1"), 1, "there is no dead letter 1"),
        (("queue", "nothing"), 2, "No such command 'nothing'"),
    ],
    ids=repr,
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, args: tuple[str, ...], code: int, said: str) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    daemon.queue.mkdir()
    done = run(daemon, *args) if args[-1] != "nothing" else tuple_of(run_command(*args))
    assert (done[0], done[1]) == (code, "")
    assert said in done[2].splitlines()[-1]


def tuple_of(done: Any) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def test_where_there_is_no_queue_nothing_is_created(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, NOWHERE)
    code, _, err = run(daemon, "queue", "ls")
    reason = "there is no queue here: no daemon has run with this configuration yet, or queue.directory is wrong"
    assert (code, problems(err)) == (7, [f"{daemon.queue}: {reason}"])
    assert not daemon.queue.exists()


def test_a_daemon_that_holds_the_queue_and_does_not_answer_is_named_with_what_to_do(tmp_path: Path) -> None:
    with Daemon(tmp_path, NOWHERE) as daemon:
        daemon.control.unlink()
        code, _, err = run(daemon, "queue", "ls")
    (said,) = problems(err)
    assert code == 5
    held = (
        f"{daemon.queue}: a daemon has locked this queue, but does not answer on its control socket ({daemon.control}: "
    )
    assert said.startswith(held)
    assert said.endswith("check listen.control, the daemon's process and its logs; or stop the daemon, and try again")


def test_root_leaves_nothing_in_a_daemons_queue_that_the_daemon_could_not_open(api_server: ApiServer) -> None:
    require_root()  # to give files away
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # the queue's owner has to get there
        with Daemon(Path(directory) / "d", api_server.url, PAUSED) as daemon:
            filled(daemon, api_server)
        for path in [daemon.queue, *daemon.queue.rglob("*")]:
            os.chown(path, 12345, 12345)
        ok(daemon, "dead-letters", "retry", "3")
        ok(daemon, "queue", "export", daemon.directory / "copy")
        assert {path.stat().st_uid for path in [daemon.queue, *daemon.queue.rglob("*")]} == {12345}
        assert (daemon.directory / "copy").stat().st_uid == 0


AS_SOMEBODY_ELSE = """
import contextlib, io, os, sys
from agent.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()  # as root, so that all is loaded: where this was cloned to, nobody else may be able to read it
os.setgroups([]), os.setgid(12345), os.setuid(12345)
sys.exit(main())
"""


@pytest.mark.parametrize(("running", "code"), [(True, 4), (False, 7)], ids=["running", "stopped"])
def test_somebody_who_may_not_is_told_who_may(running: bool, code: int) -> None:
    require_root()  # to become somebody else
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with Daemon(Path(directory) / "d", NOWHERE) as daemon:
            if not running:
                daemon.terminate()
            command = [sys.executable, "-c", AS_SOMEBODY_ELSE, "queue", "ls", "--config", str(daemon.config)]
            env = {name: value for name, value in environment().items() if not name.startswith("COV")}
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=HUNG_AFTER, check=False)
    (said,) = problems(done.stderr)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Permission denied" in said
    assert said.endswith("run it as the daemon's user, or as root")


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/queue/events?from=x", "from is a whole number"),
        ("GET", "/queue/events?limit=10001", "limit is a whole number, at most 10000"),
        ("GET", "/queue/events?source=SPACE", "$.source"),
        ("GET", "/queue/events?color=red", "unknown field `color`"),
        ("GET", "/dead-letters?status=bad", "$.status"),
        ("POST", "/queue/purge?deadline=-1", "deadline is a number of seconds"),
    ],
)
def test_a_request_that_is_not_understood_says_why(idle_daemon: Daemon, method: str, path: str, said: str) -> None:
    answer = idle_daemon.request(method, path)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def idle_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that nothing is sent to."""
    with Daemon(tmp_path_factory.mktemp("idle"), NOWHERE) as running:
        yield running
