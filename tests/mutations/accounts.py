"""What makes the accounts of queues and fleets exact and bounded, each as the mistake that would break it: see `orders`."""

from tests.mutations.rewriting import Order

CURSOR, ACCOUNTING, HELD = "agent/queue/cursor.py", "agent/fleet/accounting.py", "agent/fleet/held.py"

ACCOUNTS = (
    # A queue
    Order(
        "an event is settled as often as it is asked for",
        CURSOR,
        "fresh = union(part for span in spans for part in self.unsettled(span))",
        "fresh = union(spans)",
    ),
    Order(
        "a span stays apart from the one that ends where it begins",
        CURSOR,
        "first = bisect_left(self._settled, span.start, key=_stop)",
        "first = bisect_right(self._settled, span.start, key=_stop)",
    ),
    Order(
        "a span stays apart from the one that begins where it ends",
        CURSOR,
        "last = bisect_right(self._settled, span.stop, first, key=_start)",
        "last = bisect_left(self._settled, span.stop, first, key=_start)",
    ),
    Order(
        "the position stays before what is settled",
        CURSOR,
        """
        if self._settled[0].start <= self.position:
            self.position = self._settled.pop(0).stop
        """,
        "",
    ),
    # The ledger of a fleet
    Order(
        "a record that was taken before is taken again",
        ACCOUNTING,
        "if seq <= self.seq:",
        "if False:",
    ),
    Order(
        "a copy of a record opens a closed request again",
        ACCOUNTING,
        "if record.id in self._closed or record.id in self._intents:",
        "if record.id in self._intents:",
    ),
    Order(
        "a queue of which is heard again is as old as before",
        ACCOUNTING,
        "self._heard.move_to_end(key)",
        "",
    ),
    Order(
        "a snapshot has queues in another order than their times",
        ACCOUNTING,
        "queues = [(key, self._cursors[key].state()) for key in self._heard]",
        "queues = [(key, each.state()) for key, each in self._cursors.items()]",
    ),
    Order(
        "a subject has no bound",
        ACCOUNTING,
        "while kept.size > MAX_KEPT:",
        "while False:",
    ),
    Order(
        "gaps do not count",
        ACCOUNTING,
        "size = 1 + self._cursors[key].settled_beyond",
        "size = 1",
    ),
    Order(
        "a queue of too many gaps takes others with it",
        ACCOUNTING,
        "self._forget(key if size > MAX_KEPT else next(iter(kept.queues)))",
        "self._forget(next(iter(kept.queues)))",
    ),
    Order(
        "queues of other subjects make room",
        ACCOUNTING,
        "self._forget(key if size > MAX_KEPT else next(iter(kept.queues)))",
        "self._forget(key if size > MAX_KEPT else next(iter(self._heard)))",
    ),
    Order(
        "what forgotten queues claimed grows without end",
        ACCOUNTING,
        "into.forwarded = min(into.forwarded + self._forwarded(key), MAX_SEQ)",
        "into.forwarded += self._forwarded(key)",
    ),
    # What a relay holds
    Order(
        "a message is acknowledged when some of its events are settled",
        HELD,
        "if held in self and not held.blockers and not self.unsettled(held.span):",
        "if held in self and not held.blockers:",
    ),
    Order(
        "a copy that meets what is held in its last event is held, too",
        HELD,
        "return any(bisect_right(many, span.start, key=_stop) < bisect_left(many, span.stop, key=_start) for span in few)",
        "return any(bisect_right(many, span.start, key=_stop) < bisect_left(many, span.stop - 1, key=_start) for span in few)",
    ),
)
"""Each of them has to be noticed by a test."""
