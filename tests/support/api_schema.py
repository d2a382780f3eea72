"""The API's contract for one request to record events, written down a second time, apart from the agent's own code.

Pure. It knows the published schema, strictly. It must never know sockets or what a server answers.
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from tests.support.capture import Captured

KEYS: dict[str, type | tuple[type, ...]] = {
    "sessionId": str,
    "source": str,
    "event": str,
    "hash": str,
    "duration": (int, float),
}
REQUIRED = KEYS.keys() - {"duration"}
ENUMS = {"source": {"LOCAL", "REMOTE"}, "event": {"HIT", "MISS"}}
QUERY = {"teamId", "slug"}


def violations(request: Captured) -> list[str]:
    """Name everything in a request that the contract does not allow; empty for a good one."""
    return [*_headers(request.headers), *_query(request.query), *_body(request.body)]


def _headers(headers: dict[str, str]) -> Iterator[str]:
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        yield f"content-type is {headers.get('content-type')!r}"
    if len(headers.get("x-artifact-client-ci", "")) > 50:
        yield "x-artifact-client-ci is longer than 50 characters"
    if headers.get("x-artifact-client-interactive", "0") not in {"0", "1"}:
        yield f"x-artifact-client-interactive is {headers['x-artifact-client-interactive']!r}"
    if "content-encoding" in headers:
        yield f"content-encoding is {headers['content-encoding']!r}"


def _query(query: dict[str, str]) -> Iterator[str]:
    for name in sorted(query.keys() - QUERY):
        yield f"unknown query parameter {name!r}"


def _body(body: bytes) -> Iterator[str]:
    try:
        events = json.loads(body.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except ValueError as error:
        yield f"body is not JSON: {error}"
        return
    if not isinstance(events, list) or not events:
        yield "body is not a non-empty array"
        return
    for index, event in enumerate(events):
        yield from (f"event {index}: {problem}" for problem in _event(event))


def _event(event: object) -> Iterator[str]:
    if not isinstance(event, dict):
        yield "is not an object"
        return
    for key in sorted(event.keys() - KEYS.keys()):
        yield f"unknown key {key!r}"
    for key in sorted(REQUIRED - event.keys()):
        yield f"{key} is missing"
    for key, types in KEYS.items():
        if key in event and (not isinstance(event[key], types) or isinstance(event[key], bool)):
            yield f"{key} is {event[key]!r}"
    for key, allowed in ENUMS.items():
        if isinstance(event.get(key), str) and event[key] not in allowed:
            yield f"{key} is {event[key]!r}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
