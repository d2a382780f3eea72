"""The throttle that keeps a repeated failure from filling the disk with log lines."""


class Throttle:
    """Lets one line in `interval` seconds through for each key, and counts those that it held back."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._seen: dict[str, tuple[float, int]] = {}

    def allow(self, key: str, now: float) -> int | None:
        """Return how many lines were held back since the last one, or None to hold this one back too."""
        last, held_back = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._interval:
            self._seen[key] = (last, held_back + 1)
            return None
        self._seen[key] = (now, 0)
        return held_back
