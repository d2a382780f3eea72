"""Agents and relays of different releases understand each other: tests/data/fleet-1 has what version 1 writes, to the byte.

A change that makes one of these tests fail makes a relay of today lose or repeat what another release has written. New fields and
headers are fine. What is not, needs another version, and other subjects, which relays of this one do not listen to.
"""

import json
import zlib
from typing import Any

import anyio
import msgspec
import pytest

from agent.delivery.batching import Batch
from agent.events import Context
from agent.fleet import dead, message, names
from agent.fleet.accounting import FleetLedger, QueueKey
from agent.fleet.following import snapshot_name
from agent.fleet.message import Events
from agent.fleet.records import Intent, Part, QueueLedger, Record, Released, Seen, Settled, decode_record, encode_record
from agent.fleet.shared_pause import decode_pause, encode_pause
from agent.queue.cursor import Ledger, Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetter, decode_dead_letter
from tests.support import virtual_time
from tests.support.documents import ROOT
from tests.support.memory_engine import MemoryEngine
from tests.support.pipelines import EPOCH
from tests.support.relays import SUBJECT, TEAM, Fleet, fleet

KEPT = ROOT / "tests/data/fleet-1"
QUEUE, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
MAC = "aa.e.web.mac"
GITHUB = Context("GITHUB_ACTIONS", 0)
LEDGER = Ledger(9, 0, 1, {"expired": 2}, 3, retried=1, forwarded=3)
AT = 1_750_000_000.125


def kept(name: str) -> bytes:
    """Return what is kept under that name."""
    return (KEPT / name).read_bytes()


def kept_headers(name: str) -> dict[str, str]:
    """Return headers that are kept as they go over the wire."""
    status, *lines = kept(name).decode().removesuffix("\r\n\r\n").split("\r\n")
    assert status == "NATS/1.0"
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


EVENTS = Events(QUEUE, (Span(1, 3), Span(5, 6)), GITHUB, kept("events.body"), AT, LEDGER)
LEDGER_ALONE = Events(QUEUE, (), Context(), b"", None, LEDGER)
ONE = Part(SUBJECT, QUEUE, (Span(1, 3),))
RECORDS: list[Record] = [
    Intent("i1", "relay-a", (ONE,)),
    Settled(Outcome.DELIVERED, (ONE,), "i1"),
    Intent("i2", "relay-b", (Part(SUBJECT, QUEUE, (Span(5, 6),)), Part(MAC, OTHER, (Span(1, 4),)))),
    Released("i2"),
    Seen((QueueLedger(SUBJECT, QUEUE, LEDGER),), 1_750_000_001.5),
    Settled(Outcome.EXPIRED, (Part(MAC, OTHER, (Span(1, 3),)),)),
    Intent("i3", "relay-a", (Part(MAC, OTHER, (Span(3, 4), Span(7, 10))),)),
]
PAUSE = Pause("blocked", "402 Payment Required", 1_750_000_000.0, 1_750_000_060.0, 2)
LETTER = DeadLetter(
    2, 1_750_000_002.0, 400, "400 Bad Request", GITHUB, kept("events.body").splitlines(keepends=True)[1]
)


def folded() -> FleetLedger:
    """Return the accounts that all of RECORDS make."""
    ledger = FleetLedger()
    for seq, record in enumerate(RECORDS, 1):
        ledger.apply(record, seq)
    return ledger


def facts(ledger: FleetLedger | None) -> dict[str, Any]:
    """Return what accounts say."""
    assert ledger is not None
    by_queue = {key: (ledger.counts(key), ledger.gaps(key)) for key in ledger.queues}
    sums = (ledger.sums, ledger.in_doubt, ledger.open_intents, ledger.forwarded)
    return {"at": (ledger.seq, ledger.records), "sums": sums, "queues": by_queue, "seen": ledger.seen}


# Version 1, read and written


def test_a_message_of_version_1_is_understood() -> None:
    assert message.decode(kept_headers("events.headers"), kept("events.body")) == EVENTS
    assert message.decode(kept_headers("ledger.headers"), b"") == LEDGER_ALONE


def test_a_message_is_still_written_as_version_1() -> None:
    context = Context(GITHUB.ci, GITHUB.interactive, "a job, which stays")
    batch = Batch(context, EVENTS.lines, EVENTS.spans, enqueued_at=AT)
    assert message.encode(batch, QUEUE, LEDGER) == kept_headers("events.headers")
    assert message.encode_ledger(QUEUE, LEDGER) == kept_headers("ledger.headers")


def test_each_kind_of_record_of_version_1_is_understood_and_still_written() -> None:
    lines = kept("records.jsonl").splitlines()
    assert [decode_record(line) for line in lines] == RECORDS
    assert [encode_record(record) for record in RECORDS] == lines
    assert {type(record) for record in RECORDS} == {*Record.__args__}


def test_a_snapshot_of_version_1_is_understood_and_still_written() -> None:
    found = FleetLedger.decode(kept("snapshot.bin"))
    assert facts(found) == facts(folded())
    written, known = (msgspec.msgpack.decode(each[4:]) for each in (folded().encode(), kept("snapshot.bin")))
    assert written[: len(known)] == known  # what was added since comes last
    assert found is not None
    assert (found.sums, found.in_doubt, found.gaps(QueueKey(MAC, OTHER))) == ({"delivered": 2, "expired": 2}, 4, [])
    assert found.unsettled(Part(SUBJECT, QUEUE, EVENTS.spans)) == [Span(5, 6)]


def test_the_key_of_a_pause_of_version_1_is_understood_and_still_written() -> None:
    assert decode_pause(kept("pause.json")) == PAUSE
    assert encode_pause(PAUSE, "relay-a") == kept("pause.json")


def test_a_dead_letter_of_version_1_is_understood_and_still_written() -> None:
    assert decode_dead_letter(kept("dead.body")) == LETTER
    assert dead.of_event(SUBJECT, QUEUE, LETTER) == (kept("dead.body"), kept_headers("dead.headers"))


# What a later release may add


def later_headers() -> dict[str, str]:
    """Return headers as a later release might write them: one more, and more in those that there are."""
    headers = kept_headers("events.headers")
    ledger = {**json.loads(headers["AA-Ledger"]), "mislaid": 7}
    context = [*json.loads(headers["AA-Context"]), {"region": "iad1"}]
    return headers | {"AA-Ledger": json.dumps(ledger), "AA-Context": json.dumps(context), "AA-Shard": "7"}


def test_headers_and_fields_that_a_later_release_adds_to_a_message_are_ignored() -> None:
    assert message.decode(later_headers(), EVENTS.lines) == EVENTS


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_fields_that_a_later_release_adds_to_a_record_are_ignored(record: Record) -> None:
    written = json.loads(encode_record(record))
    for part in written.get("parts", []):
        part.append({"shard": 7})
    assert decode_record(json.dumps(written | {"shard": {"of": [7]}}).encode()) == record


@pytest.mark.parametrize(
    "later",
    [{"type": "leased", "id": "i9"}, {"type": "settled", "outcome": "mislaid", "parts": [[SUBJECT, QUEUE, [[5, 6]]]]}],
    ids=["kind", "outcome"],
)
def test_a_record_of_a_later_kind_or_outcome_only_counts_as_read(later: dict[str, Any]) -> None:
    ledger = folded()
    ledger.apply(decode_record(json.dumps(later).encode()), 8)
    assert facts(ledger) == facts(folded()) | {"at": (8, 8)}


def changed_snapshot(*added: object, version: int = 1) -> bytes:
    """Return a snapshot of today as another release might write it."""
    fields = msgspec.msgpack.decode(folded().encode()[4:])
    fields[0] = version
    for _, state in fields[3]:
        state.extend(added)
    body = msgspec.msgpack.encode([*fields, *added])
    return zlib.crc32(body).to_bytes(4, "big") + body


def test_what_a_later_release_adds_to_a_snapshot_is_ignored_and_another_version_is_not_used() -> None:
    assert facts(FleetLedger.decode(changed_snapshot({"shard": 7}))) == facts(folded())
    assert FleetLedger.decode(changed_snapshot()) is not None
    assert FleetLedger.decode(changed_snapshot(version=2)) is None


def test_fields_that_a_later_release_adds_to_the_key_of_a_pause_are_ignored() -> None:
    assert decode_pause(json.dumps({**json.loads(kept("pause.json")), "shard": 7}).encode()) == PAUSE


# A relay of today among others


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


async def fill(f: Fleet, headers: dict[str, str]) -> None:
    """Publish what other releases have left: their records and their message."""
    engine = MemoryEngine(f.broker)
    for line in kept("records.jsonl").splitlines():
        await engine.publish(names.ledger_subject(TEAM), line, {})
    await engine.publish(names.ledger_subject(TEAM), b'{"type":"leased","id":"i9"}', {})
    await engine.publish(SUBJECT, EVENTS.lines, headers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers", [kept_headers("events.headers"), later_headers()], ids=["version 1", "a later release"]
)
@pytest.mark.parametrize(
    "snapshot", [None, kept("snapshot.bin"), changed_snapshot(version=2)], ids=["no", "old", "later"]
)
async def test_a_relay_goes_on_where_other_releases_have_stopped(
    headers: dict[str, str], snapshot: bytes | None
) -> None:
    """Of three events two are settled, by a record or a snapshot of another release: one is sent."""
    async with fleet() as f:
        if snapshot is not None:
            f.broker.objects[snapshot_name(TEAM)] = snapshot
        await fill(f, {**headers, "AA-Enqueued-At": f"{EPOCH:.3f}"})
        await f.start()
        await anyio.sleep(600)
        assert (f.transport.taken, f.transport.answered[0].context) == (["five"], GITHUB)
        assert (f.waiting, f.broker.bodies(names.DEAD)) == (0, [])
        assert f.ledger.sums == {"delivered": 3, "expired": 2}
