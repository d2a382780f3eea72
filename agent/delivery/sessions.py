"""Whose events have been delivered or dead-lettered: counts by session, of the latest sessions, since the start."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from agent.events import count_session_prefixes
from agent.queue.cursor import Outcome

MAX_SESSIONS = 4096
_MAX_KEY_BYTES = 64


class Sessions:
    """The counts of up to MAX_SESSIONS sessions; the one that has been still for longest goes first."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, dict[Outcome, int]] = OrderedDict()

    def count(self, lines: bytes, count: int, outcome: Outcome) -> None:
        """Count the events of `lines`, of which there are `count`."""
        for session_prefix, events in count_session_prefixes(lines, count).items():
            key = _key(session_prefix)
            counts = self._counts.setdefault(key, {})
            counts[outcome] = counts.get(outcome, 0) + events
            self._counts.move_to_end(key)
        while len(self._counts) > MAX_SESSIONS:
            self._counts.popitem(last=False)

    def of(self, session_prefix: bytes) -> Mapping[Outcome, int]:
        """Return a copy of the counts of the session whose lines begin so; nothing for one that is not known."""
        return dict(self._counts.get(_key(session_prefix), {}))


def _key(session_prefix: bytes) -> bytes:
    """Return what stands for a session: a client can make its name as long as a line."""
    return (
        session_prefix
        if len(session_prefix) <= _MAX_KEY_BYTES
        else hashlib.blake2b(session_prefix, digest_size=16).digest()
    )
