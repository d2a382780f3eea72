"""What relays write down in AA_LEDGER, in order: each request before it is made, and what it settled. Fold them for the truth.

    Intent ─► POST ─► Settled, if the events have come to an end (delivered, dead-lettered, expired, …)
                  └─► Released, if the API has taken none of them for certain: they will be tried again

An intent that nothing closes is in doubt: its relay ended, or got no answer. Its events may be delivered a second time.

Relays of several releases read the same records. Fields that are added come with a default, and last where there are no names; a
new kind or outcome says nothing to earlier relays.
"""

from collections.abc import Sequence

import msgspec

from agent.queue.cursor import Ledger, Outcome, Span


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Events of one queue: the subject that they were published on, the queue's id and their numbers.

    By the subject, because whoever may publish on one can give any id: what was published on others is not theirs to settle.
    """

    subject: str
    queue: str
    spans: tuple[Span, ...]


class Intent(msgspec.Struct, frozen=True, tag="intent"):
    """A request that `relay` is about to make; `id` is of this request alone: the relay's name, "-" and a number."""

    id: str
    relay: str
    parts: tuple[Part, ...]


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The API took nothing of the request with that id."""

    id: str


class Settled(msgspec.Struct, frozen=True, tag="settled", omit_defaults=True):
    """These events have come to an end; by the request of the intent with that id, if there was one."""

    outcome: Outcome
    parts: tuple[Part, ...]
    id: str | None = None


class QueueLedger(msgspec.Struct, frozen=True, array_like=True):
    """The ledger that a queue gave itself, by the subject that it publishes on and its id."""

    subject: str
    queue: str
    ledger: Ledger


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """Ledgers that came at `at`, in seconds since the epoch: the last ones of machines that vanish."""

    ledgers: tuple[QueueLedger, ...]
    at: float


Record = Intent | Released | Settled | Seen

encode_record = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def decode_record(body: bytes) -> Record | None:
    """Return a record; None for what is none, or one of a later version, which changes nothing of what is known."""
    try:
        return _decode(body)
    except ValueError:  # msgspec's errors are ValueErrors
        return None


def event_count(parts: Sequence[Part]) -> int:
    """Return how many events they are."""
    return sum([span.length for part in parts for span in part.spans])
