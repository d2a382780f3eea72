"""Tasks have the names that turbo gives them, from files that anybody may have written."""

import json
import os
from pathlib import Path

import pytest

from agent.usage import runs
from agent.usage.runs import TaskNames, runs_above, task_names
from tests.support import turbo
from tests.support.monorepo import Monorepo


def write(directory: Path, name: str, tasks: dict[str, str], age: float = 0.0) -> Path:
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"id": name, "tasks": [{"taskId": each, "hash": of} for each, of in tasks.items()]}))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_what_turbo_writes_names_its_tasks(tmp_path: Path) -> None:
    monorepo = Monorepo(tmp_path / "monorepo", 3)
    tasks = turbo.run(monorepo, None).tasks
    found = runs_above(monorepo.root / "packages" / "p001")
    assert found == monorepo.root / ".turbo" / "runs"
    wanted = {task.hash: name for name, task in tasks.items()}
    assert task_names(found, [*wanted, "another"]) == TaskNames(wanted)
    assert set(wanted.values()) == {"p000#build", "p001#build", "p002#build"}


def test_the_newest_run_counts_and_no_more_are_read_than_are_needed(tmp_path: Path) -> None:
    write(tmp_path, "a", {"old#build": "h1", "b#build": "h2"}, age=10.0)
    write(tmp_path, "z", {"new#build": "h1"})
    (tmp_path / "damaged.json").write_text("{")
    os.utime(tmp_path / "damaged.json", (1.0, 1.0))
    assert task_names(tmp_path, ["h1", "h2"]) == TaskNames({"h1": "new#build", "h2": "b#build"})
    assert task_names(tmp_path, ["h1", "h3"]) == TaskNames({"h1": "new#build"}, 1)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tasks": [{"hash": "h"}]}', '{"tasks": 7}', "\xff", '{"x":' + "[" * 100_000]
)
def test_a_file_that_is_no_run_is_counted(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    assert task_names(tmp_path, ["h"]) == TaskNames({}, 1)


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = write(tmp_path, "a", {"a#build": "h1"}).stat().st_size
    write(tmp_path, "b", {"b#build": "h2"}, age=10.0)
    monkeypatch.setattr(runs, "MAX_BYTES", size)
    assert task_names(tmp_path, ["h1", "h2"]) == TaskNames({"h1": "a#build"})
    monkeypatch.setattr(runs, "MAX_BYTES", size + 5)
    assert task_names(tmp_path, ["h1", "h2"]) == TaskNames({"h1": "a#build"}, 1)


def test_a_directory_that_no_turbo_has_seen_has_no_runs(tmp_path: Path) -> None:
    assert runs_above(tmp_path) is None
