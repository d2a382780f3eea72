"""The requests that a real turbo sent, as they were recorded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TURBO = Path(__file__).parents[1] / "data/turbo-2.11.11.jsonl"


@dataclass(frozen=True)
class Recorded:
    """One request. `lines` are its events as NDJSON, keys in turbo's order, without needless whitespace."""

    case: str
    query: dict[str, str]
    headers: dict[str, str]
    events: list[dict[str, Any]]
    lines: bytes


def load(path: Path = TURBO) -> list[Recorded]:
    """Read a recording: one JSON object a line."""
    return [_recorded(json.loads(line)) for line in path.read_bytes().splitlines()]


def encode(events: list[dict[str, Any]]) -> bytes:
    """Write events as NDJSON."""
    return b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)


def _recorded(row: dict[str, Any]) -> Recorded:
    return Recorded(row["case"], row["query"], row["headers"], row["body"], encode(row["body"]))
