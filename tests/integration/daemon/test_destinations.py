"""Several destinations in one daemon: rules decide over all ways in, none takes anything from another, and they come and go."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.client import EventClient
from agent.control.schema import DestinationStatus
from tests.support.accounts import holds
from tests.support.api_server import Answer, ApiServer
from tests.support.command import run_command
from tests.support.daemon import Conversation, Daemon, Sections
from tests.support.tools import require_root
from tests.support.waiting import HUNG_AFTER, eventually

BUILDER, STRANGER = 12345, 23456
WEB_TOKEN, CLIENTS_TOKEN, WEB_CLIENTS_TOKEN = "token-of-web", "token-of-clients", "token-of-webs-clients"
SECTIONS: Sections = {"listen": {"mode": "0666"}, "log": {"format": "json"}}
# Sends one event as a user and a group, in one of the ways, and prints what is answered.
CLIENT = """
import http.client, json, os, socket, sys
uid, gid, directory, way, name, token, query = sys.argv[1:]
if int(uid) != os.getuid():
    os.setgroups([int(gid)])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(int(uid), int(uid), int(uid))
event = {"sessionId": "11111111-1111-4111-8111-111111111111", "source": "LOCAL", "event": "HIT", "hash": name}
line = json.dumps(event).encode() + b"\\n"
if way in {"stream", "short"}:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(directory + "/s.sock")
        if way == "short":
            client.sendall(line)
        else:
            client.sendall(b'{"context":{"ack":"durable"}}\\n' + line)
            print(client.makefile("rb").readline().decode())
elif way == "datagram":
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(line, directory + "/d.sock")
else:
    if way == "http":
        connection = http.client.HTTPConnection("agent")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(directory + "/h.sock")
    else:
        connection = http.client.HTTPConnection(way)
    headers = {"Authorization": "Bearer " + token} if token else {}
    connection.request("POST", "/v8/artifacts/events" + query, json.dumps([event]), headers)
    answer = connection.getresponse()
    print(json.dumps({"status": answer.status, "body": answer.read().decode()}))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can look into."""
    path = Path(tempfile.mkdtemp(prefix="dest-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class Host(NamedTuple):
    """A daemon with the destinations default and web, and the API of each."""

    daemon: Daemon
    default: ApiServer
    web: ApiServer

    def configure(self, more: str, sections: Sections | None = None) -> None:
        """Write the configuration: that of the tests, and `more`, in which WEB stands for the table of web."""
        token = self.daemon.directory / "web-token"
        web = f'[destinations.web]\nurl = "{self.web.url}"\ntoken_file = "{token}"\n'
        self.daemon.configure(self.default.url, {**SECTIONS, **(sections or {})})
        self.daemon.config.write_text(self.daemon.config.read_text() + more.replace("WEB", web))

    def reload(self, more: str, sections: Sections | None = None) -> dict[str, Any]:
        """Have the daemon take another configuration over; return what it answers."""
        self.configure(more, sections)
        answer: dict[str, Any] = self.daemon.request("POST", "/reload").raise_for_status().json()
        return answer

    def status(self, name: str) -> DestinationStatus:
        """Return how a destination is doing."""
        return self.daemon.report().destinations[name]

    def wait_delivered(self, name: str, count: int) -> None:
        """Return when so many events of a destination have been delivered."""
        eventually(lambda: self.status(name).ledger.delivered, lambda delivered: delivered == count, HUNG_AFTER)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of an event."""
        lines = (json.loads(line) for line in self.daemon.stderr_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]


@contextmanager
def host(
    directory: Path, more: str, sections: Sections | None = None, *, web_token: str | None = WEB_TOKEN
) -> Iterator[Host]:
    """Start a daemon with two APIs, each of which takes its own token alone."""
    with ExitStack() as open_:
        default, web = ApiServer(), ApiServer(token=WEB_TOKEN)
        daemon = Daemon(directory, "http://127.0.0.1:9", SECTIONS)
        default.token = daemon.token_file.read_text()
        for server in (default, web):
            open_.enter_context(server)
        if web_token is not None:
            (directory / "web-token").write_text(web_token)
        made = Host(daemon, default, web)
        made.configure(more, sections)
        open_.enter_context(daemon)
        yield made
        for server in (default, web):
            assert not server.violations


def hashes(server: ApiServer) -> set[str]:
    """Return what an API has got."""
    return {event["hash"] for event in server.accepted_events()}


def settled(client: Conversation, count: int) -> dict[str, Any]:
    """Read acks until so many events are durable or dropped; return that ack."""
    while (ack := client.answer()) is not None:
        if ack["durable"] + ack.get("dropped", 0) >= count:
            return ack
    raise AssertionError(f"the connection ended before {count} events were settled")


def send(
    daemon: Daemon, way: str, name: str, *, uid: int = 0, gid: int = 65534, token: str = "", query: str = ""
) -> dict[str, Any]:
    """Send an event as a user, who is in a group besides; return the answer, if there is one."""
    arguments = [str(uid), str(gid), str(daemon.directory), way, name, token, query]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments], check=True, capture_output=True, timeout=HUNG_AFTER
    )
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    return answer


def port_of(daemon: Daemon) -> str:
    """Return where the daemon listens over TCP."""
    found = daemon.report().http
    assert found is not None
    assert found.listen is not None
    return found.listen


OVER_HTTP: Mapping[str, Mapping[str, object]] = {"http": {"socket": "h.sock"}}


@pytest.mark.parametrize("condition", [f"uid = {BUILDER}", "gid = 777"])
@pytest.mark.parametrize("way", ["stream", "short", "datagram", "http"])
def test_rules_decide_by_user_and_group_over_each_socket(directory: Path, way: str, condition: str) -> None:
    require_root()
    if (way, condition) == ("datagram", "gid = 777"):
        condition = "gid = 65534"  # of a datagram's sender only the first group is known
    rules = f"""
        WEB
        [[rules]]
        uid = {STRANGER}
        deny = true
        [[rules]]
        {condition}
        destination = "web"
        """
    with host(directory, rules, OVER_HTTP) as made:
        send(made.daemon, way, "root")
        send(made.daemon, way, "builder", uid=BUILDER, gid=777)
        denied = send(made.daemon, way, "stranger", uid=STRANGER)
        made.wait_delivered("default", 1)
        made.wait_delivered("web", 1)
        assert (hashes(made.default), hashes(made.web)) == ({"root"}, {"builder"})
        if way == "stream":
            assert denied == {"durable": 0, "rejected": 0, "dropped": 1, "dropped_by_reason": {"denied": 1}}
        if way == "http":
            assert denied["status"] == 403
            assert "rule 1 denies this sender" in denied["body"]
        else:
            assert eventually(lambda: made.daemon.report().denied, bool, HUNG_AFTER) == 1
            log = made.logged("events_denied")[0]
            assert (log["uid"], log["reason"]) == (STRANGER, "rule 1 denies this sender")


def test_over_tcp_a_token_decides_and_else_the_team(directory: Path) -> None:
    for name, token in (("clients", CLIENTS_TOKEN), ("web-clients", WEB_CLIENTS_TOKEN)):
        (directory / name).write_text(token)
    http = {"listen": "127.0.0.1:0", "token_file": "clients"}
    rules = """
        WEB
        slug = "web"
        [http.tokens]
        web = "web-clients"
        [[rules]]
        socket = "tcp"
        slug = "web"
        destination = "web"
        [[rules]]
        socket = "tcp"
        slug = "gone"
        deny = true
        """
    with host(directory, rules, {"http": http}) as made:
        where = port_of(made.daemon)
        assert send(made.daemon, where, "no-token")["status"] == 401
        assert send(made.daemon, where, "web-1", token=WEB_CLIENTS_TOKEN)["status"] == 200
        assert send(made.daemon, where, "web-2", token=CLIENTS_TOKEN, query="?slug=web")["status"] == 200
        assert send(made.daemon, where, "default", token=CLIENTS_TOKEN)["status"] == 200
        assert send(made.daemon, where, "denied", token=CLIENTS_TOKEN, query="?slug=gone")["status"] == 403
        other_team = send(made.daemon, where, "other", token=WEB_CLIENTS_TOKEN, query="?slug=gone")
        assert (other_team["status"], "destinations.web.slug" in other_team["body"]) == (400, True)
        made.wait_delivered("web", 2)
        made.wait_delivered("default", 1)
        assert (hashes(made.default), hashes(made.web)) == ({"default"}, {"web-1", "web-2"})


def line(name: str) -> bytes:
    """Return an event's line."""
    event = {"sessionId": "11111111-1111-4111-8111-111111111111", "source": "LOCAL", "event": "HIT", "hash": name}
    return json.dumps(event).encode() + b"\n"


ASKING = """
    WEB
    [[rules]]
    asks_for = "web"
    destination = "web"
    """


def test_a_context_line_chooses_among_what_rules_allow(directory: Path) -> None:
    with host(directory, ASKING) as made:
        with made.daemon.connect() as client:
            client.send(line("first"))
            client.send(b'{"context":{"destination":"web"}}\n' + line("second"))
            client.send(b'{"context":{"destination":"mobile"}}\n' + line("third"))
            client.send(b'{"context":{"destination":null}}\n' + line("fourth"))
            ack = settled(client, 4)
        assert ack == {"durable": 3, "rejected": 0, "dropped": 1, "dropped_by_reason": {"denied": 1}}
        made.wait_delivered("default", 2)
        made.wait_delivered("web", 1)
        assert (hashes(made.default), hashes(made.web)) == ({"first", "fourth"}, {"second"})
        (log,) = made.logged("events_denied")
        assert log["reason"] == "the destination 'mobile' is not for this sender: no rule lets this sender choose it"


def test_without_rules_or_with_deny_nobody_gets_elsewhere(directory: Path) -> None:
    with host(directory, "WEB", {"listen": {"mode": "0666", "default": "deny"}}) as made:
        with made.daemon.connect() as client:
            client.send(line("a"))
            assert settled(client, 1)["dropped_by_reason"] == {"denied": 1}
        made.reload("WEB")
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("b"))
            assert settled(client, 1)["dropped_by_reason"] == {"denied": 1}


def test_one_that_is_blocked_takes_nothing_from_the_others_and_ledgers_are_exact_after_a_kill(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.web.default = Answer(402)
        for _ in range(2):
            for name in ("default", "web"):
                with made.daemon.connect({"destination": name}) as client:
                    for number in range(50):
                        client.send(line(f"{name}-{number}"))
                    assert settled(client, 50)["durable"] == 50
            eventually(lambda: made.status("web").state, lambda state: state == "paused", HUNG_AFTER)
            made.daemon.kill()
            made.daemon.start()
        made.wait_delivered("default", 100)
        web = made.status("web")
        assert (web.state, web.ledger.queued, web.ledger.delivered) == ("paused", 100, 0)
        made.web.default = Answer()
        assert run_command("resume", "--destination", "web", "--config", made.daemon.config).returncode == 0
        made.wait_delivered("web", 100)
        for name in ("default", "web"):
            assert holds(made.daemon.status()["destinations"][name]["ledger"])
        assert len(hashes(made.default)) == len(hashes(made.web)) == 50


def test_one_without_a_token_is_paused_and_says_why_until_it_has_one(directory: Path) -> None:
    with host(directory, ASKING, web_token=None) as made:
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        web = eventually(lambda: made.status("web"), lambda found: found.state == "paused", HUNG_AFTER)
        assert web.reason is not None
        assert "cannot read the token file" in web.reason
        (warning,) = made.logged("no_token")
        assert warning["destination"] == "web"
        (directory / "web-token").write_text(WEB_TOKEN)
        made.wait_delivered("web", 1)  # the file is looked at every few seconds
        assert hashes(made.web) == {"a"}


def test_a_token_of_one_that_is_not_usable_stops_nobody_elses(directory: Path) -> None:
    for name, token in (("clients", CLIENTS_TOKEN), ("web-clients", WEB_CLIENTS_TOKEN), ("mobile-clients", "m")):
        (directory / name).write_text(token)
    sections: Sections = {"http": {"listen": "127.0.0.1:0", "token_file": "clients"}, "log": {"format": "json"}}
    text = """
        [http.tokens]
        web = "web-clients"
        mobile = "mobile-clients"
        WEB
        [destinations.mobile]
        token_file = "web-token"
        """
    with host(directory, text, sections) as made:
        for content, wrong in (("", "the token is empty"), (WEB_CLIENTS_TOKEN, "web and mobile have the same token")):
            (directory / "mobile-clients").write_text(content)
            answer = made.reload(text, sections)
            (refused,) = answer["tokens_refused"]
            assert refused.startswith("mobile: ")
            assert wrong in refused
            assert made.status("mobile").token_error == refused.removeprefix("mobile: ")
            assert made.logged("token_refused")[-1]["destination"] == "mobile"
            assert send(made.daemon, port_of(made.daemon), wrong[:9], token="m")["status"] == 200
        made.daemon.token_file.write_text("two\nlines")  # nor is the one of [api]
        (directory / "web-token").write_text("rotated")
        made.web.token = "rotated"
        done = run_command("reload", "--config", made.daemon.config)
        assert done.returncode == 78
        assert done.stdout.startswith("Reloaded: ")
        assert "token refused: default: " in done.stderr
        assert send(made.daemon, port_of(made.daemon), "a", token=WEB_CLIENTS_TOKEN)["status"] == 200
        made.wait_delivered("web", 1)
        made.daemon.token_file.write_text(str(made.default.token))
        made.daemon.terminate()
        made.daemon.start()
        for name, token, status in (("b", "m", 401), ("c", WEB_CLIENTS_TOKEN, 401), ("d", CLIENTS_TOKEN, 200)):
            assert send(made.daemon, port_of(made.daemon), name, token=token)["status"] == status
        checked = run_command("check", "--config", made.daemon.config)
        assert "the same token" in checked.stdout + checked.stderr
        (directory / "mobile-clients").write_text("m")
        assert made.reload(text, sections)["tokens_refused"] == []
        assert send(made.daemon, port_of(made.daemon), "e", token=WEB_CLIENTS_TOKEN)["status"] == 200
        assert made.status("mobile").token_error is None


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_one_whose_directory_cannot_be_used_fails_alone(directory: Path, in_the_way: str) -> None:
    (directory / "queue" / "destinations").mkdir(parents=True)
    web_directory = directory / "queue" / "destinations" / "web"
    if in_the_way == "file":
        web_directory.write_text("in the way")
    else:
        (directory / "elsewhere").mkdir()
        web_directory.symlink_to(directory / "elsewhere")
    with host(directory, ASKING) as made:
        web = made.status("web")
        assert web.state == "failed"
        assert web.reason is not None
        assert "move away what is in the way" in web.reason
        assert made.daemon.request("GET", "/readyz").status_code == 503
        with made.daemon.connect() as client:
            client.send(line("a") + b'{"context":{"destination":"web"}}\n' + line("b"))
            ack = settled(client, 2)
        assert (ack["durable"], ack["dropped_by_reason"]) == (1, {"denied": 1})
        made.wait_delivered("default", 1)
        (directory / "queue" / "destinations" / "web").unlink()
        made.reload(ASKING)
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("c"))
            assert settled(client, 1)["durable"] == 1
        made.wait_delivered("web", 1)


def test_one_that_is_removed_delivers_what_it_has_and_takes_nothing_new(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.web.default = Answer(503)
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
            assert made.reload("")["changed"] == ["destinations.web", "rules"]
            assert made.status("web").retired
            client.send(line("b"))
            assert settled(client, 2)["dropped_by_reason"] == {"denied": 1}
        made.web.default = Answer()
        eventually(lambda: made.daemon.report().destinations, lambda found: "web" not in found, HUNG_AFTER)
        assert hashes(made.web) == {"a"}
        made.reload(ASKING)
        assert made.status("web").ledger.delivered == 1
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("c"))
            assert settled(client, 1)["durable"] == 1
        made.wait_delivered("web", 2)
        assert made.daemon.terminate() == 0


def test_one_that_comes_back_before_it_is_empty_goes_on(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.web.default = Answer(503)
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        made.reload("")
        made.reload(ASKING)
        assert not made.status("web").retired
        made.web.default = Answer()
        made.wait_delivered("web", 1)
        assert made.status("web").state == "running"


def test_who_sends_more_than_its_rule_allows_is_limited_and_told(directory: Path) -> None:
    limited = """
        WEB
        [[rules]]
        socket = ["stream", "http"]
        destination = "web"
        max_events_per_second = 1
        """
    with host(directory, limited, OVER_HTTP) as made:
        with made.daemon.connect() as client:
            client.send(line("a") * 5000)
            ack = settled(client, 5000)
        assert ack["dropped_by_reason"] == {"rate_limited": ack["dropped"]}
        assert 0 < ack["dropped"] < 5000
        answer = send(made.daemon, "http", "c")
        assert (answer["status"], "rate_limited" in answer["body"]) == (429, True)
        made.daemon.send_datagram(line("d"))
        made.wait_delivered("default", 1)
        assert made.status("web").ledger.dropped == {"rate_limited": ack["dropped"] + 1}


@pytest.mark.parametrize("way", ["stream", "http"])
def test_no_kill_takes_out_of_the_ledger_what_somebody_was_told_is_rate_limited(directory: Path, way: str) -> None:
    limited = """
        WEB
        [[rules]]
        socket = ["stream", "http"]
        destination = "web"
        max_events_per_second = 1
        """
    with host(directory, limited, OVER_HTTP) as made:
        made.daemon.request("POST", "/pause").raise_for_status()  # nothing else writes a checkpoint
        with made.daemon.connect() as client:
            client.send(line("a") * 5000)  # it may send no more for a long time
            told = settled(client, 5000)["dropped"]
            if way == "stream":
                client.send(line("b") * 100)
                assert settled(client, 5100)["dropped_by_reason"] == {"rate_limited": told + 100}
            else:
                assert send(made.daemon, "http", "b")["status"] == 429
            made.daemon.kill()
        made.daemon.start()
        told += 100 if way == "stream" else 1
        assert made.status("web").ledger.dropped == {"rate_limited": told}


def test_the_front_passes_requests_on_to_the_destinations_server_with_its_token(directory: Path) -> None:
    for name, token in (("clients", CLIENTS_TOKEN), ("web-clients", WEB_CLIENTS_TOKEN)):
        (directory / name).write_text(token)
    sections: Sections = {"http": {"listen": "127.0.0.1:0", "token_file": "clients"}, "front": {"enabled": True}}
    rules = """
        WEB
        [http.tokens]
        web = "web-clients"
        [[rules]]
        slug = "web"
        destination = "web"
        """
    with host(directory, rules, sections) as made:
        where = f"http://{port_of(made.daemon)}/v8/artifacts/status"
        for token, query, server in (
            (CLIENTS_TOKEN, "", made.default),
            (WEB_CLIENTS_TOKEN, "", made.web),
            (CLIENTS_TOKEN, "?slug=web", made.web),
            (made.daemon.token_file.read_text(), "?slug=web", made.web),
        ):
            before = len(server.requests)
            done = subprocess.run(
                ["curl", "-sS", "-H", f"Authorization: Bearer {token}", where + query],
                check=True,
                capture_output=True,
                timeout=HUNG_AFTER,
            )
            request = server.requests[before]
            assert request.headers["authorization"] == f"Bearer {server.token}", done.stdout


@pytest.mark.parametrize("running", [True, False])
def test_commands_name_a_destination_with_a_daemon_and_without(directory: Path, running: bool) -> None:
    with host(directory, ASKING) as made:
        made.daemon.request("POST", "/pause").raise_for_status()
        for name, count in (("default", 1), ("web", 2)):
            with made.daemon.connect({"destination": name}) as client:
                client.send(line(name) * count)
                settled(client, count)
        if not running:
            made.daemon.terminate()
        config = made.daemon.config
        for name, count in (("default", 1), ("web", 2)):
            done = run_command("queue", "cat", "--destination", name, "--config", config)
            assert (done.returncode, done.stdout.count(name)) == (0, count)
        unnamed = run_command("queue", "ls", "--config", config)
        assert (unnamed.returncode, "name one with --destination: default, web" in unnamed.stderr) == (2, True)
        unknown = run_command("dead-letters", "ls", "--destination", "webb", "--config", config)
        assert (unknown.returncode, "there is no destination 'webb', only default, web" in unknown.stderr) == (2, True)
        purged = run_command("queue", "purge", "--yes", "--destination", "web", "--config", config)
        assert purged.returncode == 0
        if running:
            assert made.status("web").ledger.dropped == {"purged": 2}
            assert made.status("default").ledger.queued == 1


@pytest.mark.parametrize("running", [True, False])
def test_commands_know_a_destination_that_is_configured_no_more(directory: Path, running: bool) -> None:
    with host(directory, ASKING) as made:
        config = made.daemon.config
        made.web.reject_hashes = {"dead"}
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("dead") + line("alive"))
            settled(client, 2)
        made.wait_delivered("web", 1)
        eventually(lambda: made.status("web").dead_letters, lambda letters: letters == 1, HUNG_AFTER)
        made.reload("")
        eventually(lambda: [*made.daemon.report().destinations], lambda found: found == ["default"], HUNG_AFTER)
        if not running:
            made.daemon.terminate()
        letters = run_command("dead-letters", "ls", "--json", "--destination", "web", "--config", config)
        assert (letters.returncode, json.loads(letters.stdout)["event"]["hash"]) == (0, "dead"), letters.stderr
        report = run_command("report", "--format", "json", "--destination", "web", "--config", config)
        assert (report.returncode, json.loads(report.stdout)["tasks"]) == (0, 2), report.stderr
        retried = run_command("dead-letters", "retry", "--destination", "web", "--config", config)
        assert retried.returncode == 0, retried.stderr
        waiting = run_command("queue", "cat", "--destination", "web", "--config", config)
        assert (waiting.returncode, waiting.stdout.count("dead")) == (0, 1), waiting.stderr
        unknown = run_command("queue", "ls", "--destination", "webb", "--config", config)
        assert "there is no destination 'webb', only default, and no longer configured: web" in unknown.stderr
        assert run_command("queue", "ls", "--config", config).returncode == 0
        if running:  # it goes on with what was put back
            made.web.reject_hashes = set()
            made.reload(ASKING)
            made.wait_delivered("web", 2)


def test_commands_ask_the_daemon_about_a_destination_that_is_retired(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.web.default = Answer(503)
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("waiting"))
            settled(client, 1)
        made.reload("")
        assert made.status("web").retired
        config = made.daemon.config
        waiting = run_command("queue", "cat", "--destination", "web", "--config", config)
        assert (waiting.returncode, waiting.stdout.count("waiting")) == (0, 1), waiting.stderr
        assert run_command("queue", "purge", "--yes", "--destination", "web", "--config", config).returncode == 0
        eventually(lambda: [*made.daemon.report().destinations], lambda found: found == ["default"], HUNG_AFTER)


def test_commands_look_into_a_queue_that_the_daemon_could_not_open(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.daemon.terminate()
        segments = directory / "queue" / "destinations" / "web" / "default" / "segments"
        segments.rename(segments.with_name("aside"))
        segments.write_text("in the way")
        made.daemon.start()
        assert made.status("web").state == "failed"
        verified = run_command("queue", "verify", "--destination", "web", "--config", made.daemon.config)
    assert verified.returncode == 7
    assert str(segments) in verified.stderr


def test_a_queue_that_is_full_takes_nothing_of_the_disk_that_all_share_from_the_others(directory: Path) -> None:
    part = 512 * 1024
    queue = {"total_bytes": 2 * part, "segment_bytes": 64 * 1024, "min_free_bytes": 0}
    large = json.dumps({"sessionId": "s" * 60_000, "source": "LOCAL", "event": "HIT", "hash": "h"}).encode() + b"\n"
    with host(directory, ASKING, {"listen": {"mode": "0666"}, "queue": queue}) as made:
        made.daemon.request("POST", "/pause").raise_for_status()
        held = {}
        for name, count in (("web", 30), ("default", 7)):
            with made.daemon.connect({"destination": name}) as client:
                for _ in range(count):
                    client.send(large)
                assert settled(client, count)["durable"] == count
            held[name] = made.status(name)
        assert held["web"].ledger.dropped.keys() == {"overflow"}
        assert held["default"].ledger.dropped == {}
        assert {each.queue.max_bytes for each in held.values()} == {part}
        assert held["web"].queue.bytes <= part


@pytest.mark.parametrize("count", [1, 6])
def test_those_that_a_reload_adds_have_their_parts_at_once_and_who_was_alone_keeps_the_newest(
    directory: Path, count: int
) -> None:
    total, names = 2 * 1024 * 1024, [f"d{number}" for number in range(count)]
    sections: Sections = {"queue": {"total_bytes": total, "min_free_bytes": 0}, "log": {"format": "json"}}
    more = "".join(
        f'[destinations.{name}]\ntoken_file = "web-token"\n[[rules]]\nasks_for = "{name}"\ndestination = "{name}"\n'
        for name in names
    )

    def fill(made: Host, name: str, number: int) -> DestinationStatus:
        with made.daemon.connect({"destination": name} if name != "default" else None) as client:
            for _ in range(number):
                client.send(large)
            client.finish()
        return made.status(name)

    large = json.dumps({"sessionId": "s" * 30_000, "source": "LOCAL", "event": "HIT", "hash": "h"}).encode() + b"\n"
    part = total // (count + 1)
    fit = part // len(large) - 4  # the last ones of the segments, and headers
    with host(directory, "", sections) as made:
        made.daemon.request("POST", "/pause").raise_for_status()
        assert fill(made, "default", 60).ledger.queued == 60
        made.reload(more, sections)
        made.daemon.request("POST", "/pause").raise_for_status()
        default = made.status("default")
        assert default.ledger.dropped.keys() == {"overflow"}
        for name in names:
            found = fill(made, name, fit)
            assert (found.ledger.queued, found.ledger.dropped, found.queue.max_bytes) == (fit, {}, part)
        before = made.status("default").ledger
        after = fill(made, "default", fit).ledger
        assert after.accepted == before.accepted + fit
        assert after.queued >= fit  # it is old ones that have made room
        assert holds(made.daemon.status()["destinations"]["default"]["ledger"])


def test_emit_and_the_python_client_name_a_destination_and_lines_keep_theirs(directory: Path) -> None:
    with host(directory, ASKING) as made:
        socket_option = ("--socket", directory / "s.sock")
        one = ("--event", "HIT", "--source", "LOCAL", "--hash", "option", "--strict")
        assert run_command("emit", *one, "--destination", "web", *socket_option).returncode == 0
        lines = (
            line("first")
            + b'{"context":{"destination":"web"}}\n'
            + line("second")
            + b'{"context":{"destination":null}}\n'
            + line("third")
        )
        assert run_command("emit", "-", "--strict", *socket_option, stdin=lines).returncode == 0
        assert run_command("emit", "-", "--destination", "web", *socket_option, stdin=lines).returncode == 0
        with EventClient(directory / "s.sock", destination="web") as client:
            assert client.emit("HIT", "LOCAL", "client")
        made.wait_delivered("default", 3)
        made.wait_delivered("web", 5)
        assert hashes(made.default) == {"first", "third"}
        assert hashes(made.web) == {"option", "first", "second", "client"}


def test_report_and_status_count_each_destination_apart(directory: Path) -> None:
    with host(directory, ASKING) as made:
        for name, count in (("default", 1), ("web", 3)):
            with made.daemon.connect({"destination": name}) as client:
                client.send(b"".join(line(f"{name}-{number}") for number in range(count)))
                settled(client, count)
        config = ("--config", made.daemon.config)
        unnamed = run_command("report", *config)
        assert (unnamed.returncode, "name one with --destination: default, web" in unnamed.stderr) == (2, True)
        for name, count in (("default", 1), ("web", 3)):
            done = run_command("report", "--destination", name, "--format", "json", *config)
            assert json.loads(done.stdout)["tasks"] == count
        made.reload("")
        done = run_command("status", *config)
        assert done.returncode == 0
        assert re.search(r"last 24 h +100 % hits: 1 of 1 task", done.stdout)
        made.reload(ASKING)
        shown = run_command("status", *config).stdout
        assert re.search(r"^  default last 24 h +100 % hits: 1 of 1 task", shown, re.MULTILINE)
        assert re.search(r"^  web last 24 h +100 % hits: 3 of 3 tasks", shown, re.MULTILINE)


def test_check_asks_the_server_of_each_destination(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.web.status = "enabled"
        (directory / "web-token").write_text("wrong")
        done = run_command("check", "--online", "--json", "--config", made.daemon.config)
        found = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
        assert (done.returncode, found["server"]["ok"], found["server of web"]["ok"]) == (1, True, False)
        assert found["server of web"]["message"].startswith(f"{made.web.url}: 401 Unauthorized")
        assert found["server"]["message"].startswith(made.default.url)


def test_check_looks_at_the_directory_of_each_destination(directory: Path) -> None:
    with host(directory, ASKING) as made:
        made.daemon.terminate()
        web = directory / "queue" / "destinations" / "web"
        shutil.rmtree(web)
        web.write_text("in the way")
        done = run_command("check", "--config", made.daemon.config)
        assert done.returncode == 1
        assert f"queue directory of web: {web}: not a directory: move it away" in done.stdout


def test_check_warns_of_more_destinations_than_files_and_of_denials_that_datagrams_pass(directory: Path) -> None:
    made = Daemon(directory, "http://127.0.0.1:9", SECTIONS)
    names = "".join(f'[destinations.d{number}]\ntoken_file = "{made.token_file}"\n' for number in range(20))
    made.config.write_text(f"{made.config.read_text()}{names}[[rules]]\ngid = {os.getgid()}\ndeny = true\n")
    command = [sys.executable, "-m", "agent.cli", "check", "--config", str(made.config)]
    limited = ["bash", "-c", 'ulimit -n 400; exec "$@"', "bash", *command]
    done = subprocess.run(limited, check=False, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert "400 may be open, and the destinations need 352" in " ".join(done.stdout.split())
    assert "rule 1 denies a group" in " ".join(done.stdout.split())


def test_metrics_count_what_is_denied_and_name_a_destination_that_failed(directory: Path) -> None:
    (directory / "queue" / "destinations").mkdir(parents=True)
    (directory / "queue" / "destinations" / "web").write_text("in the way")
    with host(directory, ASKING) as made:
        with made.daemon.connect({"destination": "mobile"}) as client:
            client.send(line("a") * 3)
            assert settled(client, 3)["dropped_by_reason"] == {"denied": 3}
        metrics = made.daemon.request("GET", "/metrics").text
        assert "artifacts_agent_events_denied_total 3.0" in metrics
        assert 'artifacts_agent_delivery_state{destination="web",state="failed"} 1.0' in metrics
        assert 'artifacts_agent_delivery_state{destination="default",state="failed"} 0.0' in metrics
