"""`fleet` over a real engine: what it creates, what it says differs, and where it says that events are."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import dead, message, names
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.records import Part, Settled, encode_record
from agent.queue.cursor import Ledger, Outcome, Span
from agent.queue.dead_letters import DeadLetter
from tests.support.command import problems, run_command
from tests.support.nats import NatsCluster
from tests.support.pipelines import event

LINUX = names.events_subject("web", "linux")
QUEUE = "0123456789abcdef"
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


def written(file: Path, server: str, replicas: int = 1) -> Path:
    """Write a configuration."""
    file.write_text(f'[relay]\nservers = ["{server}"]\nteam = "web"\nreplicas = {replicas}\n')
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
    await engine.publish(names.ledger_subject("web"), encode_record(Settled(Outcome.DELIVERED, parts)), {})
    refused = (Part(LINUX, QUEUE, (Span(5, 6),)),)
    await engine.publish(names.ledger_subject("web"), encode_record(Settled(Outcome.DEAD_LETTERED, refused)), {})
    letter = DeadLetter(5, 1_750_000_000.0, 400, "400 Bad Request: no", Context(), encode_events(events[4:5]))
    body, headers = dead.of_event(LINUX, QUEUE, letter)
    await engine.publish(names.dead_subject("web"), body, headers)
    await engine.aclose()


def test_what_is_missing_is_created_and_what_is_there_is_left(config: Path) -> None:
    assert fleet(config, "init", "--dry-run")[0] == 1
    code, said = fleet(config, "init")
    assert (code, said.splitlines()) == (0, [f"{name}: created" for name in THINGS])
    code, said = fleet(config, "init", "--dry-run")
    assert (code, said.splitlines()) == (0, [f"{name}: there" for name in THINGS])


def test_what_differs_is_named_with_both_values_and_not_changed(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")

    async def change() -> None:
        engine: NatsEngine = cluster.engine()
        found = await engine.ask(partial(JetStreamContext.stream_info, name=names.EVENTS))
        assert found is not None
        changed = found.config.evolve(max_bytes=1000, duplicate_window=60.0)
        await engine.ask(partial(JetStreamContext.update_stream, config=changed))
        await engine.aclose()

    asyncio.run(change())
    for _ in range(2):
        code, said = fleet(config, "init", "--json")
        found = {each["name"]: each["differences"] for each in json.loads(said)["found"]}
        assert code == 1
        assert found.pop("AA_EVENTS") == ["max_bytes is 1000, not 10737418240", "duplicate_window is 60.0, not 600.0"]
        assert set(map(tuple, found.values())) == {()}


def test_the_status_says_where_every_event_is(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    assert {**status(config), "pools": {}} == {
        **dict.fromkeys(("forwarded", "delivered", "dead_lettered", "expired", "in_stream", "lost"), 0),
        **dict.fromkeys(("queued", "dropped", "in_doubt", "messages", "unreadable_messages"), 0),
        "pause": None,
        "oldest_event_at": None,
        "whole": True,
        "pools": {},
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
    assert "1 message in the stream" in said


def test_dead_letters_are_listed_exported_and_removed(config: Path, cluster: NatsCluster) -> None:
    fleet(config, "init")
    assert fleet(config, "dead-letters", "ls") == (0, "")
    asyncio.run(_with_engine(cluster))
    code, said = fleet(config, "dead-letters", "ls", "--json")
    found = json.loads(said)
    facts = {name: found[name] for name in ("subject", "queue", "seq", "status", "message")}
    assert (code, facts) == (
        0,
        {"subject": LINUX, "queue": QUEUE, "seq": 5, "status": 400, "message": "400 Bad Request: no"},
    )
    assert "400 Bad Request: no" in fleet(config, "dead-letters", "ls")[1]
    exported = json.loads(fleet(config, "dead-letters", "export")[1])
    assert (exported["hash"], exported) == ("h4", found["event"])
    refused = run_command("fleet", "dead-letters", "purge", "--config", config)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert fleet(config, "dead-letters", "purge", "--yes") == (0, "1 dead letter removed\n")
    assert fleet(config, "dead-letters", "ls") == (0, "")
    assert status(config)["dead_lettered"] == 1


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
