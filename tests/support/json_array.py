"""The body of a request as the API sees it."""

from agent.events import json_array_parts


def to_json_array(lines: bytes) -> bytes:
    """Return lines of events as a JSON array."""
    return b"".join(json_array_parts(lines))
