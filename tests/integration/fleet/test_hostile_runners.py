"""What a stolen credential of a runner, or an engine that lost a stream, does to real relays over a real nats-server: little."""

import asyncio
from pathlib import Path

from agent.fleet import names
from agent.fleet.nats_setup import MAX_ACK_PENDING
from tests.support.relay_process import SUBJECT, World, world
from tests.support.waiting import eventually


def test_more_rubbish_than_is_given_out_at_once_and_no_room_for_it_hold_nobody_up(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        asyncio.run(_rubbish(w))
        assert all("dead_letters_full" in relay.log.read_text() for relay in w.relays[:1])


async def _rubbish(w: World) -> None:
    engine = w.cluster.engine()
    await w.cluster.fill(names.DEAD)
    for _ in range(MAX_ACK_PENDING + 100):
        await engine.publish(SUBJECT, b"later", {"AA-Version": "2"})
    await w.publish(engine, "q", ["a", "b"])
    w.relays[0].start()
    await w.drained(engine)
    assert w.taken() == {"a": 1, "b": 1}
    await engine.aclose()


def test_relays_go_on_with_a_ledger_that_is_made_anew(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        asyncio.run(_made_anew(w))
        for relay in w.relays:
            eventually(relay.log.read_text, lambda said: "ledger_made_anew" in said)


async def _made_anew(w: World) -> None:
    engine = w.cluster.engine()
    for relay in w.relays:
        relay.start()
    for relay in w.relays:
        await asyncio.to_thread(eventually, relay.log.read_text, lambda said: "connected" in said)
    await w.publish(engine, "q", [f"h{number}" for number in range(20)])
    await w.drained(engine)
    await w.cluster.remove([names.LEDGER])
    await w.cluster.ready(["web"])
    for number in range(20):
        await w.publish(engine, "p", [f"p{number}"])
    await w.drained(engine)
    assert sorted(w.taken()) == sorted(
        [*(f"h{number}" for number in range(20)), *(f"p{number}" for number in range(20))]
    )
    assert (await w.ledger(engine)).sums == {"delivered": 20}  # those that the new stream has
    await engine.aclose()
