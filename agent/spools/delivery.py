"""The delivery of one spool: a pipeline without an intake, opened where the spool is and run until nothing is queued."""

from pathlib import Path

import anyio

from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline, keep_house
from agent.queue.filesystem import Filesystem
from agent.queue.store import Limits
from agent.runtime import Runtime
from agent.spools.identity import DESTINATION

MOVING_SECONDS = 10.0  # what a request under way may take when its spool is left to another agent


class SpoolDelivery:
    """One spool under way. A crash leaves it where it is for the next agent."""

    def __init__(
        self, fs: Filesystem, directory: Path, limits: Limits, delivery: DeliveryConfig, runtime: Runtime
    ) -> None:
        """Open the spool's queue and recover it. Raises StorageError."""
        self.pipeline = Pipeline(fs, directory / DESTINATION, limits, delivery, runtime)
        self._ending = anyio.CancelScope()
        self._aborting = anyio.CancelScope()
        self._seconds = MOVING_SECONDS

    async def run(self) -> None:
        """Deliver until nothing is queued, or until `end`; close the queue. Raises StorageError."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run)
                self.pipeline.resume()  # whatever paused it was another agent's trouble
                with self._ending:
                    await self.pipeline.flush()
                with self._aborting:
                    await self.pipeline.stop_after_inflight(self._seconds)
        finally:
            with anyio.CancelScope(shield=True):
                await self.pipeline.close()

    async def _run(self) -> None:
        async with anyio.create_task_group() as beside:
            beside.start_soon(keep_house, lambda: [self.pipeline])
            await self.pipeline.run()
            beside.cancel_scope.cancel()

    def end(self, seconds: float = MOVING_SECONDS) -> None:
        """Begin no more requests; let `run` return when those under way are answered, or after `seconds`."""
        self._seconds = seconds
        self._ending.cancel()

    def abort(self) -> None:
        """After `end`: do not wait for the requests under way either."""
        self._aborting.cancel()
