"""What relays promise: each event is settled once and written down, nothing is lost, and all of them pause together."""

from itertools import pairwise
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, Event, encode_events
from agent.fleet import dead, message, names
from agent.fleet.engine import EngineError, Message
from agent.fleet.following import LedgerFollower, snapshot_name
from agent.fleet.held import HeldMessages
from agent.fleet.message import Events
from agent.fleet.records import Intent, Part, QueueLedger, Released, Seen, Settled
from agent.queue.cursor import Ledger, Outcome, Span
from agent.queue.dead_letters import decode_dead_letter
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, LOST, UNREACHED, FakeTransport, reject
from tests.support.memory_engine import ACK_WAIT, MAX_ACK_PENDING, MemoryEngine
from tests.support.pipelines import EPOCH, PLAIN, event, numbered
from tests.support.relays import SUBJECT, TEAM, Fleet, fleet

pytestmark = pytest.mark.anyio

BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required", 402)
BUSY = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
UNHEARD = Verdict(Kind.TRANSIENT, "504 Gateway Timeout", 504)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


BAD = tuple(f"bad{number}" for number in range(1, 61))
OTHERS = names.events_subject(TEAM, "others")


async def publish_bad(f: Fleet, first: int) -> None:
    """Publish 30 of BAD, each of a session of its own."""
    bad = [Event(name, "LOCAL", "HIT", name, 1) for name in BAD[first - 1 : first + 29]]
    batch = Batch(PLAIN, encode_events(bad), (Span(first, first + 30),))
    await MemoryEngine(f.broker).publish(SUBJECT, batch.lines, message.encode(batch, "bad"))


def dead_letters(f: Fleet) -> list[tuple[str, str]]:
    """Return the hashes of the dead letters, and what was said of them."""
    letters = map(decode_dead_letter, f.broker.bodies(names.DEAD))
    return [(letter.event.hash, letter.message) for letter in letters]


async def test_messages_of_many_runners_become_one_batch_that_is_written_down_before_and_after() -> None:
    async with fleet() as f:
        for number in range(5):
            await f.publish("a", "b", queue=f"q{number}", first=1)
        await f.start()
        await f.settled()
        (sent,) = f.transport.answered
        assert sent.hashes == ["a", "b"] * 5
        intent, settled = f.records
        assert isinstance(intent, Intent)
        assert isinstance(settled, Settled)
        assert (settled.id, settled.parts, settled.outcome) == (intent.id, intent.parts, Outcome.DELIVERED)
        assert sorted(part.queue for part in intent.parts) == [f"q{number}" for number in range(5)]
        assert (f.ledger.sums, f.ledger.in_doubt) == ({"delivered": 10}, 0)


async def test_events_of_different_contexts_do_not_share_a_batch() -> None:
    async with fleet() as f:
        await f.publish("a", context=Context("A"))
        await f.publish("b", context=Context("B"))
        await f.start()
        await f.settled()
        assert sorted((sent.context.ci, *sent.hashes) for sent in f.transport.answered) == [("A", "a"), ("B", "b")]


async def test_what_was_settled_is_not_sent_again_though_it_comes_again() -> None:
    async with fleet() as f:
        await f.publish("a", "b")
        await f.start()
        await f.settled()
        f.broker.forget_ids()
        await f.publish("a", "b", first=1)
        await f.publish("b", "c", first=2)
        await f.settled()
        assert f.transport.taken == ["a", "b", "c"]
        assert f.ledger.sums == {"delivered": 3}


async def test_a_copy_that_comes_while_the_first_is_held_waits_for_it() -> None:
    async with fleet() as f:
        f.transport.hold()
        await f.publish("a")
        f.broker.forget_ids()
        await f.publish("a", first=1)
        await f.start()
        await anyio.sleep(20)
        f.transport.release()
        await f.settled()
        assert f.transport.taken == ["a"]


@pytest.mark.parametrize("share", ["all", "one event"])
async def test_copies_hold_nobody_up_however_many_there_are(share: str) -> None:
    """More than the engine gives out without an acknowledgement, of the same events or with one in common."""
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=100, initial_delay=0.1)
        for number in range(MAX_ACK_PENDING + 200):
            spans = (Span(1, 2),) if share == "all" else (Span(1, 2), Span(number + 2, number + 3))
            lines = encode_events([event("copy")] * len(spans))
            headers = message.encode(Batch(Context(), lines, spans), "stolen") | {"Nats-Msg-Id": f"{number}"}
            await MemoryEngine(f.broker).publish(SUBJECT, lines, headers)
        await f.publish("a")
        life = await f.start()
        begun = anyio.current_time()
        await f.transport.wait_until(lambda api: "a" in api.taken)
        assert anyio.current_time() - begun < 30
        await f.settled()
        assert f.ledger.sums == {"delivered": 2 if share == "all" else MAX_ACK_PENDING + 202}
        assert (life.relay.backlog.held_events, f.ledger.in_doubt) == (0, 0)


async def test_messages_of_a_stream_that_was_made_anew_are_not_taken_for_those_that_are_held() -> None:
    async with fleet() as f:
        f.transport.hold()
        await f.publish("old")
        await f.start()
        await anyio.sleep(2)
        f.broker.renew(names.EVENTS)
        await f.publish("new", queue="q2", first=1)
        await anyio.sleep(2)
        f.transport.release()
        await f.settled()
        assert f.transport.taken == ["old", "new"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"A(b)@": "1"}, id="a name that the client does not write"),
        pytest.param({"AA-Ledger": "[" * 50_000}, id="deep"),
        pytest.param({"AA-Version": "1", "AA-Queue": "q", "AA-Ledger": "x" * 65_000}, id="nearly all that is allowed"),
    ],
)
async def test_no_header_keeps_a_message_that_says_nothing_from_the_dead(headers: dict[str, str]) -> None:
    found = Message(SUBJECT, headers, b"x\n", 7)
    body, kept = dead.of_message(found, "why", 1024 * 1024)
    assert body == b"x\n"
    assert all(name.replace("-", "").isalnum() for name in kept)
    assert sum(len(name) + len(value) + 4 for name, value in kept.items()) < 48 * 1024


async def test_events_that_are_held_are_told_from_others_of_the_queue_whatever_their_gaps() -> None:
    held, odd, even = (
        HeldMessages(),
        [Span(n, n + 1) for n in range(1, 99, 2)],
        [Span(n, n + 1) for n in range(2, 99, 2)],
    )
    lines = b"{}\n" * len(odd)
    held.add(Message(SUBJECT, {}, lines, 1), Events("q", tuple(odd), Context(), lines), 0.0)
    assert not held.standing_for(Part(SUBJECT, "q", tuple(even)))
    assert not held.standing_for(Part(SUBJECT, "other", tuple(odd)))
    assert held.standing_for(Part(SUBJECT, "q", (*even[:-1], Span(97, 99))))
    assert held.standing_for(Part(SUBJECT, "q", (Span(1, 2),)))


async def test_an_answer_that_was_lost_leaves_its_events_in_doubt() -> None:
    async with fleet() as f:
        f.transport.script([LOST])
        await f.publish("a")
        await f.start()
        await f.settled()
        assert f.transport.taken == ["a", "a"]
        assert (f.ledger.sums, f.ledger.in_doubt) == ({"delivered": 1}, 1)


@pytest.mark.parametrize(("verdict", "in_doubt"), [(BUSY, 0), (UNREACHED, 0), (UNHEARD, 1)])
async def test_an_answer_that_took_nothing_releases_its_events(verdict: Verdict, in_doubt: int) -> None:
    async with fleet() as f:
        f.transport.script([verdict])
        await f.publish("a")
        await f.start()
        await f.settled()
        assert len([each for each in f.records if isinstance(each, Released)]) == 1 - in_doubt
        assert f.ledger.in_doubt == in_doubt


async def test_a_bad_event_alone_becomes_a_dead_letter_with_its_number_in_its_queue() -> None:
    async with fleet() as f:
        f.transport.rule = reject("bad")
        await f.publish(*numbered(3), queue="other", first=1)
        await f.publish("a", "bad", "b", first=7)
        await f.start()
        await f.settled()
        assert sorted(f.transport.taken) == ["a", "b", "h0", "h1", "h2"]
        assert dead_letters(f) == [("bad", "400 Bad Request: Invalid event bad")]
        (letter,) = f.broker.streams[names.DEAD].messages.values()
        assert letter.headers["Nats-Msg-Id"] == f"{SUBJECT}:q1:8"
        assert (letter.headers[dead.SUBJECT], letter.headers[dead.QUEUE]) == (SUBJECT, "q1")
        assert f.ledger.sums == {"delivered": 5, "dead_lettered": 1}


async def test_in_doubt_the_sample_is_of_another_pool_so_that_one_alone_pauses_nobody() -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=10, initial_delay=0.1, requests_per_minute=60)
        f.transport.rule = reject(*BAD)
        await publish_bad(f, first=1)
        await f.publish("good", subject=OTHERS)
        await publish_bad(f, first=31)
        life = await f.start()
        await f.transport.wait_until(lambda api: api.taken == ["good"])
        assert len(f.transport.answered) > f.settings.rejections_in_a_row
        await anyio.sleep(0.1)
        assert life.relay.worker is not None
        assert (life.relay.worker.state.doubt, life.relay.worker.state.paused, life.relay.backlog.pause) == (None,) * 3


async def test_where_all_pools_are_refused_relays_pause() -> None:
    async with fleet() as f:
        f.transport.rule = reject("good", *BAD)
        await publish_bad(f, first=1)
        await f.publish("good", subject=OTHERS)
        await publish_bad(f, first=31)
        life = await f.start()
        while life.relay.backlog.pause is None:  # noqa: ASYNC110 - of virtual time
            await anyio.sleep(1)
        assert life.relay.backlog.pause.reason == "rejections"
        assert ["good"] in [sent.hashes for sent in f.transport.answered]


async def test_an_event_that_is_too_old_expires_by_name_and_is_not_sent() -> None:
    async with fleet() as f:
        f.options = BatchOptions(max_delay=0.5, max_age=60.0)
        await f.publish("old", enqueued_at=EPOCH - 61.0)
        await f.publish("new", enqueued_at=EPOCH - 50.0)
        life = await f.start()
        await f.settled()
        assert f.transport.taken == ["new"]
        assert f.ledger.sums == {"delivered": 1, "expired": 1}
        assert life.relay.backlog.settled == {"delivered": 1, "expired": 1}


async def test_a_message_that_no_agent_wrote_is_moved_aside_and_holds_nobody_up() -> None:
    async with fleet() as f:
        engine = MemoryEngine(f.broker)
        await engine.publish(SUBJECT, b"rubbish", {"AA-Version": "1", "AA-Queue": "q", "AA-Spans": "1-1"})
        await f.publish("a")
        life = await f.start()
        await f.settled()
        assert f.transport.taken == ["a"]
        (kept,) = f.broker.streams[names.DEAD].messages.values()
        assert (kept.body, kept.headers[dead.KIND]) == (b"rubbish", dead.MESSAGE)
        assert kept.headers[dead.REASON] == "the body has 0 lines, the spans 1 events"
        assert kept.headers["Original-AA-Queue"] == "q"
        assert life.relay.backlog.unreadable == 1


async def test_while_no_dead_letter_is_taken_what_can_be_delivered_is() -> None:
    async with fleet() as f:
        f.broker.denied = {names.dead_subject(TEAM)}
        f.settings = DeliverySettings(max_events=1, concurrency=2, initial_delay=0.1)
        f.transport.rule = reject("bad")
        await f.publish("a")
        await MemoryEngine(f.broker).publish(SUBJECT, b"rubbish", {})
        await f.publish("bad")
        await f.publish("b")
        life = await f.start()
        await f.transport.wait_until(lambda api: api.taken == ["a", "b"])
        await anyio.sleep(300)
        await f.publish("c")
        await f.transport.wait_until(lambda api: api.taken == ["a", "b", "c"])
        await anyio.sleep(300)
        assert life.relay.backlog.storage_error is not None
        assert (f.waiting, life.relay.backlog.unreadable) == (2, 0)
        f.broker.denied = set()
        await f.settled()
        assert (life.relay.backlog.unreadable, life.relay.backlog.dead_not_kept) == (1, 0)
        assert len(f.broker.bodies(names.DEAD)) == 2


async def test_a_refused_event_for_which_there_is_no_room_is_said_and_counted_and_nobody_waits_for_it() -> None:
    async with fleet() as f:
        f.broker.full = {names.DEAD}
        f.settings = DeliverySettings(max_events=1, concurrency=1, initial_delay=0.1)
        f.transport.rule = reject("bad")
        await f.publish("bad")
        await f.publish("a")
        with capture_logs() as logs:
            life = await f.start()
            await f.settled()
        assert f.transport.taken == ["a"]
        assert f.ledger.sums == {"delivered": 1, "dead_lettered": 1}
        assert (life.relay.backlog.dead_not_kept, life.relay.backlog.storage_error) == (1, None)
        (said,) = [each for each in logs if each["event"] == "event_dead_lettered"]
        assert '"bad"' in said["sent"]
        assert [each["error"] for each in logs if each["event"] == "dead_letters_full"] == ["maximum bytes exceeded"]


async def test_a_message_that_leaves_no_room_for_a_reason_is_cut() -> None:
    async with fleet() as f:
        f.broker.max_payload = 8192
        await MemoryEngine(f.broker).publish(SUBJECT, b"x" * 8150, {})
        await f.start()
        await f.settled()
        (kept,) = f.broker.streams[names.DEAD].messages.values()
        assert (len(kept.body), kept.headers[dead.TRUNCATED]) == (4096, "8150")


@pytest.mark.parametrize("full", [set(), {names.DEAD}], ids=["kept", "no room"])
async def test_messages_that_say_nothing_hold_nobody_up_however_many_there_are(full: set[str]) -> None:
    """More than the engine gives out without an acknowledgement."""
    async with fleet() as f:
        f.broker.full = full
        for _ in range(MAX_ACK_PENDING + 100):
            await MemoryEngine(f.broker).publish(SUBJECT, b"later", {"AA-Version": "2"})
        await f.publish("a")
        life = await f.start()
        await f.settled()
        assert f.transport.taken == ["a"]
        backlog, count = life.relay.backlog, MAX_ACK_PENDING + 100
        assert (backlog.unreadable, backlog.dead_not_kept) == (count, count if full else 0)
        assert len(f.broker.bodies(names.DEAD)) == (0 if full else count)


async def test_what_a_later_release_publishes_stays_with_its_runner() -> None:
    async with fleet() as f:
        with pytest.raises(EngineError):
            await MemoryEngine(f.broker).publish("aa.e2.web.linux", b"later", {"AA-Version": "2"})


async def test_the_ledger_of_a_runner_is_written_down_before_its_message_goes() -> None:
    async with fleet() as f:
        ledger = Ledger(5, 0, 0, {"expired": 1}, 2, forwarded=2)
        await f.publish("a", "b", ledger=ledger)
        await f.start()
        await f.settled()
        seen = [each for each in f.records if isinstance(each, Seen)]
        assert [each.ledgers for each in seen] == [(QueueLedger(SUBJECT, "q1", ledger),)]


async def test_ledgers_that_come_together_are_one_record_and_what_is_known_is_none() -> None:
    async with fleet() as f:
        ledger = Ledger(5, 0, 0, {}, 0, forwarded=5)
        for number in range(40):
            await MemoryEngine(f.broker).publish(SUBJECT, b"", message.encode_ledger(f"q{number % 20}", ledger))
        await f.start()
        await f.settled()
        seen = [each for each in f.records if isinstance(each, Seen)]
        assert [len(each.ledgers) for each in seen] == [20]
        assert (len(f.ledger.seen), f.ledger.forwarded) == (20, 100)


@pytest.mark.parametrize("records", [0, 40], ids=["shorter than before", "longer than before"])
async def test_relays_go_on_with_a_ledger_that_is_made_anew_under_them(records: int) -> None:
    """What was settled before is not sent again by them, nor by one that starts later, and all read the new records."""
    async with fleet() as f:
        lives = [await f.start(), await f.start()]
        await f.publish(*numbered(9))
        await f.settled()
        for life in lives:
            await life.relay.follower.catch_up()
        f.broker.renew(names.LEDGER)
        for _ in range(records):
            await MemoryEngine(f.broker).publish(names.ledger_subject(TEAM), b'{"type":"released","id":"x"}', {})
        f.broker.forget_ids()
        await f.publish(*numbered(9), first=1)
        await f.publish("new")
        await f.settled()
        await anyio.sleep(10)
        lives.append(await f.start())
        f.broker.forget_ids()
        await f.publish("new", first=10)
        await f.settled()
        for life in lives:
            await life.relay.follower.catch_up()
        assert f.transport.taken == [*numbered(9), "new"]
        assert [life.relay.follower.ledger.sums for life in lives] == [{"delivered": 10}] * 3
        assert [life.relay.follower.ledger.seq for life in lives] == [f.broker.streams[names.LEDGER].last_seq] * 3


async def test_a_relay_that_is_killed_repeats_at_most_what_is_in_doubt() -> None:
    async with fleet() as f:
        f.transport.hold()
        await f.publish(*numbered(25))
        life = await f.start()
        await f.transport.wait_until(lambda api: api.in_flight > 0)
        await life.kill()
        f.transport.release()
        await f.start()
        await f.settled()
        assert sorted(f.transport.taken) == sorted(numbered(25))
        assert f.ledger.sums == {"delivered": 25}
        assert f.ledger.in_doubt > 0


async def test_a_drained_relay_settles_what_is_under_way_and_others_have_the_rest_at_once() -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=5, concurrency=1)
        f.transport.hold()
        for number in range(4):
            await f.publish(*numbered(5, f"m{number}-"))
        first = await f.start()
        await f.transport.wait_until(lambda api: api.in_flight > 0)
        f.transport.hold()
        async with anyio.create_task_group() as draining:
            draining.start_soon(first.relay.drain, 10.0)
            await anyio.sleep(1.0)
            f.transport.release()
        await first.ended.wait()
        assert f.ledger.sums == {"delivered": 5}
        before = anyio.current_time()
        await f.start()
        await f.settled()
        assert anyio.current_time() - before < ACK_WAIT / 2
        assert (len(f.transport.taken), f.ledger.in_doubt) == (20, 0)


async def test_a_relay_ends_within_its_deadline_though_the_engine_is_down() -> None:
    async with fleet() as f:
        f.broker.down = True
        life = await f.start(ready=False)
        await anyio.sleep(60)
        await life.relay.drain(5.0)
        await life.ended.wait()


@pytest.mark.parametrize("stream", [names.LEDGER, "all"])
async def test_an_engine_that_takes_nothing_holds_delivery_up_and_loses_nothing(stream: str) -> None:
    async with fleet() as f:
        life = await f.start()
        f.broker.down, f.broker.full = stream == "all", {stream}
        if stream != "all":
            await f.publish(*numbered(20))
        await anyio.sleep(600)
        assert f.transport.taken == []
        assert life.relay.backlog.storage_error is not None
        f.broker.down, f.broker.full = False, set()
        if stream == "all":
            await f.publish(*numbered(20))
        await f.settled()
        assert sorted(f.transport.taken) == sorted(numbered(20))
        assert life.relay.backlog.storage_error is None


async def test_a_settlement_that_is_not_taken_is_written_until_it_is() -> None:
    async with fleet() as f:
        await f.start()
        f.transport.hold()
        await f.publish("a")
        await f.transport.wait_until(lambda api: api.in_flight > 0)
        f.broker.full = {names.LEDGER}
        f.transport.release()
        await anyio.sleep(300)
        assert f.ledger.sums == {}
        f.broker.full = set()
        await f.settled()
        assert f.transport.taken == ["a"]
        assert (f.ledger.sums, f.ledger.in_doubt) == ({"delivered": 1}, 0)


async def test_records_whose_answers_are_lost_are_there_once() -> None:
    async with fleet() as f:
        await f.start()
        await f.publish("a", "b")
        f.broker.lose_answers = 3
        await f.settled()
        assert f.transport.taken == ["a", "b"]
        assert (f.ledger.sums, f.ledger.in_doubt) == ({"delivered": 2}, 0)


async def test_after_one_402_no_relay_sends_events_and_one_at_a_time_probes() -> None:
    async with fleet() as f:
        for skew in (0.0, 5.0, -5.0):
            await f.start(skew)
        f.transport.rule = lambda *_: BLOCKED
        await f.publish("a")
        await f.transport.wait_until(lambda api: len(api.answered) == 1)
        for number in range(30):
            await f.publish(*numbered(5, f"m{number}-"))
        await anyio.sleep(3600)
        assert all(len(sent.events) == 1 for sent in f.transport.answered)
        times = [sent.at for sent in f.transport.answered]
        assert 3 <= len(times) <= 7  # after 5, 10, 20 minutes and so on, ± 10 %
        assert all(later - sooner > 200 for sooner, later in pairwise(times))
        states = [life.relay.worker.state.paused for life in f.lives if life.relay.worker is not None]
        assert {(each.reason, each.message) for each in states if each is not None} == {
            ("blocked", "402 Payment Required")
        }
        assert len(states) == 3
        assert None not in states
        f.transport.rule = lambda *_: ACCEPTED
        await f.settled()
        assert len(set(f.transport.taken)) == 151
        assert f.broker.keys.keys() == set()


async def test_another_transport_ends_the_pause_of_all_and_is_used_from_then_on() -> None:
    async with fleet() as f:
        first, second, renewed = await f.start(), await f.start(), FakeTransport()
        f.transport.rule = lambda *_: BLOCKED
        await f.publish("a")
        await f.transport.wait_until(lambda api: len(api.answered) == 1)
        await anyio.sleep(5)
        await second.kill()
        first.relay.replace_transport(renewed)
        with anyio.fail_after(200):  # the probe would be after 300 s; who was killed may hold the event for a while
            await f.settled()
        assert (len(f.transport.answered), renewed.taken) == (1, ["a"])
        assert f.broker.keys.keys() == set()


async def test_a_transport_that_is_replaced_before_the_relay_has_begun_is_not_used() -> None:
    async with fleet() as f:
        life, renewed = await f.start(ready=False), FakeTransport()
        life.relay.replace_transport(renewed)
        await f.publish("a")
        await f.settled()
        assert (f.transport.taken, renewed.taken) == ([], ["a"])


async def test_a_relay_that_starts_while_the_account_is_blocked_sends_nothing() -> None:
    async with fleet() as f:
        first = await f.start()
        f.transport.rule = lambda *_: BLOCKED
        await f.publish("a")
        await f.transport.wait_until(lambda api: len(api.answered) == 1)
        await anyio.sleep(5)
        await first.kill()
        await f.start()
        await anyio.sleep(200)
        assert len(f.transport.answered) == 1


async def test_a_probe_whose_relay_was_killed_is_made_by_another_one() -> None:
    async with fleet() as f:
        first, _ = await f.start(), await f.start()
        f.transport.rule = lambda *_: BLOCKED
        await f.publish("a")
        await f.transport.wait_until(lambda api: len(api.answered) == 1)
        f.transport.hold()
        await f.transport.wait_until(lambda api: api.in_flight > 0 or len(api.probes) > 0)
        for life in f.lives[:1]:
            await life.kill()
        f.transport.release()
        f.transport.rule = lambda *_: ACCEPTED
        await f.settled()
        assert first.ended.is_set()
        assert "a" in f.transport.taken


@pytest.mark.parametrize("skews", [(0.0,), (0.0, 5.0, -5.0)])
async def test_all_relays_together_keep_to_one_rate_though_their_clocks_differ(skews: tuple[float, ...]) -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=1, concurrency=4, requests_per_minute=100)
        f.options = BatchOptions(max_delay=0.0)
        for skew in skews:
            await f.start(skew)
        begun = anyio.current_time()
        for number in range(30):
            await f.publish(*numbered(10, f"m{number}-"))
        await f.settled()
        times = sorted(sent.at for sent in f.transport.answered)
        assert len(times) == 300
        for index, at in enumerate(times):
            assert len([each for each in times[index:] if each < at + 60 - 1e-6]) <= 100
        assert times[-1] - begun < 300 / 100 * 60 * 1.1


async def test_a_relay_begins_with_a_snapshot_and_with_the_stream_where_that_is_damaged() -> None:
    async with fleet() as f:
        life = await f.start()
        await f.publish(*numbered(4))
        await f.settled()
        await life.relay.follower.catch_up()
        await life.relay.follower.save()
        await life.kill()
        f.broker.forget_ids()
        for data in (f.broker.objects[snapshot_name(TEAM)], b"damaged", None):
            f.broker.objects = {snapshot_name(TEAM): data} if data is not None else {}
            follower = LedgerFollower(MemoryEngine(f.broker), TEAM)
            await follower.load()
            assert (follower.ledger.seq == 0) is (data is None or data == b"damaged")
            life = await f.start()
            await f.publish(*numbered(4), first=1)
            await f.settled()
            await life.kill()
        assert f.transport.taken == numbered(4)


async def test_a_ledger_whose_beginning_is_gone_is_said_once_and_followed_from_there() -> None:
    async with fleet() as f:
        life = await f.start()
        for number in range(4):
            await f.publish(f"h{number}")
            await f.settled()
        await life.kill()
        kept = f.broker.streams[names.LEDGER].messages
        for seq in list(kept)[:4]:  # two requests
            del kept[seq]
        f.broker.objects.clear()
        with capture_logs() as logs:
            await f.start()
            await f.publish("h4")
            await f.settled()
        said = [each for each in logs if each["event"] == "ledger_records_gone"]
        assert [(each["first"], each["last"]) for each in said] == [(1, 4)]
        assert f.ledger.sums == {"delivered": 3}
        with capture_logs() as logs:
            await LedgerFollower(MemoryEngine(f.broker), TEAM).load()
        assert logs == []


async def test_two_relays_share_the_work_and_lose_nothing_while_they_are_killed() -> None:
    async with fleet() as f:
        for turn in range(6):
            await f.start()
            await f.start()
            seen = len(f.transport.answered)
            for number in range(40):
                await f.publish(*numbered(7, f"{turn}-{number}-"), queue=f"q{number % 3}")
            await f.transport.wait_until(lambda api, seen=seen: len(api.answered) >= seen + 2)  # type: ignore[misc]
            for life in f.lives[-2:]:
                await life.kill()
        await f.start()
        await f.settled()
        assert len(set(f.transport.taken)) == 6 * 280
        assert f.ledger.sums == {"delivered": 6 * 280}
        assert len(f.transport.taken) - 6 * 280 <= f.ledger.in_doubt
