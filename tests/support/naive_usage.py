"""Counts tasks from raw events in the plainest way: what the agent's own counting is held against. It knows nothing of it."""

from collections.abc import Iterable, Mapping
from typing import Any

ORDER = [("LOCAL", "HIT"), ("REMOTE", "HIT"), ("REMOTE", "MISS"), ("LOCAL", "MISS")]  # the best first


def naive_jobs(events: Iterable[tuple[str | None, Mapping[str, Any]]]) -> dict[str | None, dict[str, Any]]:
    """Return the same of each job: a session is of the first job that it names, and of none if it names none."""
    jobs: dict[str, str | None] = {}
    found = list(events)
    for job, event in found:
        jobs[event["sessionId"]] = jobs.get(event["sessionId"]) or job
    each = {job: [event for _, event in found if jobs[event["sessionId"]] == job] for job in jobs.values()}
    return {job: naive_count(of_job) for job, of_job in each.items()}


def naive_count(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `report --format json` has to say of events as they are sent."""
    reported: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    number = 0
    for event in events:
        reported.setdefault((event["sessionId"], event["hash"]), []).append(event)
        number += 1
    counts, saved = dict.fromkeys(ORDER, 0), dict.fromkeys(ORDER, 0.0)
    for answers in reported.values():
        best = next(kind for kind in ORDER if any((each["source"], each["event"]) == kind for each in answers))
        counted = next(each for each in answers if (each["source"], each["event"]) == best)
        counts[best] += 1
        saved[best] += max(counted.get("duration", 0), 0)
    local, remote, missed, unanswered = (counts[kind] for kind in ORDER)
    return {
        "events": number,
        "tasks": len(reported),
        "hits": {"local": local, "remote": remote},
        "misses": missed,
        "unanswered": unanswered,
        "saved_ms": {"local": round(saved["LOCAL", "HIT"]), "remote": round(saved["REMOTE", "HIT"])},
        "hit_rate": (local + remote) / len(reported) if reported else None,
    }
