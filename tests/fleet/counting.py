"""The API of a fleet under faults: it counts how often each event came, and keeps no body, so that millions may come."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tests.support.api_server import Answer, ApiServer
from tests.support.http_connection import HttpConnection


class Arrivals:
    """How often each event came, by the name of who made it and its number there: a byte for each event."""

    def __init__(self) -> None:
        self._times: dict[str, bytearray] = {}

    def add(self, text: str) -> None:
        """Count one event more; its hash is `<name>-<number>`."""
        name, _, number = text.rpartition("-")
        times, index = self._times.setdefault(name, bytearray()), int(number)
        times.extend(bytes(max(index + 1 - len(times), 0)))
        times[index] = min(times[index] + 1, 255)

    @property
    def total(self) -> int:
        """How many events came, repeats included."""
        return sum(sum(times) for times in self._times.values())

    @property
    def repeats(self) -> int:
        """How many of them had come before."""
        return sum(sum(times) - sum(map(bool, times)) for times in self._times.values())

    def lost(self, made: Mapping[str, int]) -> Iterator[str]:
        """Yield the hashes that never came of those that were made: `made` says how many by name, numbered from 1."""
        for name, count in made.items():
            times = self._times.get(name, b"")
            yield from (f"{name}-{each}" for each in range(1, count + 1) if each >= len(times) or not times[each])

    def invented(self, made: Mapping[str, int]) -> Iterator[str]:
        """Yield the hashes that came and were not made."""
        for name, times in self._times.items():
            count = made.get(name, 0)
            yield from (f"{name}-{each}" for each, often in enumerate(times) if often and not 1 <= each <= count)


class CountingApi(ApiServer):
    """An `ApiServer` that counts the events that it takes, and forgets what it was sent once it has answered."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = Arrivals()

    async def _perform(self, wire: HttpConnection, index: int, answer: Answer) -> bool:
        try:
            return await super()._perform(wire, index, answer)
        finally:
            with self._changed:
                request = self._requests[index]
                self._requests[index] = replace(request, body=b"")
                for event in request.events if request.accepted else ():
                    self.arrivals.add(event["hash"])
