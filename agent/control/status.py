"""Builds the answer to `GET /status` from the parts of a daemon."""

import os
from collections.abc import Callable, Mapping, Sequence

import anyio

from agent import __version__
from agent.control.schema import (
    AdoptionStatus,
    BatchLimitStatus,
    DestinationStatus,
    HttpStatus,
    LeftSpool,
    OpenSpoolStatus,
    OverQuotaStatus,
    QueueStatus,
    StatusReport,
)
from agent.delivery.pipeline import Pipeline
from agent.delivery.pipeline_status import PipelineStatus
from agent.spools.adoption import AdoptionReport
from agent.timestamps import iso

# Fills in what one part of the daemon has to say.
Describe = Callable[[StatusReport], None]


async def status_report(
    pipelines: Mapping[str, Pipeline], describe: Sequence[Describe], started_at: float, now: float
) -> StatusReport:
    """Return how the daemon is doing. `started_at` and `now` are in seconds since the epoch."""
    uptime = round(now - started_at, 3)
    report = StatusReport(version=__version__, pid=os.getpid(), uptime=uptime, http=HttpStatus())
    found: dict[str, PipelineStatus] = {}

    async def ask(name: str, pipeline: Pipeline) -> None:
        found[name] = await pipeline.status()

    names = [*pipelines]
    async with (
        anyio.create_task_group() as asking
    ):  # a disk that does not answer takes its time: they all take it at once
        for name in names:
            asking.start_soon(ask, name, pipelines[name])
    report.destinations.update((name, _destination(found[name], now)) for name in names)
    for each in describe:
        each(report)
    return report


def adoption_status(found: AdoptionReport) -> AdoptionStatus:
    """Return what the status says of adopted spools."""
    return AdoptionStatus(
        queued=sum(each.ledger.queued for each in found.under_way),
        under_way=[
            OpenSpoolStatus(str(each.directory), each.state, each.reason, each.ledger) for each in found.under_way
        ],
        finished=found.finished,
        ledger=found.ledger,
        left=[LeftSpool(str(directory), reason) for directory, reason in found.left],
    )


def _destination(status: PipelineStatus, now: float) -> DestinationStatus:
    oldest = status.oldest_event_at
    return DestinationStatus(
        state=status.state,
        reason=status.reason,
        since=_iso(status.since),
        until=_iso(status.until),
        ledger=status.ledger,
        oldest_event_age=None if oldest is None else round(max(now - oldest, 0.0), 3),
        last_delivery_at=_iso(status.last_delivery_at),
        requests=status.requests,
        queue=QueueStatus(
            status.queue_bytes, status.segments, status.quarantined, status.quarantine_lost, status.queue_limit
        ),
        dead_letters=status.dead_letters,
        dead_letters_discarded=status.dead_letters_discarded,
        storage_error=status.storage_error,
        batch_limit=BatchLimitStatus(*status.batch_limit),
        last_answer_at=_iso(status.last_answer_at),
        last_answer=status.last_answer,
        over_quota=[OverQuotaStatus(*each) for each in status.over_quota],
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
