"""What the parts of a daemon have in common: one life cycle, so that start-up, reload and shutdown are loops over a list."""

from collections.abc import Callable

from anyio.abc import TaskGroup

from agent.control.schema import StatusReport
from agent.daemon.settings import Settings

Apply = Callable[[], None]


class Service:
    """A part of a daemon, which may be there or not. It overrides those methods that it has a use for."""

    def start(self, tasks: TaskGroup) -> None:
        """Begin to work, in `tasks`."""

    def reload(self, new: Settings) -> Apply:
        """Prepare for new settings; return what takes them over. Raises ConfigError: then they are refused as a whole."""
        return _nothing

    async def drain(self, seconds: float) -> None:
        """Take in nothing new, and return when what was taken in is dealt with, as far as it can be within `seconds`.

        To cancel it means not to wait any longer: it still returns in good order.
        """

    async def close(self) -> None:
        """Give files and connections back, after the tasks have ended. It is called even if `start` never was."""

    def describe(self, report: StatusReport) -> None:
        """Fill in what the status says of this part."""


def _nothing() -> None:
    pass
