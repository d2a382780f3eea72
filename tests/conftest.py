"""Fixtures that every kind of test may use."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support import profiles
from tests.support.api_server import ApiServer
from tests.support.recordings import Recorded, load
from tests.support.turborepo import TurborepoServer, turborepo_server

profiles.register()
REPORT = pytest.StashKey[list[str]]()


def pytest_configure() -> None:
    """Let SIGINT end what tests start. In the background of a script it is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the tests have to report of their coverage."""
    lines = config.stash.get(REPORT, [])
    if lines:
        terminalreporter.section("crash points covered")
        for line in lines:
            terminalreporter.line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the report over to the process that started this one, where tests run in several (`-n`)."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["report"] = session.config.stash.get(REPORT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process that ran tests has to report; one that crashed has nothing."""
    node.config.stash.setdefault(REPORT, []).extend(getattr(node, "workeroutput", {}).get("report", []))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Let nothing but critical errors be logged: a test that lives a thousand lives would log for each."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print at the end of the run."""
    return pytestconfig.stash.setdefault(REPORT, [])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Asynchronous tests run on both backends, asyncio with uvloop as in production; tests.integration on that alone."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.fixture(scope="session")
def recorded_requests() -> list[Recorded]:
    """The 72 requests that turbo 2.11.11 sent."""
    requests = load()
    assert len(requests) == 72
    assert sum(len(request.events) for request in requests) == 2539
    return requests


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    """An API that accepts everything until the test says otherwise; fails the test on a request against the schema."""
    with ApiServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture
def turborepo_remote_cache(tmp_path: Path) -> Iterator[TurborepoServer]:
    """The real server, with a body limit of 1 MiB."""
    with turborepo_server(tmp_path / "turborepo-storage") as server:
        yield server
