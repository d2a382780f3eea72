"""What a configuration says of a queue and of the account that its events are for.

It knows the configuration. It must never know who opens the queue. Quick to import: commands need it without a daemon.
"""

from agent.config import Config
from agent.queue import segment
from agent.queue.store import Limits
from agent.spools.identity import Account


def limits_of(settings: Config) -> Limits:
    """Return what bounds the queue of a configuration."""
    queue = settings.queue
    return Limits(
        # Room is made by whole segments; and one has a length to which it can be told from a file that is none.
        segment_bytes=min(queue.segment_bytes, queue.max_bytes // 4, segment.MAX_BYTES // 2),
        max_bytes=queue.max_bytes,
        max_age=queue.max_age,
        overflow=queue.overflow,
        min_free_bytes=queue.min_free_bytes,
        sync=queue.sync,
    )


def account_of(settings: Config) -> Account:
    """Return where the events of a configuration go."""
    return Account(settings.api.url, settings.api.team_id, settings.api.slug)
