"""The destinations of a daemon, each with a queue, a worker and a lock of its own, and how they come and go with a reload."""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from agent.control.schema import ApiStatus, DestinationStatus, ForwardStatus, StatusReport
from agent.daemon.opening import identify, open_queue, queues_left
from agent.daemon.service import Apply, Service
from agent.daemon.settings import (
    Settings,
    account_of,
    limits_of,
    queue_directory,
    refuse_to_swap,
)
from agent.daemon.wiring import delivery_config
from agent.delivery.opening import DeliveryConfig, QueueFiles
from agent.delivery.pipeline import Pipeline, keep_house
from agent.errors import ConfigError, QueueLockedError, StorageError
from agent.queue.committer import NO_ANSWER
from agent.queue.filesystem import Filesystem, Lock
from agent.queue.shares import SharedDisk
from agent.rules import DEFAULT
from agent.runtime import Broadcast, Runtime, Threads, begin_in_thread
from agent.spools.identity import DESTINATION, Account

THREADS = 8
"""How many blocking calls one destination may have under way: one whose disk hangs takes no threads from the others."""
OPEN_SECONDS = 2.0
"""How long a start, or who asks for a reload, waits for the disks of all destinations but DEFAULT; those are taken later."""
AT_ONCE_SECONDS = 0.2
"""So long everything waits for them in a reload, so that as a rule events get there from its first moment on."""
END_SECONDS = 5.0
"""How long after the end of a drain a destination may take for what it has begun."""
ASK_SECONDS, ROOM_SECONDS = 5.0, 0.5
"""How often one whose disk is full asks the others for room, and how long it waits for them."""

Follow = Callable[[str, Pipeline], Coroutine[None, None, None]]


@dataclass
class _Open:
    """A destination whose queue is open: with `retiring`, it takes nothing new, and is `ending` when nothing waits.

    One that `hangs` has not ended with the others.
    """

    pipeline: Pipeline
    directory: Path
    lock: Lock
    account: Account
    retiring: anyio.CancelScope | None = None
    ending: bool = False
    hangs: bool = False
    ended: anyio.Event = field(default_factory=anyio.Event)


@dataclass
class _Opening:
    """A queue that is being opened for an account; it `is_late` when that has been said."""

    account: Account
    opened: Future[tuple[Lock, QueueFiles]]
    is_late: bool = False


class Destinations(Service):
    """All of them. What is wrong with one is that one's trouble alone, but for DEFAULT, without which no daemon starts.

    `pipelines` are those that are open, by name, and `taking` those of them that take events; `failed` says why others cannot be
    opened.
    """

    def __init__(self, settings: Settings, fs: Filesystem, runtime: Runtime, threads: Threads) -> None:
        self._settings = settings
        self._fs = fs
        self._runtime = runtime
        self._threads = threads
        self._log = structlog.get_logger("agent.daemon")
        self._open: dict[str, _Open] = {}
        self._opening: dict[str, _Opening] = {}
        self._answered = Broadcast()
        self._tasks: TaskGroup | None = None
        self._follow: Follow | None = None
        self._draining = False
        self._asked_for_room: dict[str, float] = {}
        total = settings.config.queue.total_bytes
        self._disk = SharedDisk(total) if total is not None else None
        self.pipelines: dict[str, Pipeline] = {}
        self.taking: dict[str, Pipeline] = {}
        self.failed: dict[str, str] = {}

    def open_all(self) -> None:
        """Open what is configured. Raises StorageError or QueueLockedError for DEFAULT, and ConfigError."""
        deliveries = self._deliveries(self._settings)
        accounts = {name: account_of(self._settings, name) for name in deliveries}
        self._open_together({DEFAULT: accounts.pop(DEFAULT)}, deliveries, None)
        self._open_together(accounts, deliveries, OPEN_SECONDS)
        for name, opening in self._opening.items():
            self._say_late(name, opening)
        self._open_left()

    def follow(self, follow: Follow) -> None:
        """Have this run beside each pipeline, as long as it is open. Call it before `start`."""
        self._follow = follow

    def start(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        tasks.start_soon(keep_house, self.pipelines.values)
        for name, opening in self._opening.items():
            tasks.start_soon(self._take_late, name, opening)
        for name, this in self._open.items():
            tasks.start_soon(self._run, name, this)
            if this.retiring is not None:
                tasks.start_soon(self._end_when_empty, name, this, this.retiring)

    async def _run(self, name: str, this: _Open) -> None:
        async with anyio.create_task_group() as beside:
            if self._follow is not None:
                beside.start_soon(self._follow, name, this.pipeline)
            try:
                await this.pipeline.run()
            finally:
                this.ended.set()
                beside.cancel_scope.cancel()

    # Opening

    def _deliveries(self, settings: Settings) -> dict[str, DeliveryConfig]:
        return {name: delivery_config(settings, self._runtime, name) for name in settings.config.accounts}

    def _open_left(self) -> None:
        """Retire destinations that are configured no more, and in which events wait, where another one has the same account."""
        left = queues_left(self._fs, self._settings, OPEN_SECONDS)
        accounts = {name: account for name, (account, _) in left.items()}
        deliveries = {name: delivery_config(self._settings, self._runtime, heir) for name, (_, heir) in left.items()}
        self._open_together(accounts, deliveries, OPEN_SECONDS)
        for name in accounts:
            self._retire(name)

    def _open_together(
        self, accounts: Mapping[str, Account], deliveries: Mapping[str, DeliveryConfig], seconds: float | None
    ) -> None:
        """Open queues, all at one time; `_opening` are then those whose disks have not answered within `seconds`."""
        begun = {
            name: _Opening(account, begin_in_thread(partial(open_queue, self._fs, self._settings, name, account)))
            for name, account in accounts.items()
        }
        wait([each.opened for each in begun.values()], seconds)
        for name, opening in begun.items():
            if opening.opened.done():
                self._take(name, deliveries[name], opening)
            else:
                self._opening[name] = opening
                self.failed[name] = f"{queue_directory(self._settings.config, name)}: {NO_ANSWER}"

    def _take(self, name: str, delivery: DeliveryConfig, opening: _Opening) -> None:
        """Take a queue that is open. Raises what `open_queue` does for DEFAULT; others have failed then."""
        try:
            self._take_opened(name, delivery, opening.account, *opening.opened.result())
        except (StorageError, QueueLockedError, ConfigError) as error:
            if name == DEFAULT:
                raise
            self.failed[name] = str(error)
            self._log.error("destination_failed", destination=name, error=str(error))

    def _say_late(self, name: str, opening: _Opening) -> None:
        opening.is_late = True
        self._answered.notify_all()
        if name in self.failed:
            self._log.error("destination_failed", destination=name, error=self.failed[name])

    def _take_opened(
        self, name: str, delivery: DeliveryConfig, account: Account, lock: Lock, files: QueueFiles
    ) -> None:
        directory, limits = queue_directory(self._settings.config, name), limits_of(self._settings.config)
        runtime = dataclasses.replace(self._runtime, run_blocking=self._threads.own(THREADS))
        ask = partial(self._ask_for_room, name)
        try:
            place = directory / DESTINATION
            pipeline = Pipeline(self._fs, place, limits, delivery, runtime, self._disk, files, ask)
        except BaseException:
            lock.release()
            raise
        self._open[name] = _Open(pipeline, directory, lock, account)
        self.pipelines[name] = self.taking[name] = pipeline
        self.failed.pop(name, None)
        if self._disk is not None:
            for each in self.pipelines.values():  # they have to give way
                each.keep_house(thoroughly=True)
        if (reason := self._settings.tokenless.get(name)) is not None:
            self._log.warning("no_token", destination=name, hint=reason)

    async def _take_late(self, name: str, opening: _Opening) -> None:
        """Run a destination whose disk has answered after all."""
        answered = asyncio.wrap_future(opening.opened)
        if not opening.is_late:
            await asyncio.wait([answered], timeout=OPEN_SECONDS)
            if not answered.done():
                self._say_late(name, opening)
        await asyncio.wait([answered])
        del self._opening[name]
        self._answered.notify_all()
        is_open = answered.exception() is None
        if self._tasks is None or self._draining or name not in self._settings.config.accounts:
            if is_open:
                answered.result()[0].release()
            return
        self._take(name, delivery_config(self._settings, self._runtime, name), opening)
        if name in self._open:
            self._check_account(name, self._open[name])
            self._tasks.start_soon(self._run, name, self._open[name])

    async def opened(self) -> None:
        """Return when the queues that a reload has added are open, or late, and have room."""
        while not all(each.is_late for each in self._opening.values()):
            await self._answered.wait()
        if self._disk is not None:  # the others have given way by then
            await self._commit_all(self.pipelines.values())

    async def _identify_in_thread(self, name: str, this: _Open) -> None:
        await this.pipeline.run_blocking(partial(identify, self._fs, name, this.directory, this.account))

    async def _ask_for_room(self, name: str) -> bool:
        """Have each other one look at its disk: if that is full, too, its history goes before an event of this one does.

        False if that was done lately. One whose disk does not answer is not waited for.
        """
        now, others = anyio.current_time(), [each for other, each in self.pipelines.items() if other != name]
        if not others or now - self._asked_for_room.get(name, -math.inf) < ASK_SECONDS:
            return False
        self._asked_for_room[name] = now
        await self._commit_all(others)
        return True

    async def _commit_all(self, pipelines: Iterable[Pipeline]) -> None:
        with anyio.move_on_after(ROOM_SECONDS):
            async with anyio.create_task_group() as asking:
                for each in [*pipelines]:
                    asking.start_soon(each.commit_once)

    # Reloading

    def reload(self, new: Settings) -> Apply:
        """Raises ConfigError also where what waits would go to another account, while another destination has its own."""
        deliveries = self._deliveries(new)
        for name, this in self._open.items():
            if name in deliveries:
                refuse_to_swap(new, name, this.account, this.pipeline.ledger().queued)

        def take_over() -> None:
            self._settings = new
            for name in deliveries.keys() & self._open.keys():
                if not self._open[name].ending:  # else it is opened again after that
                    self._reconfigure(name, deliveries[name])
            for name in self._open.keys() - deliveries.keys():
                self._retire(name)
            for name in self.failed.keys() - deliveries.keys():
                del self.failed[name]
            self._add({name: each for name, each in deliveries.items() if name not in self._open})

        return take_over

    def _add(self, deliveries: Mapping[str, DeliveryConfig]) -> None:
        """Open destinations, and run them: those whose disks do not answer at once when they do."""
        names = [] if self._draining else [name for name in deliveries if name not in self._opening]
        accounts = {name: account_of(self._settings, name) for name in names}
        self._open_together(accounts, deliveries, AT_ONCE_SECONDS)
        if self._tasks is None:
            return
        for name in names:
            if name in self._open:
                self._tasks.start_soon(self._run, name, self._open[name])
            elif name in self._opening:
                self._tasks.start_soon(self._take_late, name, self._opening[name])

    def _reconfigure(self, name: str, delivery: DeliveryConfig) -> None:
        this = self._open[name]
        if this.retiring is not None:
            this.retiring.cancel()
            this.retiring = None
            self.taking[name] = this.pipeline
        this.pipeline.reconfigure(delivery)
        self._check_account(name, this)

    def _check_account(self, name: str, this: _Open) -> None:
        if this.account != (account := account_of(self._settings, name)):
            this.account = account
            if self._tasks is not None:
                self._tasks.start_soon(self._identify_in_thread, name, this)

    def _retire(self, name: str) -> None:
        """Let a destination that is no longer configured deliver what it has, as it was told last, and then end."""
        this = self._open.get(name)
        if this is not None and this.retiring is None:
            this.retiring = anyio.CancelScope()
            del self.taking[name]
            self._log.info("destination_retired", destination=name, queued=this.pipeline.ledger().queued)
            if self._tasks is not None:
                self._tasks.start_soon(self._end_when_empty, name, this, this.retiring)

    async def _end_when_empty(self, name: str, this: _Open, scope: anyio.CancelScope) -> None:
        with scope:
            await this.pipeline.flush()  # which also commits what is pending
            while this.pipeline.ledger().queued:
                await this.pipeline.flush()
        if scope.cancel_called or self._draining:
            return
        this.ending = True
        del self.pipelines[name]
        with anyio.CancelScope(shield=True):
            await this.pipeline.drain(0)
            await this.ended.wait()
            try:
                await self._close(this)
            except StorageError as error:  # nothing waited in it, and others go on
                self._log.warning("destination_failed", destination=name, error=str(error))
            del self._open[name]
        self._log.info("destination_ended", destination=name)
        if name in self._settings.config.accounts:  # it has come back meanwhile
            self._add({name: delivery_config(self._settings, self._runtime, name)})

    # Ending

    async def drain(self, seconds: float) -> None:
        self._draining = True
        async with anyio.create_task_group() as draining:
            for name, this in self._open.items():
                draining.start_soon(self._drain, name, this, seconds)

    async def _drain(self, name: str, this: _Open, seconds: float) -> None:
        """End with everything that was taken on disk, even when nobody waits for it any more; but for a disk that hangs."""
        try:
            await this.pipeline.drain(seconds)
        finally:
            with anyio.move_on_after(END_SECONDS, shield=True):
                await this.ended.wait()
            if not this.ended.is_set():
                this.hangs = True
                self._log.error("destination_hangs", destination=name, error=f"{this.directory}: {NO_ANSWER}")

    @property
    def hanging(self) -> bool:
        """Whether one has not ended with the others, so that a thread is left that nothing can end."""
        return any(this.hangs for this in self._open.values())

    async def close(self) -> None:
        try:
            async with anyio.create_task_group() as closing:
                for this in self._open.values():
                    if not this.hangs:
                        closing.start_soon(self._close, this)
        except BaseExceptionGroup as errors:  # one is enough to say
            raise errors.exceptions[0] from None

    async def _close(self, this: _Open) -> None:
        try:
            await this.pipeline.close()
        finally:
            this.lock.release()

    def describe(self, report: StatusReport) -> None:
        api, accounts = self._settings.config.api, self._settings.config.accounts
        report.api = ApiStatus(api.url, api.team_id, api.slug)
        for name, this in self._open.items():
            found = report.destinations.get(name)
            if found is not None and this.retiring is not None:
                report.destinations[name] = replace(found, retired=True)
            elif found is not None and name in accounts and (forward := accounts[name].forward).servers:
                to = ForwardStatus([*forward.servers], forward.team or "", forward.pool or "")
                report.destinations[name] = replace(found, forward=to)
        for name, reason in self.failed.items():
            report.destinations[name] = DestinationStatus(state="failed", reason=reason)
        for name, error in self._settings.refused_tokens.items():
            if name in report.destinations:
                report.destinations[name] = replace(report.destinations[name], token_error=error)
