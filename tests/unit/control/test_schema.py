"""The status: one schema, whose keys and types other programs rely on, and the metrics that are made of it."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.control import metrics
from agent.control.schema import (
    AdoptionStatus,
    ApiStatus,
    BatchLimitStatus,
    DestinationStatus,
    ForwardStatus,
    HttpStatus,
    LeftSpool,
    MetricsStatus,
    OpenSpoolStatus,
    OverQuotaStatus,
    QueueStatus,
    StatusReport,
    decode_status,
)
from agent.http.server import Response
from agent.queue.cursor import DROP_REASONS, Ledger

LEDGER = {
    "accepted": 11,
    "delivered": 3,
    "dead_lettered": 2,
    "dropped": {"expired": 5},
    "queued": 0,
    "retried": 2,
    "forwarded": 1,
}
COUNTS = Ledger(11, 3, 2, {"expired": 5}, 0, 2, 1)


def test_the_keys_and_types_of_the_status_stay_as_they_are() -> None:
    report = StatusReport(
        version="1.2.3",
        pid=7,
        uptime=1.5,
        rejected=1,
        connections=2,
        evicted=3,
        api=ApiStatus("https://api", None, "slug"),
        http=HttpStatus(None, "127.0.0.1:1", 4, {200: 5, 401: 6}, {404: 7}, True),
        destinations={
            "default": DestinationStatus(
                state="paused",
                reason="operator: paused",
                since="2025-06-15T12:00:00.000Z",
                ledger=COUNTS,
                oldest_event_age=0.125,
                requests=8,
                queue=QueueStatus(9, 10, 11, 12, 18),
                dead_letters=13,
                dead_letters_discarded=14,
                batch_limit=BatchLimitStatus(15, 16, "413"),
                over_quota=[OverQuotaStatus(17, 18, 19), OverQuotaStatus(None, 1, 2)],
                last_answer_at="2025-06-15T12:00:00.000Z",
                last_answer="402 Payment Required",
                forward=ForwardStatus(["nats://n:1"], "web", "ci"),
                token_error="why",
            )
        },
        adopted=AdoptionStatus(
            15, [OpenSpoolStatus("/a", "running", None, COUNTS)], 16, COUNTS, [LeftSpool("/b", "why")]
        ),
        metrics=MetricsStatus("/m.sock", None, 17),
        denied=20,
    )
    assert list(json.loads(Response.json(report).body).items()) == list(
        {
            "version": "1.2.3",
            "pid": 7,
            "uptime": 1.5,
            "rejected": 1,
            "connections": 2,
            "evicted": 3,
            "api": {"url": "https://api", "team_id": None, "slug": "slug"},
            "http": {
                "socket": None,
                "listen": "127.0.0.1:1",
                "connections": 4,
                "events": {"200": 5, "401": 6},
                "front": {"404": 7},
                "forwards": True,
            },
            "destinations": {
                "default": {
                    "state": "paused",
                    "reason": "operator: paused",
                    "since": "2025-06-15T12:00:00.000Z",
                    "until": None,
                    "ledger": LEDGER,
                    "oldest_event_age": 0.125,
                    "last_delivery_at": None,
                    "requests": 8,
                    "queue": {"bytes": 9, "segments": 10, "quarantined": 11, "quarantine_lost": 12, "max_bytes": 18},
                    "dead_letters": 13,
                    "dead_letters_discarded": 14,
                    "storage_error": None,
                    "batch_limit": {"events": 15, "bytes": 16, "reason": "413"},
                    "over_quota": [{"uid": 17, "events": 18, "bytes": 19}, {"uid": None, "events": 1, "bytes": 2}],
                    "retired": False,
                    "last_answer_at": "2025-06-15T12:00:00.000Z",
                    "last_answer": "402 Payment Required",
                    "forward": {"servers": ["nats://n:1"], "team": "web", "pool": "ci"},
                    "token_error": "why",
                }
            },
            "adopted": {
                "queued": 15,
                "under_way": [{"directory": "/a", "state": "running", "reason": None, "ledger": LEDGER}],
                "finished": 16,
                "ledger": LEDGER,
                "left": [{"directory": "/b", "reason": "why"}],
            },
            "metrics": {"socket": "/m.sock", "listen": None, "connections": 17},
            "denied": 20,
        }.items()
    )
    assert decode_status(Response.json(report).body) == report


def test_the_status_of_an_older_or_newer_daemon_is_understood() -> None:
    older = b'{"pid":7,"destinations":{"default":{"state":"running","ledger":%s}}}'
    newer = b'{"pid":7,"news":[],"destinations":{"default":{"state":"new","mood":{},"ledger":%s}},"http":{"events":{"200":3}}}'
    counts = b'{"accepted":1,"delivered":1,"dead_lettered":0,"dropped":{},"queued":0}'
    one, other = decode_status(older % counts), decode_status(newer % counts)
    assert (one.pid, one.version, one.http, one.adopted) == (7, "", None, None)
    assert one.destinations["default"].ledger == Ledger(1, 1, 0, {}, 0)
    assert one.destinations["default"].dead_letters is None
    assert (other.pid, other.destinations["default"].state) == (7, "new")
    assert other.http is not None
    assert other.http.events == {200: 3}


@pytest.mark.parametrize("answer", [b"", b"hi", b"[]", b'{"pid":"7"}', b"\xff"])
def test_an_invalid_status_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expected|Input"):
        decode_status(answer)


def test_every_reason_for_a_drop_has_its_counter() -> None:
    counts = Ledger(10, 3, 2, {"overflow": 4, "expired": 1}, 0, 2)
    report = StatusReport(rejected=7, destinations={'a "b"\n': DestinationStatus(ledger=counts)})
    text = metrics.render(report, {}, {}).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    drops = {s.labels["reason"]: s.value for s in samples if s.name == "artifacts_agent_events_dropped_total"}
    assert drops == dict.fromkeys(DROP_REASONS, 0) | {"overflow": 4, "expired": 1}
    assert {s.labels["destination"] for s in samples if "destination" in s.labels} == {'a "b"\n'}
    assert {s.value for s in samples if s.name == "artifacts_agent_lines_rejected_total"} == {7}
