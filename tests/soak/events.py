"""Which events the soak's clients send: a function of the client's number and the event's, so that nobody has to remember.

Pure. It must never know what became of an event.
"""

import json
from typing import Any, NamedTuple

from tests.soak.cast import client_of, session_of

POISON_EVERY = 1000
_CONTEXT_EVERY = 300
_SYSTEMS = ("GITHUB_ACTIONS", None)
_POISON = "bad-"


class Id(NamedTuple):
    """Who sent an event, and the how-manieth of his it is, from 0."""

    client: int
    number: int


def is_poisonous(index: int) -> bool:
    """Tell whether the server is to refuse a client's event of this number, for good."""
    return index % POISON_EVERY == POISON_EVERY // 2


def ci_of(index: int) -> str | None:
    """Return the CI system that an event of this number comes from."""
    return _SYSTEMS[index // _CONTEXT_EVERY % len(_SYSTEMS)]


def fields(event: Id) -> dict[str, Any]:
    """Return an event, by the API's keys."""
    prefix = _POISON if is_poisonous(event.number) else "good"
    return {
        "sessionId": session_of(event.client),
        "source": "LOCAL" if event.number % 2 else "REMOTE",
        "event": "HIT",
        "hash": f"{prefix}{event.number:012x}",
        "duration": event.number,
    }


def line(event: Id) -> bytes:
    """Return an event as clients send it."""
    return json.dumps(fields(event), separators=(",", ":")).encode() + b"\n"


def identify(received: dict[str, Any]) -> Id | None:
    """Return whose event this is; None if no client can have sent it, to the last key."""
    client, index = client_of(str(received.get("sessionId"))), received.get("duration")
    if type(index) is not int or index < 0 or client is None:
        return None
    event = Id(client, index)
    return event if fields(event) == received else None
