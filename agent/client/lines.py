"""The lines of wire protocol 1: an event, and the context of a connection."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeGuard, TypeVar

    Kind = TypeVar("Kind")

MAX_LINE_BYTES: Final = 64 * 1024

# All that stands between the session and the hash.
_MIDDLES: Final = {
    (source, event): f',"source":"{source}","event":"{event}","hash":'
    for source in ("LOCAL", "REMOTE")
    for event in ("HIT", "MISS")
}
# All that JSON wants escaped.
_ESCAPES: Final = {**{code: f"\\u{code:04x}" for code in range(0x20)}, ord('"'): '\\"', ord("\\"): "\\\\"}


def encode_event(session_id: str, source: str, event: str, artifact: str, duration: float | None) -> bytes:
    """Return the event's line; raises KeyError, TypeError or ValueError for a value that the API does not allow."""
    middle = _MIDDLES[_text(source), _text(event)]
    end = "}\n" if duration is None else f',"duration":{_number(duration)}}}\n'
    return f'{{"sessionId":{_quote(session_id)}{middle}{_quote(artifact)}{end}'.encode()


MAX_CI: Final = 50
MAX_JOB: Final = 200
MAX_DESTINATION: Final = 32


def encode_context(ci: object, interactive: object, job: object = None, destination: object = None) -> bytes:
    """Return the context's line; what the daemon would refuse is left out: see `is_destination`."""
    known = []
    if _is_a(ci, str) and _is_label(ci, MAX_CI):
        known.append(f'"ci":{_quote(ci)}')
    if _is_a(interactive, int) and interactive in {0, 1}:
        known.append(f'"interactive":{interactive:d}')
    if _is_a(job, str) and _is_label(job, MAX_JOB):
        known.append(f'"job":{_quote(job)}')
    if _is_a(destination, str) and is_destination(destination):
        known.append(f'"destination":{_quote(destination)}')
    return f'{{"context":{{{",".join(known)}}}}}\n'.encode()


def is_destination(value: object) -> bool:
    """Tell whether it may be the name of a destination: a short word. Whether there is one, the daemon knows."""
    return _is_a(value, str) and _is_label(value, MAX_DESTINATION)


def _is_label(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and text.isascii() and text.isprintable() and text == text.strip()


_INFINITY: Final = float("inf")
# Unlike str(): a TypeError unless it is a string, and of a subclass, such as an enumeration's, what it holds.
_text: Final = str.__str__


def _quote(value: str) -> str:
    text = _text(value)
    if not text:
        raise ValueError("empty")
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{text.translate(_ESCAPES)}"'


def _number(value: object) -> str:
    if type(value) is not bool and _is_a(value, int) and 0 <= int.__int__(value) < 2**63:
        return int.__repr__(value)
    if _is_a(value, float) and 0 <= float.__float__(value) < _INFINITY:
        return float.__repr__(value)
    raise ValueError("not a number that JSON and the daemon know, or negative")


def _is_a(value: object, kind: type[Kind]) -> TypeGuard[Kind]:
    """Do as isinstance does but ask the type alone: `__class__` may be a property that raises, as a proxy's may."""
    return issubclass(type(value), kind)
