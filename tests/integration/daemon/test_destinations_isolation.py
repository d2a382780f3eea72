"""Many destinations in one daemon, some of them in trouble, while reloads add and remove others: nobody loses what was acked."""

import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.control.schema import DestinationStatus
from tests.integration.daemon.test_destinations import (
    ASKING,
    CLIENTS_TOKEN,
    OVER_HTTP,
    WEB_CLIENTS_TOKEN,
    Host,
    directory,
    hashes,
    host,
    line,
    port_of,
    send,
    settled,
)
from tests.support.accounts import holds
from tests.support.api_server import Answer, ApiServer
from tests.support.daemon import Conversation, Daemon, Sections
from tests.support.waiting import HUNG_AFTER, eventually

__all__ = ["directory"]
BLOCKED, FLAKY, FULL, WELL = (
    ("blocked-1", "blocked-2"),
    ("flaky-1", "flaky-2"),
    ("full-1", "full-2"),
    ("well-1", "well-2"),
)
LASTING = (*BLOCKED, *FLAKY, *FULL, *WELL, "default")
COMING = ("coming-1", "coming-2")
TROUBLE = [Answer(503), Answer(mode="cut"), Answer(), Answer(mode="reset"), Answer(429, {"retry-after": "0"}), Answer()]
ROUNDS, BURST, BIG_BURST = 12, 40, 400
MAX_BYTES = 262_144


@dataclass
class Sender:
    """Sends to one destination on connections of its own, and counts what it is told, by reason."""

    daemon: Daemon
    name: str
    told: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    def burst(self, count: int) -> None:
        """Send so many events on one connection, and wait until each is acked or dropped."""
        with self.daemon.connect({"destination": self.name}) as client:
            for _ in range(count):
                client.send(line(f"{self.name}-{self.sent:06}"))
                self.sent += 1
            self.told += _told(client, count)


def _told(client: Conversation, count: int) -> Counter[str]:
    ack = settled(client, count)
    return Counter({"durable": ack["durable"], **ack.get("dropped_by_reason", {})})


@dataclass
class Fleet:
    """A daemon with many destinations, and an API for each."""

    daemon: Daemon
    apis: dict[str, ApiServer]

    def configure(self, names: tuple[str, ...]) -> None:
        """Write the configuration of these destinations besides default."""
        sections: Sections = {"queue": {"max_bytes": MAX_BYTES}, "log": {"format": "json"}}
        self.daemon.configure(self.apis["default"].url, sections)
        more = [
            f'[destinations.{name}]\nurl = "{self.apis[name].url}"\ntoken_file = "{self.daemon.token_file}"\n'
            f'[[rules]]\nasks_for = "{name}"\ndestination = "{name}"\n'
            for name in names
        ]
        self.daemon.config.write_text(self.daemon.config.read_text() + "".join(more))

    def reload(self, *names: str) -> None:
        """Have the daemon take other destinations over."""
        self.configure((*(name for name in LASTING if name != "default"), *names))
        self.daemon.request("POST", "/reload").raise_for_status()

    def destinations(self) -> dict[str, DestinationStatus]:
        """Return how all are doing."""
        return self.daemon.report().destinations


@pytest.fixture
def fleet(directory: Path) -> Iterator[Fleet]:
    """A running fleet with those that last."""
    with ExitStack() as open_:
        daemon = Daemon(directory, "http://127.0.0.1:9")
        apis = {name: open_.enter_context(ApiServer()) for name in (*LASTING, *COMING)}
        made = Fleet(daemon, apis)
        for name in BLOCKED:
            apis[name].default = Answer(402)
        for name in FLAKY:
            apis[name].script(TROUBLE * 10)
        for name in FULL:
            apis[name].default = Answer(503)
        made.configure(tuple(name for name in LASTING if name != "default"))
        open_.enter_context(daemon)
        yield made


def test_nobody_loses_what_was_acked_while_some_are_in_trouble_and_others_come_and_go(fleet: Fleet) -> None:
    senders = {name: Sender(fleet.daemon, name) for name in (*LASTING, *COMING)}

    def work(name: str) -> None:
        for _ in range(ROUNDS):
            senders[name].burst(BIG_BURST if name in FULL else BURST)

    threads = [threading.Thread(target=work, args=(name,)) for name in senders]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads):
        fleet.reload(*((), COMING[:1], COMING, COMING[1:])[turn % 4])
        turn += 1
    for thread in threads:
        thread.join()
    fleet.reload(*COMING)
    for name in (*BLOCKED, *FLAKY, *FULL):
        fleet.apis[name].script(())
        fleet.apis[name].default = Answer()
    fleet.daemon.request("POST", "/resume").raise_for_status()
    found = eventually(
        fleet.destinations, lambda found: not any(each.ledger.queued for each in found.values()), HUNG_AFTER
    )

    assert found.keys() == senders.keys()
    for name, sender in senders.items():
        ledger, told = found[name].ledger, sender.told
        assert told.total() == sender.sent
        assert told.keys() <= ({"durable", "denied"} if name in COMING else {"durable"}), (name, told)
        assert ledger.accepted == told["durable"]
        assert ledger.accepted == ledger.delivered + sum(ledger.dropped.values())
        lost = told["durable"] - len(hashes(fleet.apis[name]))
        if name in FULL:
            assert ledger.dropped.keys() == {"overflow"}
            assert 0 < lost <= ledger.dropped["overflow"]
        else:
            assert (lost, ledger.dropped) == (0, {}), name
        assert all(each.startswith(name) for each in hashes(fleet.apis[name]))
    assert any(senders[name].told["denied"] for name in COMING)
    assert turn > 4
    assert fleet.daemon.terminate() == 0
    assert "Traceback" not in fleet.daemon.stderr_text()


def test_one_that_comes_back_while_it_ends_is_there_again_each_time(directory: Path) -> None:
    with host(directory, ASKING) as made:
        for number in range(1, 11):
            with made.daemon.connect({"destination": "web"}) as client:
                client.send(line(f"{number}"))
                assert settled(client, 1)["durable"] == 1
            made.reload("")
            made.reload(ASKING)
            web = eventually(
                lambda: made.daemon.report().destinations.get("web"), lambda found: found is not None, HUNG_AFTER
            )
            assert web is not None
            assert (web.state, web.ledger.accepted) == ("running", number)
        made.wait_delivered("web", 10)
        assert not made.logged("destination_failed")


@pytest.mark.parametrize("answer", [Answer(503), Answer(mode="hang"), Answer()], ids=["failing", "hanging", "well"])
def test_a_daemon_that_is_stopped_while_one_is_retired_loses_nothing(directory: Path, answer: Answer) -> None:
    short = {"shutdown": {"deadline": "1s"}}
    with host(directory, ASKING, short) as made:
        made.web.default = answer
        with made.daemon.connect({"destination": "web"}) as client:
            for number in range(20):
                client.send(line(f"{number}"))
            assert settled(client, 20)["durable"] == 20
        made.reload("", short)
        assert made.daemon.terminate() == 0
        made.web.default = Answer()
        made.configure(ASKING, short)
        made.daemon.start()
        made.wait_delivered("web", 20)
        assert len(hashes(made.web)) == 20
        assert holds(made.daemon.status()["destinations"]["web"]["ledger"])


def test_one_that_was_removed_while_no_daemon_ran_is_delivered_where_another_has_its_account(directory: Path) -> None:
    team = 'WEBslug = "web"\n'
    renamed = team + '[[rules]]\nasks_for = "site"\ndestination = "site"\n'
    with host(directory, ASKING.replace("WEB", team)) as made:
        made.web.default = Answer(503)
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        made.reload("")
        made.daemon.kill()
        made.daemon.start()
        (warning,) = made.logged("destination_left")
        assert (warning["destination"], warning["queued"]) == ("web", 1)
        made.daemon.kill()
        made.configure(renamed)
        made.daemon.config.write_text(
            made.daemon.config.read_text().replace("[destinations.web]", "[destinations.site]")
        )
        made.daemon.start()
        assert made.status("web").retired
        made.web.default = Answer()
        wait_for(made, "default", "site")
        assert hashes(made.web) == {"a"}
        assert made.daemon.terminate() == 0
        made.daemon.start()
        assert made.daemon.report().destinations.keys() == {"default", "site"}
        assert len(made.logged("destination_left")) == 1


SHARED = """
    [destinations.mobile]
    token_file = "mobile-token"
    [[rules]]
    asks_for = "mobile"
    destination = "mobile"
    """
"""An account of its own at the URL of default: neither names a team, so that the token alone says whose events are whose."""


def test_what_waits_for_an_account_without_a_team_never_goes_out_with_another_token(directory: Path) -> None:
    with host(directory, "") as made:
        tokens = {"mobile": "token-of-mobile", "default": made.daemon.token_file.read_text()}
        (directory / "mobile-token").write_text(tokens["mobile"])
        made.default.token = None
        made.default.default = Answer(503)
        made.reload(SHARED)
        with made.daemon.connect({"destination": "mobile"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        made.daemon.kill()
        made.configure("")
        made.default.token, made.default.default = tokens["default"], Answer()
        made.daemon.start()
        (left,) = made.logged("destination_left")
        assert (left["destination"], left["queued"]) == ("mobile", 1)
        assert made.daemon.report().destinations.keys() == {"default"}
        made.daemon.kill()
        (directory / "mobile-token").write_text("another-token-of-mobile")  # replaced: its own queue stays its own
        made.default.token = "another-token-of-mobile"
        made.configure(SHARED)
        made.daemon.start()
        made.wait_delivered("mobile", 1)
        assert hashes(made.default) == {"a"}
        assert made.logged("account_changed") == []


SWAPPED = """
    [destinations.{0}]
    slug = "one"
    token_file = "web-token"
    [destinations.{1}]
    slug = "two"
    token_file = "web-token"
    [[rules]]
    asks_for = "a"
    destination = "a"
    [[rules]]
    asks_for = "b"
    destination = "b"
    """


def test_names_are_not_swapped_while_events_wait(directory: Path) -> None:
    with host(directory, "") as made:
        made.default.token = None
        made.reload(SWAPPED.format("a", "b"))
        made.daemon.request("POST", "/pause?destination=a").raise_for_status()
        with made.daemon.connect({"destination": "a"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        made.configure(SWAPPED.format("b", "a"))
        refused = made.daemon.request("POST", "/reload")
        assert refused.status_code == 422
        message = refused.json()["error"]["message"]
        assert message.startswith("destination a: its queue holds 1 events for ")
        assert "team one, the account of b now" in message
        made.daemon.kill()
        made.daemon.start()
        assert made.status("a").state == "failed"
        assert made.status("b").state == "running"
        assert hashes(made.default) == set()
        made.reload(SWAPPED.format("a", "b"))
        made.daemon.request("POST", "/resume?destination=a").raise_for_status()
        made.wait_delivered("a", 1)
        made.reload(SWAPPED.format("b", "a"))
        assert made.status("a").state == made.status("b").state == "running"


def test_a_reload_takes_over_whom_a_port_lets_in_and_what_happens_to_others(directory: Path) -> None:
    for name, token in (("clients", CLIENTS_TOKEN), ("web-clients", WEB_CLIENTS_TOKEN)):
        (directory / name).write_text(token)
    over_tcp: Sections = {"http": {"listen": "127.0.0.1:0", "token_file": "clients"}}
    with host(directory, "", over_tcp) as made:
        where = port_of(made.daemon)
        assert send(made.daemon, where, "a", token=WEB_CLIENTS_TOKEN)["status"] == 401
        done = made.reload(
            'WEB\n[http.tokens]\nweb = "web-clients"\n', {"listen": {"mode": "0666", "default": "deny"}, **over_tcp}
        )
        assert done["restart_needed"] == []
        assert send(made.daemon, where, "b", token=WEB_CLIENTS_TOKEN)["status"] == 200
        assert send(made.daemon, where, "c", token=CLIENTS_TOKEN)["status"] == 403
        made.reload("", over_tcp)
        assert send(made.daemon, where, "d", token=WEB_CLIENTS_TOKEN)["status"] == 401
        assert send(made.daemon, where, "e", token=CLIENTS_TOKEN)["status"] == 200
        wait_for(made, "default")
        made.wait_delivered("default", 1)
        assert (hashes(made.default), hashes(made.web)) == ({"e"}, {"b"})


def test_of_two_destinations_with_one_token_for_clients_it_is_that_of_default(directory: Path) -> None:
    (directory / "clients").write_text(CLIENTS_TOKEN)
    over_tcp: Sections = {"http": {"listen": "127.0.0.1:0", "token_file": "clients"}}
    with host(directory, "", over_tcp) as made:
        made.configure('WEB\n[http.tokens]\nweb = "clients"\n', over_tcp)
        assert made.daemon.terminate() == 0
        made.daemon.start()
        assert send(made.daemon, port_of(made.daemon), "a", token=CLIENTS_TOKEN)["status"] == 200
        made.wait_delivered("default", 1)
        said = made.daemon.stderr_text()
        assert "http.tokens: default and web have the same token" in said
        assert CLIENTS_TOKEN not in said


def test_an_upload_that_outlives_its_destination_is_refused_and_may_be_sent_again(directory: Path) -> None:
    rules = 'WEB\n[[rules]]\nsocket = "http"\ndestination = "web"\n'
    body = b"[" + line("a").strip() + b"]"
    with host(directory, rules, OVER_HTTP) as made, socket.socket(socket.AF_UNIX) as upload:
        upload.settimeout(HUNG_AFTER)
        upload.connect(str(directory / "h.sock"))
        head = f"POST /v8/artifacts/events HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(body)}\r\n\r\n"
        upload.sendall(head.encode() + body[:-1])
        eventually(
            lambda: made.daemon.report().http, lambda found: found is not None and found.connections == 1, HUNG_AFTER
        )
        made.reload('[[rules]]\nsocket = "http"\ndestination = "default"\n', OVER_HTTP)
        wait_for(made, "default")
        upload.sendall(body[-1:])
        answer = http.client.HTTPResponse(upload)
        answer.begin()
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "'web' cannot be used now" in json.loads(answer.read())["error"]["message"]


def test_a_connection_goes_where_the_rules_of_the_moment_send_it(directory: Path) -> None:
    to_web = 'WEB\n[[rules]]\nsocket = "stream"\ndestination = "web"\n'
    with host(directory, to_web) as made, made.daemon.connect() as client:
        for number, rules in enumerate([to_web, "", to_web, ASKING, to_web], 1):
            made.reload(rules)
            wait_for(made, "default", *(["web"] if rules else []))
            client.send(line(f"{number}"))
            assert settled(client, number)["durable"] == number
        made.wait_delivered("web", 3)
        made.wait_delivered("default", 2)
        assert (hashes(made.default), hashes(made.web)) == ({"2", "4"}, {"1", "3", "5"})


def test_one_that_comes_back_with_another_account_delivers_there_and_says_so(directory: Path) -> None:
    with host(directory, ASKING) as made, ApiServer() as other:
        made.daemon.request("POST", "/pause?destination=web").raise_for_status()
        with made.daemon.connect({"destination": "web"}) as client:
            client.send(line("a"))
            assert settled(client, 1)["durable"] == 1
        made.configure("")
        assert made.daemon.terminate() == 0
        made.daemon.start()
        moved = ASKING.replace(
            "WEB", f'[destinations.web]\nurl = "{other.url}"\ntoken_file = "{directory}/web-token"\n'
        )
        made.reload(moved)
        made.daemon.request("POST", "/resume?destination=web").raise_for_status()
        made.wait_delivered("web", 1)
        assert (hashes(other), hashes(made.web)) == ({"a"}, set())
        (warning,) = made.logged("account_changed")
        assert (warning["destination"], warning["was"] != warning["now"]) == ("web", True)


def test_destinations_with_one_account_keep_to_themselves(directory: Path) -> None:
    twin = (
        '[destinations.twin]\nurl = "URL"\ntoken_file = "TOKEN"\n[[rules]]\nasks_for = "twin"\ndestination = "twin"\n'
    )
    with host(directory, "") as made:
        twin = twin.replace("URL", made.web.url).replace("TOKEN", str(directory / "web-token"))
        made.reload(ASKING + twin)
        made.daemon.request("POST", "/pause?destination=twin").raise_for_status()
        for name in ("web", "twin"):
            with made.daemon.connect({"destination": name}) as client:
                client.send(line(name))
                assert settled(client, 1)["durable"] == 1
        made.wait_delivered("web", 1)
        assert hashes(made.web) == {"web"}
        made.daemon.request("POST", "/resume?destination=twin").raise_for_status()
        made.wait_delivered("twin", 1)
        assert hashes(made.web) == {"web", "twin"}


def wait_for(made: Host, *names: str) -> None:
    """Return when there are just these destinations."""
    eventually(made.daemon.report, lambda found: found.destinations.keys() == {*names}, HUNG_AFTER)


def open_files(made: Host) -> int:
    """Return how many files and sockets the daemon has open."""
    return sum(1 for _ in Path(f"/proc/{made.daemon.pid}/fd").iterdir())


def test_destinations_that_have_ended_leave_nothing_open(directory: Path) -> None:
    front = {**OVER_HTTP, "front": {"enabled": True}}
    in_the_way = directory / "queue" / "destinations" / "damaged"
    in_the_way.mkdir(parents=True)
    (in_the_way / "default").write_text("in the way")
    damaged = ASKING + '[destinations.damaged]\nurl = "http://127.0.0.1:9"\n'
    with host(directory, "", front) as made:
        before = open_files(made)
        for number in range(ROUNDS):
            made.reload(f'[destinations.n{number}]\nurl = "{made.web.url}"\n', front)
            made.reload(damaged, front)
            assert made.status("damaged").state == "failed"
        made.reload("", front)
        wait_for(made, "default")
        assert eventually(lambda: open_files(made), lambda found: found < before + ROUNDS, HUNG_AFTER)
        assert made.daemon.terminate() == 0
