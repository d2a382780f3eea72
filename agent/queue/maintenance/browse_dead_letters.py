"""Looking through dead letters: which are meant, and what people and machines are shown of them, page by page.

It knows letters and what may be asked of them. It must never know who asks, or change anything.
"""

import msgspec
from msgspec import UNSET, UnsetType

from agent.events import Event
from agent.queue.cursor import Span
from agent.queue.dead_letters import DeadLetter, Repeats, pieces_in
from agent.queue.maintenance.browse import EventFilter, Origin
from agent.queue.snapshot import LogSnapshot
from agent.timestamps import iso

PAGE_LETTERS = 1000
_PAGE_BYTES = 1024 * 1024


class DeadLetterFilter(EventFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which letters are meant; ages count from the refusal, `message` is a part of what the API said, in any case.

    `numbers` are those of the events; a number means every letter that has it.
    """

    status: int | UnsetType = UNSET
    message: str | UnsetType = UNSET
    numbers: frozenset[int] | UnsetType = UNSET

    def means(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant."""
        return (
            self.takes(letter.event, letter.rejected_at)
            and self.status in (UNSET, letter.status)
            and (self.message is UNSET or self.message.casefold() in letter.message.casefold())
            and (self.numbers is UNSET or letter.seq in self.numbers)
        )


class ListedDeadLetter(msgspec.Struct, frozen=True):
    """A dead letter: the event's number, when it was refused (ISO 8601), with which status, in which words, and the event."""

    seq: int
    rejected_at: str
    status: int | None
    message: str
    context: Origin
    event: Event

    @classmethod
    def of(cls, letter: DeadLetter) -> "ListedDeadLetter":
        """Return what is shown of a letter."""
        at, context = iso(letter.rejected_at), Origin.of(letter.context)
        return cls(letter.seq, at, letter.status, letter.message, context, letter.event)


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some of the letters that are meant, as the log has them; `next` is where in the log to go on, None at the end.

    `unreadable` counts the letters in this stretch of the log, meant or not, that are damaged, or in a file that cannot be read
    now.
    """

    letters: list[ListedDeadLetter]
    next: int | None
    unreadable: int = 0


def dead_letter_page(
    log: LogSnapshot, repeats: Repeats, selection: DeadLetterFilter, start: int, limit: int
) -> DeadLetterPage:
    """Return up to `limit` letters, of about a MiB. Raises StorageError for a shortage."""
    letters: list[ListedDeadLetter] = []
    size = unreadable = 0
    for piece in pieces_in(log, repeats, start):
        if isinstance(piece, Span):
            unreadable += piece.length
        elif selection.means(piece.letter):
            if len(letters) >= limit or size >= _PAGE_BYTES:
                return DeadLetterPage(letters, piece.number, unreadable)
            letters.append(ListedDeadLetter.of(piece.letter))
            size += len(piece.letter.message) + len(piece.letter.line)
    return DeadLetterPage(letters, None, unreadable)
