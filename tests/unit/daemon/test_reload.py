"""Reload: new settings are taken over by every part of the daemon, or by none."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import config
from agent.config import Config
from agent.control.schema import Reloaded
from agent.daemon import logging
from agent.daemon.reload import Reloader
from agent.daemon.service import Service
from agent.daemon.settings import Settings
from agent.daemon.systemd import Notifier
from agent.errors import ConfigError


@dataclass
class Part(Service):
    """A service that remembers which URLs it took over, and may refuse one."""

    refuses: str = ""
    taken: list[str] = field(default_factory=list)

    def reload(self, new: Settings) -> Callable[[], None]:
        url = new.config.api.url
        if url == self.refuses:
            raise ConfigError("this one will not do")
        return lambda: self.taken.append(url)


@pytest.fixture(autouse=True)
def json_log() -> Iterator[None]:
    before = structlog.get_config()
    logging.configure("info", "json")
    yield
    structlog.configure(**before)


def loaded(directory: Path, **variables: str) -> Config:
    environ = {
        "RUNTIME_DIRECTORY": str(directory),
        "STATE_DIRECTORY": str(directory),
        "ARTIFACTS_AGENT_LOG_FORMAT": "json",
    }
    return config.load(None, environ | {f"ARTIFACTS_AGENT_{name}": value for name, value in variables.items()})


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_settings_that_one_part_refuses_are_taken_over_by_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://one"
    before = Settings.read(loaded(tmp_path), {})
    parts = [Part(), Part(refuses="https://two"), Part()]
    reloader = Reloader(lambda: loaded(tmp_path, API_URL=url), {}, before, parts, Notifier({}))
    assert reloader.reload() == Reloaded(["api.url"])
    url = "https://two"
    with pytest.raises(ConfigError, match="this one will not do"):
        reloader.reload()
    reloader.reload_if_valid()  # as at SIGHUP, for which nobody gets an answer
    assert [part.taken for part in parts] == [["https://one"]] * 3
    assert reloader.settings.config.api.url == "https://one"
    assert [each["event"] for each in logged(capsys)] == ["reloaded", "reload_refused", "reload_refused"]


def test_what_needs_a_restart_is_named_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, part = Settings.read(loaded(tmp_path), {}), Part()
    new = loaded(tmp_path, QUEUE_MAX_AGE="1d", BATCH_MAX_EVENTS="7")
    reloader = Reloader(lambda: new, {}, before, [part], Notifier({}))
    assert reloader.reload() == Reloaded(["batch.max_events"], ["queue.max_age"])
    assert [(each["event"], each.get("key"), each.get("changed")) for each in logged(capsys)] == [
        ("restart_needed", "queue.max_age", None),
        ("reloaded", None, ["batch.max_events"]),
    ]
    assert reloader.settings.config.queue == before.config.queue
    assert reloader.settings.config.batch.max_events == 7


def test_a_new_token_is_named_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"TURBO_TOKEN": "old"}
    reloader = Reloader(lambda: loaded(tmp_path), environ, Settings.read(loaded(tmp_path), environ), [], Notifier({}))
    environ["TURBO_TOKEN"] = "new"
    assert reloader.reload() == Reloaded(["token"])
    assert [(each["event"], each["changed"]) for each in logged(capsys)] == [("reloaded", ["token"])]
