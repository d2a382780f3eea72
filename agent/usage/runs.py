"""Names of tasks for their hashes, from what turbo writes with `--summarize`: a file for each run, in `.turbo/runs`."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

MAX_FILES = 1000
MAX_BYTES = 256 * 1024 * 1024
"""What is read of them in all, the newest first."""
DIRECTORY = Path(".turbo", "runs")


class _Task(msgspec.Struct, rename="camel"):
    task_id: str
    hash: str = ""


class _Run(msgspec.Struct):
    tasks: list[_Task]


class TaskNames(NamedTuple):
    """Names such as "web#build" by hash, and how many files could not be read."""

    names: dict[str, str]
    unreadable: int = 0


_decode = msgspec.json.Decoder(_Run).decode


def runs_above(directory: Path) -> Path | None:
    """Return where turbo has written its runs for the repository that a directory is in; None if it has not."""
    return next((each / DIRECTORY for each in (directory, *directory.parents) if (each / DIRECTORY).is_dir()), None)


def task_names(directory: Path, hashes: Collection[str]) -> TaskNames:
    """Look for these hashes in the runs of a directory, as long as some are missing. Raises OSError if it cannot be read."""
    wanted, names, unreadable, left = set(hashes), dict[str, str](), 0, MAX_BYTES
    files = sorted((each.stat().st_mtime, each) for each in directory.glob("*.json") if each.is_file())
    for _, path in reversed(files[-MAX_FILES:]):
        if wanted <= names.keys() or left <= 0:
            break
        try:
            with path.open("rb") as file:
                data = file.read(left)
            left -= len(data)
            found = {task.hash: task.task_id for task in _decode(data).tasks if task.hash in wanted}
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            unreadable += 1
            continue
        names = found | names
    return TaskNames(names, unreadable)
