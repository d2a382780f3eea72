"""Which event is sent out of turn, to learn whether the API refuses some events or everything. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from agent.delivery.batching import Batch
from agent.events import count_session_prefixes
from agent.queue.cursor import Span


def find_sample(
    waiting: Iterable[Batch], refused: Sequence[Batch], but: Iterable[Span] = ()
) -> tuple[Batch, int] | None:
    """Return the batch, and the place in it, of the newest event of another session than those of `refused`.

    If there is none, that of the newest event that was not refused. `waiting` has batches, the newest first; of their events
    those numbered by `but` do not come in question.
    """
    sessions = tuple(prefix for batch in refused for prefix in count_session_prefixes(batch.lines, batch.event_count))
    numbers = {number for spans in (but, *(batch.spans for batch in refused)) for number in _numbers(spans)}
    found = None
    for batch in waiting:
        lines = batch.lines.split(b"\n")
        for index, number in reversed([*enumerate(_numbers(batch.spans))]):
            if number in numbers:
                continue
            if not lines[index].startswith(sessions):
                return batch, index
            found = found or (batch, index)
    return found


def _numbers(spans: Iterable[Span]) -> Iterator[int]:
    return (number for span in spans for number in range(span.start, span.stop))
