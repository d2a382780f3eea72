"""Ledgers, and the outside check of what a server received against what was recorded.

It knows the status, the API's requests and the recordings. It must never know how the agent counts.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.support.capture import Captured
from tests.support.daemon import Daemon
from tests.support.recordings import Recorded
from tests.support.senders import CI

Ledger = dict[str, Any]


def ledger_of(status: dict[str, Any]) -> Ledger:
    """Return the one destination's ledger."""
    ledger: Ledger = status["destinations"]["default"]["ledger"]
    return ledger


def delivery_of(status: dict[str, Any]) -> tuple[str, str | None]:
    """Return the one destination's state and the reason for it."""
    destination = status["destinations"]["default"]
    return destination["state"], destination["reason"]


def ledger(
    accepted: int, *, delivered: int = 0, dead_lettered: int = 0, queued: int = 0, retried: int = 0, forwarded: int = 0
) -> Ledger:
    """Return a ledger without drops."""
    counts = {"accepted": accepted, "delivered": delivered, "dead_lettered": dead_lettered, "queued": queued}
    return counts | {"dropped": {}, "retried": retried, "forwarded": forwarded}


def holds(ledger: Ledger) -> bool:
    """Tell whether every accepted event is accounted for, once."""
    settled = ledger["delivered"] + ledger["forwarded"] + ledger["dead_lettered"] + sum(ledger["dropped"].values())
    return bool(ledger["accepted"] == settled + ledger["queued"])


def flushed(daemon: Daemon, deadline: float = 100.0) -> bool:
    """Ask for a flush; return whether everything has left the queue."""
    answer = daemon.request("POST", f"/flush?deadline={deadline}", timeout=deadline + 5)
    assert answer.status_code in {200, 504}, answer.text
    return answer.status_code == 200


def events_in(request: Captured) -> list[str]:
    """Return the JSON text of each event of a request, byte for byte as it was sent: integers as integers, in that order.

    The body is taken apart and put together again; that it comes out the same shows that nothing is lost by it.
    """
    texts = [json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in request.events]
    assert f"[{','.join(texts)}]".encode() == request.body
    return texts


def received(accepted: Sequence[Captured]) -> Counter[str]:
    """Return the text of every event that a server accepted, and how often."""
    return Counter(text for request in accepted for text in events_in(request))


def recorded(requests: Sequence[Recorded]) -> dict[str, str | None]:
    """Return the text of every recorded event, and the CI system that it came from."""
    return {line: request.headers.get(CI) for request in requests for line in request.lines.decode().splitlines()}


def assert_contexts(accepted: Sequence[Captured], requests: Sequence[Recorded]) -> None:
    """Every request has events of one CI system, and says which; there is no header where none was recorded."""
    systems = recorded(requests)
    for request in accepted:
        assert {systems[text] for text in events_in(request)} == {request.headers.get(CI)}
