"""What `GET /status` answers: one schema for the daemon, the commands, the demo and the tests.

Times are ISO 8601 in UTC, ages and durations in seconds, sizes in bytes. Counts are since the start of the daemon, except those
of a ledger, which are since the queue began.

A field is never renamed and never changes its type; a new one has a default. So a command understands an older daemon, which
leaves fields out, and a newer one, whose new fields it ignores.
"""

import msgspec

from agent.queue.barrier import FlushReport
from agent.queue.cursor import Ledger

VERDICT_HEADER = "artifacts-agent-flush"  # of the answer to a flush, with a FlushVerdict
NO_EVENTS = Ledger(0, 0, 0, {}, 0)


class ApiStatus(msgspec.Struct, frozen=True):
    """The account that events are for."""

    url: str
    team_id: str | None = None
    slug: str | None = None


class ForwardStatus(msgspec.Struct, frozen=True):
    """The fleet that events are forwarded to: its engine's servers, the team, and the pool of this machine."""

    servers: list[str] = []
    team: str = ""
    pool: str = ""


class HttpStatus(msgspec.Struct, frozen=True):
    """The HTTP listener: where it listens, its open connections, and its answers by status.

    `events` counts the answers to requests with events; `front` those to requests that were passed on, which happens only if it
    `forwards`. `listen` is HOST:PORT.
    """

    socket: str | None = None
    listen: str | None = None
    connections: int = 0
    events: dict[int, int] = {}
    front: dict[int, int] = {}
    forwards: bool = False


class MetricsStatus(msgspec.Struct, frozen=True):
    """Where the metrics can be asked for without the control socket, and the open connections there; `listen` is HOST:PORT."""

    socket: str | None = None
    listen: str | None = None
    connections: int = 0


class QueueStatus(msgspec.Struct, frozen=True):
    """The queue's files. `quarantined` counts the damaged pieces that are kept, `quarantine_lost` those that could not be.

    `max_bytes` is the most that they may have, 0 where an older daemon does not say.
    """

    bytes: int = 0
    segments: int = 0
    quarantined: int = 0
    quarantine_lost: int = 0
    max_bytes: int = 0


class BatchLimitStatus(msgspec.Struct, frozen=True):
    """How large a request may be now; `reason` is what the server said of larger ones, None for the configured size."""

    events: int
    bytes: int
    reason: str | None = None


class OverQuotaStatus(msgspec.Struct, frozen=True):
    """How much of a user's was dropped as `quota` since the start; `uid` is None for all who are connected over TCP."""

    uid: int | None
    events: int
    bytes: int


class DestinationStatus(msgspec.Struct, frozen=True):
    """One destination. `state` is "running", "backing_off", "paused" or "failed".

    `since` and `until` are times, where they are known.

    `last_answer` is what a server answered last since the start, to events or to a probe, None if nothing.

    `dead_letters` is how many are kept, None while that cannot be told; `dead_letters_discarded` made room for younger ones.
    `batch_limit` is None where an older daemon does not say. `over_quota` are those who sent more than their share, most bytes
    first. One that is no longer configured is `retired`: it takes nothing new, and delivers what it has. A queue that cannot be
    opened is "failed". `forward` is None where events go to the API. `token_error` says what is wrong with a new token; the
    last usable one stays.
    """

    state: str = ""
    reason: str | None = None
    since: str | None = None
    until: str | None = None
    ledger: Ledger = NO_EVENTS
    oldest_event_age: float | None = None
    last_delivery_at: str | None = None
    requests: int = 0
    queue: QueueStatus = QueueStatus()
    dead_letters: int | None = None
    dead_letters_discarded: int = 0
    storage_error: str | None = None
    batch_limit: BatchLimitStatus | None = None
    over_quota: list[OverQuotaStatus] = []
    retired: bool = False
    last_answer_at: str | None = None
    last_answer: str | None = None
    forward: ForwardStatus | None = None
    token_error: str | None = None


class NotReady(msgspec.Struct, frozen=True):
    """Why a destination cannot deliver now: `kind` is "storage", "paused" or "backing_off"."""

    destination: str
    kind: str
    message: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """What `GET /readyz` answers; `problems` is empty if it is `ready`."""

    ready: bool
    problems: list[NotReady] = []


class FlushVerdict(FlushReport, frozen=True):
    """What a verdict on a flush goes by; `held_up` says why nothing was being delivered at its end, if that was so."""

    held_up: str | None = None


class OpenSpoolStatus(msgspec.Struct, frozen=True):
    """A spool that is being delivered; `state` and `reason` as in `DestinationStatus`, or "settled" at its end."""

    directory: str
    state: str
    reason: str | None = None
    ledger: Ledger = NO_EVENTS


class LeftSpool(msgspec.Struct, frozen=True):
    """A directory among the spools that is left alone, and why."""

    directory: str
    reason: str


class AdoptionStatus(msgspec.Struct, frozen=True):
    """Adopted spools: how many events wait in those `under_way`, how many are `finished`, and the sum of their ledgers."""

    queued: int = 0
    under_way: list[OpenSpoolStatus] = []
    finished: int = 0
    ledger: Ledger = NO_EVENTS
    left: list[LeftSpool] = []


class StatusReport(msgspec.Struct):
    """How the daemon is doing. `uptime` is in seconds; `rejected` counts lines that were not valid, `denied` events that no rule
    lets in.

    `connections` are those that are open on the stream socket, `evicted` those that were closed because there were too many.
    `adopted` is None where no spools are adopted, `metrics` where they have no socket of their own, `api` and `http` where an
    older daemon does not say.
    """

    version: str = ""
    pid: int = 0
    uptime: float = 0.0
    rejected: int = 0
    connections: int = 0
    evicted: int = 0
    api: ApiStatus | None = None
    http: HttpStatus | None = None
    destinations: dict[str, DestinationStatus] = {}
    adopted: AdoptionStatus | None = None
    metrics: MetricsStatus | None = None
    denied: int = 0


class Resumed(msgspec.Struct, frozen=True):
    """The answer to `POST /resume`; for how many more seconds the server had asked to wait, if it had: that is not waited for."""

    state: str = "running"
    retry_after_overridden: float | None = None


class Reloaded(msgspec.Struct, frozen=True):
    """The answer to `POST /reload`: the keys that have changed, with "token" for a new one, and those that need a restart.

    `tokens_refused` says which tokens are not usable, by destination and reason.
    """

    changed: list[str] = []
    restart_needed: list[str] = []
    tokens_refused: list[str] = []


_decode = msgspec.json.Decoder(StatusReport).decode


def decode_status(data: bytes) -> StatusReport:
    """Return what a daemon of any version says. Raises ValueError if it is no status."""
    return _decode(data)
