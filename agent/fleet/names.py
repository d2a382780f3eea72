"""What is called how in the engine: streams, subjects, consumers and keys.

A team is one account of the API, and what its relays serve. A pool is a group of runners with a credential of their own.
"""

import re

EVENTS = "AA_EVENTS"
"""The work queue that runners publish to: one message is one batch."""

LEDGER = "AA_LEDGER"
"""What relays write down: requests that are about to be made, and what was settled by them."""

DEAD = "AA_DEAD"
"""Dead letters, as `agent.queue.dead_letters` has them on one machine."""

STATE = "AA_STATE"
"""The bucket of keys that relays share: the pause, the rate, who probes."""

SNAPSHOTS = "AA_SNAPSHOTS"
"""The object store of folded ledgers, so that a relay that starts need not read the whole stream."""

ALL_EVENTS = "aa.e.>"
"""What runners publish, in version 1 of messages (`agent.fleet.message`). A later version goes to other subjects, `aa.e2.>`.

So relays of a release never take what they cannot read, and runners of another one keep their events until the fleet knows them.
"""

ALL_RECORDS = "aa.l.>"
ALL_DEAD = "aa.d.>"

_is_token = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}").fullmatch


def check_token(text: str) -> str:
    """Return the name of a team or a pool. Raises ValueError if it is none: it is a part of subjects and of keys."""
    if not _is_token(text):
        raise ValueError(f"{text!r} is no name: 1 to 32 of a-z, 0-9, - and _, the first a letter or a digit")
    return text


def events_subject(team: str, pool: str) -> str:
    """Return where the runners of a pool publish."""
    return f"aa.e.{team}.{pool}"


def team_events(team: str) -> str:
    """Return the subjects of all pools of a team, as a filter."""
    return f"aa.e.{team}.*"


def pool_of(subject: str) -> tuple[str, str] | None:
    """Return the team and the pool that a subject of events names; None if it is no such subject."""
    parts = subject.split(".")
    return (parts[2], parts[3]) if len(parts) == 4 and parts[:2] == ["aa", "e"] else None


def ledger_subject(team: str) -> str:
    """Return where the relays of a team write down what they do."""
    return f"aa.l.{team}"


def dead_subject(team: str) -> str:
    """Return where the dead letters of a team go."""
    return f"aa.d.{team}"


def consumer(team: str) -> str:
    """Return the durable consumer of AA_EVENTS that the relays of a team share."""
    return f"relay-{team}"


def pause_key(team: str) -> str:
    """Return the key of why no relay of a team sends, if so."""
    return f"pause.{team}"


def rate_key(team: str) -> str:
    """Return the key of when the next request of a team may begin."""
    return f"rate.{team}"


def probe_key(team: str) -> str:
    """Return the key of which relay of a team probes, and until when it is given the time."""
    return f"probe.{team}"
