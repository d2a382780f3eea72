"""`fleet` over a real engine: what it creates, what it says differs, and where it says that events are."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext, api

from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import dead, message, names
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.permissions import of_pool, of_relays
from agent.fleet.records import Intent, Part, Settled, encode_record
from agent.fleet.shared_pause import encode_pause
from agent.queue.cursor import Ledger, Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetter
from tests.support.command import COMMAND, problems, run_command
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.nats_credentials import Realm
from tests.support.pipelines import event
from tests.support.users import NOBODY, as_user
from tests.support.waiting import HUNG_AFTER

LINUX = names.events_subject("web", "linux")
GITHUB = Context("GITHUB_ACTIONS", 0)
QUEUE = "0123456789abcdef"
ALONE = "replicas > 1 not supported in non-clustered mode; set relay.replicas = 1, or make the servers a cluster"
NOWHERE = "nats://127.0.0.1:1"
THINGS = ["AA_EVENTS", "AA_LEDGER", "AA_DEAD", "KV_AA_STATE", "OBJ_AA_SNAPSHOTS", "consumer relay-web"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """A server of which nothing but its start is known."""
    found = NatsCluster(tmp_path_factory.mktemp("nats"))
    found.start()
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def config(cluster: NatsCluster, tmp_path: Path) -> Path:
    """The configuration of a fleet on a server that is empty."""
    asyncio.run(cluster.ready())
    asyncio.run(cluster.remove())
    return written(tmp_path / "config.toml", cluster.urls[0])


def written(file: Path, server: str, replicas: int = 1, credentials: Path | None = None) -> Path:
    """Write a configuration."""
    more = "" if credentials is None else f'credentials = "{credentials}"\n'
    file.write_text(f'[relay]\nservers = ["{server}"]\nteam = "web"\nreplicas = {replicas}\n{more}')
    return file


def fleet(config: Path, *arguments: str) -> tuple[int, str]:
    """Run a command of `fleet` that complains of nothing."""
    done = run_command("fleet", *arguments, "--config", config)
    assert problems(done.stderr) == []
    return done.returncode, done.stdout


def status(config: Path) -> dict[str, Any]:
    """Return what `fleet status --json` says of the team."""
    code, said = fleet(config, "status", "--json")
    found = json.loads(said)
    assert (code, list(found), list(found["teams"])) == (0, ["teams"], ["web"])
    team: dict[str, Any] = found["teams"]["web"]
    return team


async def _with_engine(cluster: NatsCluster) -> None:
    engine = cluster.engine()
    events = [event(f"h{number}") for number in range(10)]
    ledger = Ledger(12, 0, 0, {"expired": 1}, 1, forwarded=10)
    batch = Batch(Context(), encode_events(events), (Span(1, 11),))
    await engine.publish(LINUX, batch.lines, message.encode(batch, QUEUE, ledger))
    parts = (Part(LINUX, QUEUE, (Span(1, 5),)),)
    await engine.publish(names.ledger_subject("web"), encode_record(Intent("vm-1-7", "vm-1", parts)), {})
    await engine.publish(names.ledger_subject("web"), encode_record(Settled(Outcome.DELIVERED, parts)), {})
    refused = (Part(LINUX, QUEUE, (Span(5, 6),)),)
    await engine.publish(names.ledger_subject("web"), encode_record(Settled(Outcome.DEAD_LETTERED, refused)), {})
    await _refuse(engine, 5)
    await engine.aclose()


async def _take(cluster: NatsCluster) -> None:
    engine = cluster.engine()
    await engine.fetch(names.EVENTS, names.consumer("web"), most=1, seconds=HUNG_AFTER)
    await engine.aclose()


async def _refuse(engine: NatsEngine, seq: int, context: Context = GITHUB, team: str = "web") -> None:
    line = encode_events([event(f"h{seq - 1}")])
    letter = DeadLetter(seq, 1_750_000_000.0, 400, "400 Bad Request: no", context, line)
    body, headers = dead.of_event(LINUX, QUEUE, letter)
    await engine.publish(names.dead_subject(team), body, headers)


def test_what_is_missing_is_created_and_what_is_there_is_left(config: Path) -> None:
    assert fleet(config, "init", "--dry-run")[0] == 1
    code, said = fleet(config, "init")
    assert (code, said.splitlines()) == (0, [f"{name}: created" for name in THINGS])
    code, said = fleet(config, "init", "--dry-run")
    assert (code, said.splitlines()) == (0, [f"{name}: there" for name in THINGS])


def resize(cluster: NatsCluster, stream: str = names.EVENTS, **values: object) -> None:
    """Change a stream as `nats stream edit` does."""

    async def change() -> None:
        engine = cluster.engine()
        found = await engine.ask(partial(JetStreamContext.stream_info, name=stream))
        assert found is not None
        await engine.ask(partial(JetStreamContext.update_stream, config=found.config.evolve(**values)))
        await engine.aclose()

    asyncio.run(change())


def of_events(config: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Return what `fleet init` finds of the stream of events; nothing else differs."""
    code, said = fleet(config, "init", "--json", *options)
    first, *others = json.loads(said)["found"]
    assert first.pop("name") == "AA_EVENTS"
    assert all((each["state"], each["differences"], each["updated"]) == ("there", [], []) for each in others)
    return code, first


SIZE = {"key": "max_bytes", "found": 10_000_000, "wanted": 10 * 1024**3, "updatable": True, "reason": None}
WINDOW = {"key": "duplicate_window", "found": 60.0, "wanted": 600.0, "updatable": False, "reason": None}


def test_what_differs_is_named_with_both_values_and_sizes_are_changed_if_that_is_asked_for(
    config: Path, cluster: NatsCluster
) -> None:
    fleet(config, "init")
    resize(cluster, max_bytes=10_000_000, duplicate_window=60.0)
    for options in ((), ("--dry-run",), ("--dry-run", "--update")):
        assert of_events(config, *options) == (1, {"state": "there", "differences": [SIZE, WINDOW], "updated": []})
    code, said = fleet(config, "init")
    assert (code, said.splitlines()[:3]) == (
        1,
        [
            "AA_EVENTS: there",
            "  max_bytes is 10000000, not 10737418240: `artifacts-agent fleet init --update` changes it",
            "  duplicate_window is 60.0, not 600.0",
        ],
    )
    said = fleet(config, "init", "--dry-run", "--update")[1]
    assert said.splitlines()[1] == "  max_bytes is 10000000, not 10737418240: this would be changed"
    assert of_events(config, "--update") == (1, {"state": "updated", "differences": [WINDOW], "updated": [SIZE]})
    assert of_events(config) == (1, {"state": "there", "differences": [WINDOW], "updated": []})
    resize(cluster, max_bytes=10_000_000, duplicate_window=600.0)
    code, said = fleet(config, "init", "--update")
    assert (code, said.splitlines()[:2]) == (0, ["AA_EVENTS: updated", "  max_bytes was 10000000, is 10737418240"])


def test_a_stream_takes_the_sizes_that_are_configured_and_loses_nothing_by_it(
    config: Path, cluster: NatsCluster
) -> None:
    async def publish() -> None:
        engine = cluster.engine()
        for number in range(6):
            await engine.publish(LINUX, b"x" * 250_000, {"Nats-Msg-Id": str(number)})  # more than 1 MiB
        await engine.aclose()

    text = config.read_text()
    config.write_text(f'{text}events_max_bytes = "2MiB"\npool_max_messages = 100\n')
    fleet(config, "init")
    asyncio.run(publish())
    config.write_text(f"{text}events_max_bytes = 1048576\npool_max_messages = 11\n")
    code, found = of_events(config, "--update")
    assert (code, [each["key"] for each in found["updated"]]) == (1, ["max_bytes"])
    (left,) = found["differences"]
    assert (left["key"], left["found"], left["wanted"]) == ("max_msgs_per_subject", 100, 11)
    assert "a pool has 6 messages there" in left["reason"]
    assert asyncio.run(_stored(cluster, names.EVENTS)) == 6
    config.write_text(f"{text}events_max_bytes = 1048576\npool_max_messages = 12\n")
    assert of_events(config, "--update")[0] == 0
    assert asyncio.run(_stored(cluster, names.EVENTS)) == 6


def test_a_full_ledger_that_refuses_records_is_said_and_made_to_drop_its_oldest_ones(
    config: Path, cluster: NatsCluster
) -> None:
    fleet(config, "init")
    resize(cluster, names.LEDGER, discard=api.DiscardPolicy.NEW)
    said = "  discard is new, not old: `artifacts-agent fleet init --update` changes it"
    code, found = fleet(config, "init")
    assert (code, found.splitlines()[1:3]) == (1, ["AA_LEDGER: there", said])
    code, found = fleet(config, "init", "--update")
    assert (code, found.splitlines()[1:3]) == (0, ["AA_LEDGER: updated", "  discard was new, is old"])
    assert fleet(config, "init")[0] == 0


def test_a_ledger_is_not_made_so_small_at_once_that_records_go_which_no_snapshot_has(
    config: Path, cluster: NatsCluster
) -> None:
    async def publish() -> None:
        engine = cluster.engine()
        for _ in range(20):
            await engine.publish(names.ledger_subject("web"), b"x" * 250_000, {})
        await engine.aclose()

    text = config.read_text()
    fleet(config, "init")
    asyncio.run(publish())
    config.write_text(f'{text}ledger_max_bytes = "2MiB"\n')
    code, said = fleet(config, "init", "--update")
    assert (code, "it can be lowered to half of that at once" in said) == (1, True)
    assert asyncio.run(_stored(cluster, names.LEDGER)) == 20
    config.write_text(f'{text}ledger_max_bytes = "3MiB"\n')
    assert fleet(config, "init", "--update")[0] == 0
    assert asyncio.run(_stored(cluster, names.LEDGER)) == 12


def test_replicas_of_all_streams_are_changed_where_there_are_servers_for_them(tmp_path: Path) -> None:
    with nats_cluster(tmp_path / "servers", count=3) as cluster:
        config = written(tmp_path / "config.toml", cluster.urls[0], replicas=3)
        code, said = fleet(config, "init", "--update", "--json")
        found = json.loads(said)["found"]
        assert [(each["name"], [key["key"] for key in each["updated"]][-1:]) for each in found] == [
            *((name, ["num_replicas"]) for name in THINGS[:5]),
            ("consumer relay-web", []),
        ]
        assert (code, fleet(config, "init")[0]) == (0, 0)


def test_what_the_server_refuses_is_left_with_its_reason(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    written(config, cluster.urls[0], replicas=3)
    code, said = fleet(config, "init", "--update")
    assert (code, said.splitlines()[:2]) == (
        1,
        ["AA_EVENTS: there", f"  num_replicas is 1, not 3: {ALONE}"],
    )


def test_what_cannot_be_created_is_said_with_its_size_and_the_key_to_change(config: Path, cluster: NatsCluster) -> None:
    config.write_text(config.read_text() + 'ledger_max_bytes = "8000TiB"\n')
    done = run_command("fleet", "init", "--config", config)
    (problem,) = problems(done.stderr)
    assert done.returncode == 4
    assert "AA_LEDGER of 8796093022208000 bytes cannot be created: insufficient storage" in problem
    assert problem.endswith("max_file_store on each server, or make relay.ledger_max_bytes smaller")
    written(config, cluster.urls[0], replicas=3)
    asyncio.run(cluster.remove())
    done = run_command("fleet", "init", "--config", config)
    assert problems(done.stderr) == [
        f"the engine cannot be asked: AA_EVENTS of 10737418240 bytes cannot be created: {ALONE}"
    ]


def test_the_status_says_where_every_event_is(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    assert {**status(config), "pools": {}} == {
        **dict.fromkeys(("forwarded", "delivered", "dead_lettered", "expired", "in_stream", "lost"), 0),
        **dict.fromkeys(("queued", "dropped", "in_doubt", "messages", "unreadable_messages"), 0),
        "pause": None,
        **dict.fromkeys(("messages_waiting", "messages_held", "requests_for_more"), 0),
        "last_taken_at": None,
        "oldest_event_at": None,
        "whole": True,
        "pools": {},
        "relays": {},
    }
    asyncio.run(_with_engine(cluster))
    found = status(config)
    expected = {
        "forwarded": 10,
        "delivered": 4,
        "dead_lettered": 1,
        "in_stream": 5,
        "lost": 0,
        "queued": 1,
        "dropped": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert {name: found["pools"][LINUX][name] for name in expected} == expected
    code, said = fleet(config, "status")
    assert code == 0
    assert "team web" in said
    ((name, relay),) = found["relays"].items()
    assert (name, relay["open_requests"], relay["first_request_at"]) == ("vm-1", 1, relay["last_request_at"])
    assert "relay vm-1: first request 0 s ago, last one 0 s ago, 1 under way or in doubt" in re.sub(
        r"\d s ago", "0 s ago", said
    )
    assert "1 message in the stream" in said
    assert "1 wait, 0 held by relays; none was taken yet; 0 requests for more" in said
    assert (found["messages_waiting"], found["messages_held"], found["last_taken_at"]) == (1, 0, None)
    asyncio.run(_take(cluster))
    found = status(config)
    assert (found["messages_waiting"], found["messages_held"]) == (0, 1)
    assert found["last_taken_at"] is not None


def test_a_pause_is_shown_with_its_next_probe_which_can_be_had_at_once(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    assert fleet(config, "resume") == (0, "The team web is not paused.\n")
    pause = Pause("blocked", "402 Payment Required", 1_750_000_000.0, 1_750_000_300.0, 2)

    async def put() -> None:
        engine = cluster.engine()
        await engine.put(names.pause_key("web"), encode_pause(pause, "vm-1"))
        await engine.aclose()

    asyncio.run(put())
    shown = {"reason": "blocked", "message": "402 Payment Required", "since": "2025-06-15T15:06:40.000Z"}
    assert status(config)["pause"] == {**shown, "probes": 2, "next_probe_at": "2025-06-15T15:11:40.000Z"}
    code, said = fleet(config, "resume")
    assert (code, said.startswith("A relay of the team web probes within seconds.")) == (0, True)
    assert status(config)["pause"] == {**shown, "probes": 0, "next_probe_at": shown["since"]}


def test_dead_letters_are_listed_exported_and_removed(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    assert fleet(config, "dead-letters", "ls") == (0, "No dead letters.\n")
    asyncio.run(_with_engine(cluster))
    code, said = fleet(config, "dead-letters", "ls", "--json")
    found = json.loads(said)
    facts = {name: found[name] for name in ("subject", "queue", "seq", "status", "message")}
    assert (code, facts) == (
        0,
        {"subject": LINUX, "queue": QUEUE, "seq": 5, "status": 400, "message": "400 Bad Request: no"},
    )
    header, line = fleet(config, "dead-letters", "ls")[1].splitlines()
    assert header.split() == ["number", "subject", "queue", "seq", "rejected", "at", "status", "message"]
    assert line.startswith(f"     1  {LINUX}  {QUEUE}")
    exported = run_command("fleet", "dead-letters", "export", "--config", config)
    (note,) = problems(exported.stderr)
    assert "fleet dead-letters purge --up-to 1" in note
    context, exported_event = map(json.loads, exported.stdout.splitlines())
    assert context == {"context": {"ci": "GITHUB_ACTIONS", "interactive": 0}}
    assert (exported_event["hash"], exported_event) == ("h4", found["event"])
    refused = run_command("fleet", "dead-letters", "purge", "--config", config)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert fleet(config, "dead-letters", "purge", "--yes") == (0, "1 dead letter removed\n")
    assert fleet(config, "dead-letters", "ls") == (0, "No dead letters.\n")
    assert status(config)["dead_lettered"] == 1


def test_a_purge_up_to_what_was_exported_keeps_what_has_come_since_and_other_teams(
    config: Path, cluster: NatsCluster
) -> None:
    fleet(config, "init")

    async def refuse() -> list[str]:
        engine = cluster.engine()
        for seq, team in enumerate(("web", "other", "web", "web"), 1):
            await _refuse(engine, seq, team=team)
        await engine.aclose()
        return []

    asyncio.run(refuse())
    purge = ("dead-letters", "purge", "--yes")
    assert fleet(config, *purge, "--up-to", "3") == (0, "2 dead letters removed\n")
    assert fleet(config, *purge, "--up-to", "3") == (0, "0 dead letters removed\n")
    left = [json.loads(line)["number"] for line in fleet(config, "dead-letters", "ls", "--json")[1].splitlines()]
    assert left == [4]
    assert fleet(config, *purge) == (0, "1 dead letter removed\n")
    assert asyncio.run(_stored(cluster)) == 1


async def _stored(cluster: NatsCluster, stream: str = names.DEAD) -> int:
    engine = cluster.engine()
    found = await engine.stream_state(stream)
    await engine.aclose()
    return found.messages


@pytest.mark.parametrize("arguments", [("dead-letters", "purge", "--yes"), ("init",)], ids=" ".join)
def test_what_takes_an_administrator_says_so_to_a_relays_credentials(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    realm = Realm()
    admin, relay = tmp_path / "init.creds", tmp_path / "relay.creds"
    realm.issue(admin)
    realm.issue(relay, of_relays("web"))
    cluster = NatsCluster(tmp_path / "servers", options=realm.options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(["web"], credentials=admin))
        asyncio.run(_refused(cluster, admin))
        if arguments == ("init",):
            asyncio.run(_without_state(cluster, admin))
        file = written(tmp_path / "relay.toml", cluster.urls[0], credentials=relay)
        done = run_command("fleet", *arguments, "--config", file)
        (problem,) = problems(done.stderr)
        assert done.returncode == 4
        assert problem.startswith('permissions violation for publish to "$js.api.stream.')
        assert "as those of `fleet init`" in problem
        file = written(tmp_path / "init.toml", cluster.urls[0], credentials=admin)
        assert run_command("fleet", *arguments, "--config", file).stderr == ""
    finally:
        cluster.kill()


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        ("a pool", "permissions violation for publish"),
        ("another team", "permissions violation for"),
        ("nobody", "Authorization Violation"),
        ("no file", "wrong.creds: No such file or directory"),
    ],
)
def test_credentials_that_may_not_look_are_said_in_one_line(tmp_path: Path, whose: str, said: str) -> None:
    realm = Realm()
    admin, file = tmp_path / "init.creds", tmp_path / "wrong.creds"
    realm.issue(admin)
    if whose == "a pool":
        realm.issue(file, of_pool("web", "linux"))
    elif whose == "another team":
        realm.issue(file, of_relays("other"))
    elif whose == "nobody":
        Realm().issue(file)
    cluster = NatsCluster(tmp_path / "servers", options=realm.options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(["web"], credentials=admin))
        config = written(tmp_path / "relay.toml", cluster.urls[0], credentials=file)
        for arguments in (("status",), ("dead-letters", "ls")):
            done = run_command("fleet", *arguments, "--config", config)
            (problem,) = problems(done.stderr)
            assert done.returncode == 4
            assert problem.endswith(": this takes credentials of relays of the team: see `fleet permissions`")
            assert said in problem
    finally:
        cluster.kill()


async def _refused(cluster: NatsCluster, credentials: Path) -> None:
    engine = cluster.engine(credentials)
    await _refuse(engine, 1)
    await engine.aclose()


async def _without_state(cluster: NatsCluster, credentials: Path) -> None:
    engine = cluster.engine(credentials)
    await engine.ask(partial(JetStreamContext.delete_stream, name=names.DEAD))
    await engine.aclose()


def test_a_check_says_whether_a_relay_can_read_what_its_team_has(config: Path) -> None:
    def checked() -> dict[str, Any]:
        done = run_command("check", "--online", "--json", "--config", config)
        return {each["check"]: (each["ok"], each["message"]) for each in json.loads(done.stdout)["checks"]}

    fleet(config, "init")
    found = checked()
    assert found["relay"][0]
    assert found["engine of relay"][0]
    assert "has the ledger of team web, and 0 messages in its stream" in found["engine of relay"][1]
    written(config, NOWHERE)
    ok, message = checked()["engine of relay"]
    assert not ok
    assert "check relay.servers" in message


def test_a_check_of_a_runner_says_what_is_missing_before_init_and_that_nobody_takes_the_events_of_its_team(
    config: Path, cluster: NatsCluster, tmp_path: Path
) -> None:
    runner = tmp_path / "runner.toml"

    def checked(team: str) -> tuple[bool, str]:
        runner.write_text(f'[forward]\nservers = ["{cluster.urls[0]}"]\nteam = "{team}"\npool = "ci"\n')
        done = run_command("check", "--online", "--json", "--config", runner)
        (found,) = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "server"]
        return found["ok"], found["message"]

    ok, message = checked("web")
    assert (ok, "there is no fleet yet: run `artifacts-agent fleet init`" in message) == (False, True)
    fleet(config, "init")
    assert checked("web")[0]
    ok, message = checked("wbe")
    assert (ok, message.endswith("run `artifacts-agent fleet init`, or check forward.team")) == (False, True)


def test_a_server_without_a_fleet_is_said_in_one_line(config: Path) -> None:
    for arguments in (("status",), ("dead-letters", "ls")):
        done = run_command("fleet", *arguments, "--config", config)
        (problem,) = problems(done.stderr)
        assert done.returncode == 4
        assert problem.endswith(": run `artifacts-agent fleet init`")
        assert "None" not in problem


def test_teams_on_one_engine_do_not_see_each_other_and_each_needs_an_init(
    config: Path, cluster: NatsCluster, tmp_path: Path
) -> None:
    fleet(config, "init")
    asyncio.run(_with_engine(cluster))
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace('"web"', '"other"'))
    done = run_command("fleet", "status", "--config", other)
    (problem,) = problems(done.stderr)
    assert (done.returncode, problem) == (
        4,
        "the engine cannot be asked: consumer not found: run `artifacts-agent fleet init`",
    )
    code, said = fleet(other, "init")
    assert (code, said.splitlines()) == (
        0,
        [f"{name}: there" for name in THINGS[:5]] + ["consumer relay-other: created"],
    )
    code, said = fleet(other, "status", "--json")
    (team, found), *_ = json.loads(said)["teams"].items()
    assert (code, team, found["forwarded"], found["messages"], found["messages_waiting"]) == (0, "other", 0, 0, 0)
    assert status(config)["forwarded"] == 10


@pytest.mark.parametrize("arguments", [("init",), ("status",), ("dead-letters", "ls")], ids=" ".join)
def test_an_engine_that_does_not_answer_is_said_in_one_line(
    config: Path, cluster: NatsCluster, arguments: tuple[str, ...]
) -> None:
    fleet(config, "init")
    cluster.servers[0].signal(signal.SIGSTOP)
    try:
        done = run_command("fleet", *arguments, "--config", config)
    finally:
        cluster.servers[0].signal(signal.SIGCONT)
    (problem,) = problems(done.stderr)
    assert done.returncode == 4
    assert problem.startswith("the engine cannot be asked: ")


def test_one_server_of_several_is_enough_to_be_asked(config: Path, cluster: NatsCluster, tmp_path: Path) -> None:
    fleet(config, "init")
    both = tmp_path / "both.toml"
    both.write_text(config.read_text().replace('servers = ["', f'servers = ["{NOWHERE}", "'))
    assert status(both)["messages"] == 0


def test_permissions_are_those_of_a_pool_or_of_relays(config: Path) -> None:
    pool = json.loads(fleet(config, "permissions", "--pool", "linux")[1])["permissions"]
    assert pool == {"publish": {"allow": [LINUX]}, "subscribe": {"allow": ["_INBOX_aa.web.linux.>"]}}
    relays = json.loads(fleet(config, "permissions")[1])["permissions"]
    assert names.ledger_subject("web") in relays["publish"]["allow"]
    wrong = run_command("fleet", "permissions", "--pool", "a.b", "--config", config)
    assert (wrong.returncode, "'a.b' is no name" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("init",), ("status",), ("dead-letters", "ls")], ids=" ".join)
def test_an_engine_that_is_not_there_is_said_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command("fleet", *arguments, "--config", written(tmp_path / "config.toml", NOWHERE))
    (problem,) = problems(done.stderr)
    assert done.returncode == 4
    assert problem.startswith(f"the engine cannot be asked: {NOWHERE}: ")


def test_a_configuration_without_a_fleet_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    done = run_command("fleet", "status", "--config", tmp_path / "config.toml")
    (problem,) = problems(done.stderr)
    assert (done.returncode, "relay.servers" in problem) == (78, True)


@pytest.mark.parametrize(
    "arguments", [("fleet", "status"), ("fleet", "init"), ("fleet", "permissions"), ("check",)], ids=" ".join
)
def test_a_user_of_a_service_needs_no_directories_for_what_opens_neither_sockets_nor_a_queue(
    config: Path, arguments: tuple[str, ...]
) -> None:
    fleet(config, "init")
    for each in (config, *config.parents[:3]):
        each.chmod(0o755)
    command = [*as_user(NOBODY), *COMMAND, *arguments, "--config", str(config)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "ARTIFACTS_AGENT_TOKEN": "t"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
