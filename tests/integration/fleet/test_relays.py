"""Relays as processes, over a real nats-server and an API over sockets: killed, blocked, refused, and nothing lost."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import message, names
from agent.fleet.engine import Engine
from agent.queue.cursor import Span
from tests.support.api_server import ApiServer, error
from tests.support.daemon import clean_environment
from tests.support.nats import free_port, nats_cluster
from tests.support.pipelines import event
from tests.support.relay_process import SUBJECT, RelayProcess, World, world
from tests.support.waiting import HUNG_AFTER, eventually

BLOCKED = error(402, "payment_required", "Payment Required")
SEED = 16


def test_two_relays_deliver_everything_while_they_are_killed_at_random(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        asyncio.run(_delivers_while_killed(w))


async def _delivers_while_killed(w: World) -> None:
    chance = random.Random(SEED)
    engine = w.cluster.engine()
    w.api.reject_hashes = {"bad-3", "bad-11"}
    for relay in w.relays:
        relay.start()
    total = 0
    for turn in range(12):
        for number in range(20):
            count = chance.randint(1, 40)
            hashes = [f"h-{turn}-{number}-{index}" for index in range(count)]
            if number == 7:
                hashes[0] = f"bad-{turn}"
            await w.publish(engine, f"q{chance.randrange(5)}", hashes)
            total += count
        await asyncio.sleep(0.3)
        if turn % 2:
            relay = chance.choice(w.relays)
            relay.kill()
            relay.start()
    await w.drained(engine)
    ledger = await w.ledger(engine)
    taken = w.taken()
    dead = await _dead_ids(engine)
    await engine.aclose()
    assert len(taken) == total - 2
    assert ledger.sums == {"delivered": total - 2, "dead_lettered": 2}
    assert (len(dead), len(set(dead))) == (2, 2)
    assert sum(taken.values()) - len(taken) <= ledger.in_doubt
    assert [relay.terminate() for relay in w.relays] == [0, 0]


async def _dead_ids(engine: Engine) -> list[str]:
    found: list[str] = []
    after = 0
    while (letter := await engine.next_stored(names.DEAD, names.dead_subject("web"), after)) is not None:
        found.append(letter.headers["Nats-Msg-Id"])
        after = letter.seq
    return found


def test_after_a_402_both_relays_wait_and_one_probe_resumes_both(tmp_path: Path) -> None:
    with world(tmp_path, '[pause]\nprobe_interval = "4s"\nmax_probe_interval = "8s"\n') as w:
        asyncio.run(_pauses_together(w))


async def _pauses_together(w: World) -> None:
    engine = w.cluster.engine()
    w.api.default = BLOCKED
    for relay in w.relays:
        relay.start()
    await w.publish(engine, "q", ["first"])
    await asyncio.to_thread(w.api.wait_for_posts, 1)
    await asyncio.sleep(1.5)  # until which the other one has looked at the key
    for number in range(40):
        await w.publish(engine, "q", [f"h{number}-{index}" for index in range(10)])
    await asyncio.to_thread(w.api.wait_for_posts, 3)
    posts = w.api.posts()
    assert all(len(post.events) == 1 for post in posts)
    assert all(later.at - sooner.at > 3.0 for sooner, later in pairwise(posts))
    entry = await engine.get(names.pause_key("web"))
    assert entry is not None
    w.api.default = type(BLOCKED)()
    await w.drained(engine)
    assert len(w.taken()) == 401
    assert await engine.get(names.pause_key("web")) is None
    await engine.aclose()


def test_a_relay_reads_its_token_again_when_the_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("wrong")
    with (
        nats_cluster(tmp_path / "nats") as cluster,
        ApiServer(token="right") as api,
        World(tmp_path, cluster, api, '[pause]\nprobe_interval = "1h"\n', more_of_api=f'token_file = "{file}"\n') as w,
    ):
        asyncio.run(_renews(w, file))


async def _renews(w: World, file: Path) -> None:
    engine, log = w.cluster.engine(), w.relays[0].log
    w.relays[0].start()
    await w.publish(engine, "q", ["a"])
    await asyncio.to_thread(eventually, log.read_text, lambda said: "delivery_paused" in said)
    _replace(file, "two words")
    await asyncio.to_thread(eventually, log.read_text, lambda said: "reload_refused" in said)
    assert w.taken() == {}
    _replace(file, "right")
    await w.drained(engine)
    await engine.aclose()
    assert w.taken() == {"a": 1}


def _replace(file: Path, token: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(token)
    new.rename(file)


def test_what_comes_twice_is_sent_once_and_what_is_old_expires(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        asyncio.run(_once(w))


async def _once(w: World) -> None:
    engine = w.cluster.engine()
    w.relays[0].start()
    await w.publish(engine, "q", ["a", "b"])
    await w.publish(engine, "q", ["old"], enqueued_at=time.time() - 30 * 86400)
    await w.drained(engine)
    w.relays[0].kill()
    w.relays[1].start()
    lines = encode_events([event("a"), event("b")])
    headers = message.encode(Batch(Context(), lines, (Span(1, 3),)), "q")
    await engine.publish(SUBJECT, lines, headers | {"Nats-Msg-Id": "as if it had been forgotten"})
    await w.drained(engine)
    ledger = await w.ledger(engine)
    assert (w.taken(), ledger.sums) == ({"a": 1, "b": 1}, {"delivered": 2, "expired": 1})
    await engine.aclose()


def test_what_a_runner_publishes_again_after_the_engine_forgot_its_ids_is_delivered_once(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        asyncio.run(_again(w))


async def _again(w: World) -> None:
    engine = w.cluster.engine()
    lines = encode_events([event("a"), event("b")])
    headers = message.encode(Batch(Context(), lines, (Span(1, 3),)), "q")
    w.relays[0].start()
    assert await engine.publish(SUBJECT, lines, headers)
    assert not await engine.publish(SUBJECT, lines, headers)
    await w.drained(engine)
    w.cluster.kill()
    w.cluster.start()
    await w.cluster.ready(["web"])
    assert await engine.publish(SUBJECT, lines, headers)  # to the engine it is a new one
    await w.drained(engine)
    ledger = await w.ledger(engine)
    await engine.aclose()
    assert (w.taken(), ledger.sums) == ({"a": 1, "b": 1}, {"delivered": 2})


def test_a_relay_waits_for_an_engine_that_is_down_and_ends_when_it_is_told(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.cluster.kill()
        relay = w.relays[0]
        relay.start()
        asyncio.run(_waits(relay, "relays_not_reached", "ledger_unreadable"))
        assert relay.terminate() == 0
        relay.start()
        asyncio.run(_waits(relay, "ledger_unreadable"))
        w.cluster.start()
        asyncio.run(w.cluster.ready(["web"]))
        asyncio.run(_delivers_one(w))


async def _waits(relay: RelayProcess, *events: str) -> None:
    async with asyncio.timeout(HUNG_AFTER):
        while not any(name in relay.log.read_text() for name in events):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def _delivers_one(w: World) -> None:
    engine = w.cluster.engine()
    await w.publish(engine, "q", ["a"])
    await w.drained(engine)
    assert w.taken() == {"a": 1}
    await engine.aclose()


def test_a_relay_says_what_it_does_to_prometheus(tmp_path: Path) -> None:
    port = free_port()
    with world(tmp_path, f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as w:
        w.relays[0].start()
        asyncio.run(_delivers_one(w))

        def scraped() -> str:
            return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text

        text = eventually(scraped, lambda found: "fleet_stream_limit_bytes" in found)
        assert 'artifacts_agent_relay_events_settled_total{outcome="delivered"} 1.0' in text
        assert 'artifacts_agent_relay_state{state="running"} 1.0' in text
        assert 'artifacts_agent_fleet_events_in_doubt{team="web"} 0.0' in text
        assert 'artifacts_agent_fleet_stream_limit_bytes{stream="AA_DEAD"} 1.6777216e+07' in text
        assert 'artifacts_agent_responses_total{destination="default",status="200"} 1.0' in text
        for server in w.cluster.servers:
            server.signal(signal.SIGSTOP)  # it hangs
        eventually(scraped, lambda found: "artifacts_agent_relay_engine_failing 1.0" in found)


def test_a_relay_lives_but_is_not_ready_while_there_is_no_engine(tmp_path: Path) -> None:
    port = free_port()

    def answer(path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}/{path}", trust_env=False)

    def ready() -> bool:
        with suppress(httpx.TransportError):  # it does not listen yet
            return answer("readyz").status_code == 200
        return False

    with world(tmp_path, f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as w:
        w.relays[0].start()
        eventually(ready, bool)
        w.cluster.kill()
        eventually(ready, lambda found: not found)
        assert answer("readyz").json()["problem"]
        assert answer("healthz").status_code == 200
        w.cluster.start()
        eventually(ready, bool)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "relay.servers"),
        ('[relay]\nservers = "nats://127.0.0.1"\n', "relay.servers and relay.team belong together"),
    ],
)
def test_a_relay_that_is_not_configured_says_so(tmp_path: Path, config: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(config)
    command = [sys.executable, "-m", "agent.cli", "relay", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=HUNG_AFTER)
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr
