"""Looking through dead letters: which are meant, and what people and machines are shown of them, page by page."""

import msgspec
from msgspec import UNSET, UnsetType

from agent.events import Event
from agent.queue.cursor import Span
from agent.queue.dead_letters import DeadLetter, Repeats, items_in
from agent.queue.maintenance.browse import EventFilter, Origin
from agent.queue.snapshot import LogSnapshot
from agent.timestamps import iso

PAGE_DEAD_LETTERS = 1000
_PAGE_BYTES = 1024 * 1024


class DeadLetterFilter(EventFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters are meant; ages count from the refusal, `message` is a part of what the API said, in any case.

    `numbers` are those of the events; a number means every dead letter that has it.
    """

    status: int | UnsetType = UNSET
    message: str | UnsetType = UNSET
    numbers: frozenset[int] | UnsetType = UNSET

    def means(self, dead_letter: DeadLetter) -> bool:
        """Tell whether a dead letter is meant."""
        return (
            self.takes(dead_letter.event, dead_letter.rejected_at)
            and self.status in (UNSET, dead_letter.status)
            and (self.message is UNSET or self.message.casefold() in dead_letter.message.casefold())
            and (self.numbers is UNSET or dead_letter.seq in self.numbers)
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
    def of(cls, dead: DeadLetter) -> "ListedDeadLetter":
        """Return what is shown of a dead letter."""
        return cls(dead.seq, iso(dead.rejected_at), dead.status, dead.message, Origin.of(dead.context), dead.event)


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some of the dead letters that are meant, as the log has them; `next` is where in the log to go on, None at the end.

    `unreadable` counts those in this stretch of the log, meant or not, that are damaged, or in a file that cannot be read now.
    """

    letters: list[ListedDeadLetter]
    next: int | None
    unreadable: int = 0


def dead_letter_page(
    log: LogSnapshot, repeats: Repeats, wanted: DeadLetterFilter, start: int, limit: int
) -> DeadLetterPage:
    """Return up to `limit` dead letters, of about a MiB. Raises StorageError for a shortage."""
    listed: list[ListedDeadLetter] = []
    size = unreadable = 0
    for item in items_in(log, repeats, start):
        if isinstance(item, Span):
            unreadable += item.length
        elif wanted.means(item.dead_letter):
            if len(listed) >= limit or size >= _PAGE_BYTES:
                return DeadLetterPage(listed, item.number, unreadable)
            listed.append(ListedDeadLetter.of(item.dead_letter))
            size += len(item.dead_letter.message) + len(item.dead_letter.line)
    return DeadLetterPage(listed, None, unreadable)
