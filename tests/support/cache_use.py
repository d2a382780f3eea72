"""What events say of the cache, counted a second time: naively, from their text."""

import json

from agent.cache_use import CacheUse


def use_of(lines: bytes) -> CacheUse:
    """Count lines of one event each."""
    counts = dict.fromkeys([("LOCAL", "HIT"), ("LOCAL", "MISS"), ("REMOTE", "HIT"), ("REMOTE", "MISS")], 0)
    saved: dict[str, float] = {"LOCAL": 0, "REMOTE": 0}
    for line in lines.splitlines():
        event = json.loads(line)
        counts[event["source"], event["event"]] += 1
        if event["event"] == "HIT":
            saved[event["source"]] += event.get("duration", 0)
    return CacheUse(*counts.values(), *saved.values())
