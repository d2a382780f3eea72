"""What all clients have used the cache for, by CI system: what the metrics count."""

from collections.abc import Mapping

from agent.cache_use import NO_USE, CacheUse
from agent.client.ci import CI_VENDORS

NO_CI = "none"
OTHER_CI = "other"
_KNOWN = {None: NO_CI} | {name: name for name, _ in CI_VENDORS}


class CacheUses:
    """Adds up what blocks of events say, since the start.

    `by_ci` has turbo's names of CI systems, NO_CI and OTHER_CI: what a client calls its own must not make a series for ever.
    """

    def __init__(self) -> None:
        self._by_ci = {NO_CI: NO_USE}

    @property
    def by_ci(self) -> Mapping[str, CacheUse]:
        """What was used by the CI systems that were seen, and outside of any."""
        return self._by_ci

    def add(self, ci: str | None, use: CacheUse) -> None:
        """Add what a block says; `ci` is that of its context."""
        name = _KNOWN.get(ci, OTHER_CI)
        before = self._by_ci.get(name)
        self._by_ci[name] = use if before is None else before.plus(use)
