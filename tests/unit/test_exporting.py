"""An export whose writing fails: the file is whole or not there."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.cli.exporting import writer
from agent.errors import AgentError
from agent.events import Event
from agent.queue.browse import Origin


class Kept(NamedTuple):
    """An event that waits."""

    context: Origin
    event: Event


EVENT = Kept(Origin(None, None), Event("s", "LOCAL", "MISS", "h"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond that; a write that would is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def export(target: Path, events: int) -> None:
    with writer(str(target), force=True, whole=False, noun="event") as made:
        for _ in range(events):
            made.add(EVENT)


def test_an_export_that_finds_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "copy.ndjson"
    export(target, 10)
    before = target.read_bytes()
    with (
        files_of_at_most(100_000),
        pytest.raises(AgentError, match="cannot write: File too large: nothing was exported"),
    ):
        export(target, 10_000)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == before
    assert before.count(b'"hash"') == 10
