"""What a server on loopback has received: kept per request, readable and awaitable from the test's thread."""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.tcp_server import TcpServer
from tests.support.waiting import HUNG_AFTER

EVENTS_PATH = "/v8/artifacts/events"
STATUS_PATH = "/v8/artifacts/status"


@dataclass(frozen=True)
class Captured:
    """One request. `status` is None until it is answered, and stays so if it never is; header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    status: int | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def is_events(self) -> bool:
        """Whether it is an attempt to record events."""
        return self.method == "POST" and self.path == EVENTS_PATH

    @property
    def accepted(self) -> bool:
        """Whether its events got a complete 2xx answer."""
        return self.is_events and self.status is not None and 200 <= self.status < 300

    @functools.cached_property
    def events(self) -> list[dict[str, Any]]:
        """The body's events; raises ValueError where it is not JSON."""
        events: list[dict[str, Any]] = json.loads(self.body)
        return events


class CapturingServer(TcpServer):
    """A server that keeps every request. Each method may be called from any thread."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self._requests: list[Captured] = []
        self._changed = threading.Condition()
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def requests(self) -> list[Captured]:
        """Every request so far, in the order of arrival."""
        with self._changed:
            return list(self._requests)

    def posts(self) -> list[Captured]:
        """The requests to record events, accepted or not."""
        return [request for request in self.requests if request.is_events]

    def accepted(self) -> list[Captured]:
        """The requests to record events that got a complete 2xx answer."""
        return [request for request in self.requests if request.accepted]

    def accepted_bodies(self) -> list[bytes]:
        """The bodies of the accepted requests, byte for byte."""
        return [request.body for request in self.accepted()]

    def accepted_events(self) -> list[dict[str, Any]]:
        """The events of all accepted requests, repeats included."""
        return [event for request in self.accepted() for event in request.events]

    def wait_for(self, predicate: Callable[[], bool], timeout: float = HUNG_AFTER) -> None:
        """Block until the predicate holds; it is asked after every change. AssertionError after `timeout` seconds.

        Async tests call it through `anyio.to_thread.run_sync`.
        """
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                seen = [(request.method, request.path, request.status) for request in self._requests[-20:]]
                raise AssertionError(f"not so within {timeout} s; {len(self._requests)} requests, the last: {seen}")

    def wait_for_accepted(self, count: int, timeout: float = HUNG_AFTER) -> None:
        """Block until at least `count` events were accepted."""
        self.wait_for(lambda: sum(len(request.events) for request in self.accepted()) >= count, timeout)

    def wait_for_posts(self, count: int, timeout: float = HUNG_AFTER) -> None:
        """Block until at least `count` requests to record events have arrived."""
        self.wait_for(lambda: len(self.posts()) >= count, timeout)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._count_in_flight(+1)
        try:
            yield
        finally:
            self._count_in_flight(-1)

    def _count_in_flight(self, change: int) -> None:
        with self._changed:
            self.in_flight += change
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()

    def _arrived(self, request: Captured) -> int:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
            return len(self._requests) - 1

    def _answered(self, index: int, status: int) -> None:
        with self._changed:
            self._requests[index] = replace(self._requests[index], status=status)
            self._changed.notify_all()
