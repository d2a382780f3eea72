"""What a soak came to, as rows for people and as JSON. Pure. It must never know how anything was measured."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from tests.soak.oracle import Account, Evidence
from tests.soak.run import Soak

Rows = dict[str, Any]


def rows(soak: Soak) -> Rows:
    """Return every number by its name."""
    happened = soak.happened
    ready = sorted(happened.ready_after)
    measured: Rows = {
        "seconds": soak.seconds,
        "seed": soak.seed,
        "destinations beside default": soak.destinations,
        "disk": soak.disk,
        "faults skipped": soak.skipped,
        "faults": dict(happened.faults),
        "SIGKILLs": happened.kills.total(),
        "SIGKILLs by phase": dict(happened.kills),
        "orderly ends": happened.ends,
        "starts": happened.starts,
        "ready after, median, s": round(statistics.median(ready), 2) if ready else None,
        "ready after, worst, s": round(ready[-1], 2) if ready else None,
        "peak RSS, MiB": round(happened.peak_rss / 1024, 1),
        "files beyond those of the start": happened.most_new_files,
        "files beyond, at the end": happened.last_new_files,
        "answers": dict(sorted(soak.record.answers.items())),
        "outages": soak.record.outages,
        "batches taken without a whole answer": sum(map(soak.record.unanswered, soak.record.taken_requests)),
    }
    return measured | (_events(soak.evidence) if soak.evidence is not None else {}) | {"problems": soak.problems}


def _events(evidence: Evidence) -> Rows:
    accounts = evidence.accounts
    clients = [client for account in accounts for client in account.clients]
    durable = [client for client in clients if client.durable]
    return {
        "events sent with acks": sum(client.sent for client in durable),
        "events acknowledged": sum(client.acked for client in durable),
        "events sent again by clients": sum(client.resent for client in durable),
        "drops that clients were told of": sum(client.dropped for client in durable),
        "of these denied": sum(client.denied for client in durable),
        "events sent without acks": sum(client.sent for client in clients if not client.durable),
        "ledgers": [line for account in accounts for line in _ledgers(account)],
        "events taken by the server": sum(account.taken_events for account in accounts),
        "dead letters": sum(len(account.dead) for account in accounts),
        "repeats": sum(account.repeats for account in accounts),
        "repeats that the faults explain": sum(map(evidence.most_repeats, accounts)),
        "lost": sum(account.lost for account in accounts),
        "invented": len(evidence.invented),
    }


def _ledgers(account: Account) -> Iterator[str]:
    for name, ledger in account.ledgers.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(ledger["dropped"].items()))
        counts = [f"{ledger[key]:,} {key.replace('_', '-')}" for key in ("delivered", "dead_lettered", "queued")]
        yield f"{name}: {ledger['accepted']:,} accepted = {' + '.join([*counts, dropped or '0 dropped'])}"


def table(numbers: Mapping[str, Any]) -> str:
    """Return the rows as text, one or more lines each."""
    return "".join(f"{name:38}  {text}\n" for name, value in numbers.items() for name, text in _lines(name, value))


def _lines(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {count}" for key, count in value.items())
    if isinstance(value, list):
        yield from zip([name, *[""] * len(value)], map(str, value or ["none"]), strict=False)
    else:
        yield name, f"{value:,}" if isinstance(value, int) else str(value)
