"""The queue of one destination: limits, sync modes, the order of log and cursor, and what recovery makes of both."""

import errno
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from agent.errors import StorageError
from agent.events import Context, Event, encode_events
from agent.queue.cursor import SLOT_BYTES, Ledger, Outcome, Pause, Span, decode_slot
from agent.queue.cursor_file import read_slots
from agent.queue.filesystem import OsFilesystem
from agent.queue.log import Entry
from agent.queue.reader import Gap
from agent.queue.record import Frame, Record, encode_record
from agent.queue.store import Committed, Limits, Store
from tests.support.fault_filesystem import Crash, FaultFilesystem, KeepAll, LoseAll, RandomChooser, failing, no_errors
from tests.support.queue_files import entry

ROOT = Path("/queue")
T = TypeVar("T")
EVENT = Event("s", "LOCAL", "MISS", "h")
PAUSE = Pause("operator", "paused by an operator", 1.0, float("inf"), 0)


@pytest.fixture
def disk() -> FaultFilesystem:
    return FaultFilesystem()


def commit(store: Store, entries: Sequence[Entry] = (), now: float = 0.0) -> Committed:
    """Plan and commit, as the committer does."""
    committed = store.commit(store.plan(entries, now), now)
    store.published()
    if committed.refused is not None:
        store.cursor.shed(sum(each.item_count for each in entries), committed.refused)
    return committed


def deliver(store: Store, start: int, stop: int) -> None:
    store.cursor.settle([Span(start, stop)], Outcome.DELIVERED)


def dropped(store: Store) -> dict[str, int]:
    return store.cursor.ledger().dropped


def numbers(store: Store) -> list[int]:
    """Return the first number of every frame that is not settled."""
    reader, found = store.reader(), []
    while items := reader.read(1000):
        found += [item.first_seq for item in items if not isinstance(item, Gap)]
    return found


class SlowToReturn(FaultFilesystem):
    """A disk whose sync of the cursor takes its time to say that it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.synced = threading.Event()
        self.go_on = threading.Event()

    def perform(
        self, operation: str, path: Path, action: Callable[[], T], spoil: Callable[[], None] = lambda: None
    ) -> T:
        result = super().perform(operation, path, action, spoil)
        if self.slow and (operation, path) == ("sync", ROOT / "cursor"):
            self.slow = False
            self.synced.set()
            assert self.go_on.wait(10)
        return result


class Torn:
    """Of every write a crash leaves a part."""

    def choose(self, n: int) -> int:
        return n // 2


class TestOverflow:
    def test_the_oldest_segments_make_room(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=200, max_bytes=600))
        for _ in range(10):
            assert commit(store, [entry("x" * 100)]).refused is None
            assert store.log.view.size <= 600
        assert dropped(store) == {Outcome.OVERFLOW: store.cursor.position - 1}
        assert numbers(store) == list(range(store.cursor.position, 11))

    def test_drop_newest_refuses_what_does_not_fit(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=200, max_bytes=600, overflow="drop-newest"))
        refusals = [commit(store, [entry("x" * 100)]).refused for _ in range(6)]
        assert refusals == [None] * 3 + [Outcome.OVERFLOW] * 3
        assert (numbers(store), dropped(store)) == ([1, 2, 3], {Outcome.OVERFLOW: 3})

    def test_drop_newest_takes_more_once_segments_are_delivered(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=200, max_bytes=600, overflow="drop-newest"))
        for _ in range(3):
            commit(store, [entry("x" * 100)])
        deliver(store, 1, 2)
        assert commit(store, [entry("x" * 300)]).refused is Outcome.OVERFLOW
        assert commit(store, [entry("x" * 100)]).refused is None
        assert store.log.view.size <= 600

    def test_a_delivered_queue_always_has_room(self, disk: FaultFilesystem) -> None:
        """The last segment stays on disk though nothing in it is wanted: it must not count against what comes."""
        store = Store(disk, ROOT, Limits(segment_bytes=200, max_bytes=1000, overflow="drop-newest"))
        commit(store, [entry("x" * 900)])
        deliver(store, 1, 2)
        for number in range(2, 6):
            assert commit(store, [entry("x" * 500)]).refused is None
            deliver(store, number, number + 1)

    def test_what_is_larger_than_the_queue_is_refused(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(max_bytes=1000, overflow="drop-newest"))
        assert commit(store, [entry("x" * 2000)]).refused is Outcome.OVERFLOW
        assert commit(store, [entry("x" * 500)]).refused is None

    def test_what_was_delivered_is_not_dropped_as_well(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1, max_bytes=300))
        commit(store, [entry("a", 4)])
        commit(store, [entry("b")])
        deliver(store, 2, 4)
        commit(store, [entry("x" * 300)])
        assert dropped(store) == {Outcome.OVERFLOW: 2}
        assert store.cursor.ledger().delivered == 2


class TestExpiry:
    def test_segments_go_when_all_in_them_is_too_old(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1, max_age=96.0))
        for now in (0.0, 50.0, 90.0):
            commit(store, [entry("x")], now)
        assert [(commit(store, (), now), numbers(store)) for now in (99.0, 100.0, 150.0)] == [
            (Committed(None, None, None), [1, 2, 3]),
            (Committed(None, None, None), [2, 3]),
            (Committed(None, None, None), [3]),
        ]
        assert dropped(store) == {Outcome.EXPIRED: 2}
        assert len(disk.names(ROOT / "segments")) == 1

    def test_the_last_segment_is_left_to_the_reader(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(max_age=100.0))
        commit(store, [entry("x")], 0.0)
        commit(store, (), 1e6)
        assert (numbers(store), dropped(store)) == ([1], {})

    def test_a_segment_of_unknown_age_does_not_expire(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1, max_age=100.0))
        for _ in range(2):
            commit(store, [entry("x")], 0.0)
        disk.flip(store.log.path(1), 0, 0)
        store = Store(disk, ROOT, Limits(segment_bytes=1, max_age=100.0))
        commit(store, (), 1e6)
        assert numbers(store) == [1, 2]

    @pytest.mark.parametrize("restarts", [False, True])
    def test_a_clock_that_was_wrong_for_a_while_makes_no_young_event_expire(
        self, disk: FaultFilesystem, *, restarts: bool
    ) -> None:
        store = Store(disk, ROOT, Limits(max_age=96.0))
        for now in (1000.0, 1190.0, 0.0, 1190.0, 0.0, 1200.0):
            commit(store, [entry("x")], now)
            if restarts:
                store = Store(disk, ROOT, Limits(max_age=96.0))
        commit(store, (), 1200.0)
        assert numbers(store)[-1] == 6
        assert {2, 4} <= set(numbers(store))

    def test_a_segment_takes_events_for_a_part_of_their_greatest_age_only(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(max_age=96.0))
        for now in (0.0, 4.0, 4.1, 8.2, 4.2, 0.0):
            commit(store, [entry("x")], now)
        assert [each.first_seq for each in store.log.view.segments] == [1, 3, 4, 6]


class TestRoom:
    def test_a_floor_of_free_space_is_kept(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(min_free_bytes=1000))
        disk.capacity = disk.used + 1200
        assert commit(store, [entry("x" * 300)]).refused is None
        committed = commit(store, [entry("x" * 300, 2)])
        assert committed.refused is Outcome.DISK_FULL
        assert committed.append_error is not None
        assert "queue.min_free_bytes is 1000" in committed.append_error
        disk.capacity = None
        assert commit(store, [entry("y")]).refused is None
        assert (numbers(store), dropped(store)) == ([1, 2], {Outcome.DISK_FULL: 2})

    @pytest.mark.parametrize("floor", [0, 500])
    def test_a_full_disk_takes_events_again_once_all_is_delivered(self, disk: FaultFilesystem, floor: int) -> None:
        """The queue may be all that is on the disk, and its last segment all that the queue holds."""
        store = Store(disk, ROOT, Limits(min_free_bytes=floor))
        commit(store, [entry("x" * 1000)])
        reader = store.reader()
        assert [len(reader.read(2000)) for _ in range(2)] == [1, 0]
        disk.capacity = disk.used + floor
        assert commit(store, [entry("y" * 600)]).refused is Outcome.DISK_FULL
        deliver(store, 1, 2)
        committed = commit(store, [entry("z" * 400)])
        assert (committed.refused, committed.append_error) == (None, None)
        assert [item.first_seq for item in reader.read(1000) if isinstance(item, Frame)] == [2]
        disk.crash(LoseAll())
        assert numbers(Store(disk, ROOT, Limits())) == [2]

    @pytest.mark.parametrize("seed", range(10))
    def test_making_room_gives_no_number_back_and_takes_nothing_that_is_not_durably_settled(self, seed: int) -> None:
        for call in itertools.count():
            disk = FaultFilesystem()
            store = Store(disk, ROOT, Limits())
            commit(store, [entry("x" * 1000, 5)])
            deliver(store, 1, 6)
            disk.capacity = disk.used
            disk.crash_at(disk.calls + call, "after")
            try:
                commit(store, [entry("z" * 400)])
            except Crash:
                disk.crash(RandomChooser(seed))
                store = Store(disk, ROOT, Limits())
                assert store.log.view.next_seq in {6, 7}
                gaps = [item.span for item in store.reader().read(2000) if isinstance(item, Gap)]
                assert gaps in ([], [Span(6, 7)])  # the new one was not acked yet
            else:
                break
        assert call > 10

    @pytest.mark.parametrize("operation", ["open", "truncate"])
    def test_room_that_cannot_be_made_is_a_full_disk(self, disk: FaultFilesystem, operation: str) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("x" * 1000)])
        deliver(store, 1, 2)
        disk.capacity = disk.used
        disk.errors = failing(operation, errno.EIO)
        assert commit(store, [entry("z" * 400)]).refused is Outcome.DISK_FULL
        disk.errors = no_errors
        assert commit(store, [entry("z" * 400)]).refused is None
        assert disk.open_files == 2

    def test_a_floor_that_cannot_be_measured_stops_nothing(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(min_free_bytes=1000))
        disk.errors = failing("free_bytes", errno.EIO)
        assert commit(store, [entry("x")]).refused is None

    @pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_error")])
    def test_a_refusal_says_whether_the_disk_is_full_or_broken(
        self, disk: FaultFilesystem, code: int, reason: str
    ) -> None:
        store = Store(disk, ROOT, Limits())
        disk.errors = failing("create", code)
        committed = commit(store, [entry("x", 3)])
        assert (committed.refused, committed.checkpoint_error) == (reason, None)
        assert dropped(store) == {reason: 3}

    def test_without_entries_a_failing_disk_is_tried_again(self, disk: FaultFilesystem) -> None:
        """Whether events can be kept must be known before the next one comes, and a failure is no failure for ever."""
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a")])
        disk.errors = failing("sync", errno.EIO)
        assert commit(store, [entry("b")]).refused is Outcome.DISK_ERROR
        for _ in range(3):
            committed = commit(store)
            assert (committed.refused, committed.append_error is None) == (None, False)
        disk.errors = no_errors
        assert commit(store) == Committed(None, None, None)
        commit(store, [entry("c")])
        assert (numbers(store), dropped(store)) == ([1, 2], {Outcome.DISK_ERROR: 1})

    @pytest.mark.parametrize(("floor", "room"), [(1000, 900), (0, 0)])
    def test_without_entries_too_little_room_is_reported(self, disk: FaultFilesystem, floor: int, room: int) -> None:
        store = Store(disk, ROOT, Limits(min_free_bytes=floor))
        disk.capacity = disk.used + room
        committed = commit(store)
        assert committed.append_error == f"/queue: {room} bytes are free, queue.min_free_bytes is {floor}"
        assert (committed.refused, dropped(store)) == (None, {})

    def test_a_kill_does_not_forget_what_was_refused(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=200, max_bytes=300, overflow="drop-newest"))
        commit(store, [entry("x" * 200)])
        commit(store, [entry("x" * 200, 5)])
        disk.errors = failing("create", errno.EIO)
        deliver(store, 1, 2)
        commit(store, [entry("x" * 200, 2)])
        disk.errors = no_errors
        ledger = store.cursor.ledger()
        disk.kill()
        assert Store(disk, ROOT, Limits()).cursor.ledger() == ledger
        assert ledger.dropped == {Outcome.OVERFLOW: 5, Outcome.DISK_ERROR: 2}

    def test_a_kill_forgets_drops_that_no_checkpoint_could_hold(self, disk: FaultFilesystem) -> None:
        """The known limit: what was refused is nowhere but in a checkpoint, and the disk took none."""
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a")])
        disk.errors = failing("pwrite", errno.EIO)
        committed = commit(store, [entry("b", 5)])
        commit(store)
        assert (committed.refused, dropped(store)) == (Outcome.DISK_ERROR, {Outcome.DISK_ERROR: 5})
        disk.errors = no_errors
        disk.kill()
        store = Store(disk, ROOT, Limits())
        assert store.cursor.ledger() == Ledger(1, 0, 0, {}, 1)
        assert numbers(store) == [1]

    def test_what_was_refused_may_come_back_after_a_power_loss_and_then_counts_as_accepted(self) -> None:
        """The known limit: a disk that fails to sync may also fail to forget. Nothing that was accepted suffers."""
        found = set()
        for seed in range(40):
            disk = FaultFilesystem()
            store = Store(disk, ROOT, Limits())
            commit(store, [entry("a")])
            disk.errors, disk.partial = failing("sync", errno.EIO), RandomChooser(seed)
            assert commit(store, [entry("b", 5)]).refused is Outcome.DISK_ERROR
            disk.errors = no_errors
            disk.crash(RandomChooser(seed))
            store = Store(disk, ROOT, Limits())
            found.add(tuple(numbers(store)))
            ledger = store.cursor.ledger()
            assert ledger.accepted == ledger.queued + sum(ledger.dropped.values())
        assert found == {(1,), (1, 2)}

    def test_segments_are_deleted_on_a_full_disk(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        commit(store, [entry("x" * 500)])
        commit(store, [entry("x")])
        deliver(store, 1, 2)
        disk.capacity = disk.used
        assert commit(store, [entry("y" * 100)]).refused is None
        assert numbers(store) == [2, 3]


class TestCheckpoints:
    def test_a_refreshed_cursor_is_durable_in_both_slots(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a")])
        store.sync()
        disk.flip(ROOT / "cursor", SLOT_BYTES + 30, 1)
        disk.flip(ROOT / "cursor", 30, 1)
        store.refresh()
        disk.crash(LoseAll())
        found = [decode_slot(slot) for slot in read_slots(disk, ROOT / "cursor")]
        assert [each.state.next_seq for each in found if each is not None] == [2, 2]

    def test_the_cursor_is_durable_before_a_segment_goes(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        commit(store, [entry("a")])
        commit(store, [entry("b")])
        deliver(store, 1, 2)
        before = disk.calls
        commit(store)
        calls = [(call.operation, call.path.name) for call in disk.log[before:] if call.operation != "has_name"]
        assert calls == [
            ("pwrite", "cursor"),
            ("sync", "cursor"),
            ("unlink", "00000000000000000001.seg"),
            ("sync_directory", "segments"),
            ("free_bytes", "queue"),
        ]

    @pytest.mark.parametrize("operation", ["pwrite", "sync"])
    def test_no_segment_goes_while_the_cursor_cannot_be_made_durable(
        self, disk: FaultFilesystem, operation: str
    ) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        commit(store, [entry("a")])
        commit(store, [entry("b")])
        deliver(store, 1, 2)
        disk.errors = failing(operation, errno.EIO, ROOT / "cursor")
        committed = commit(store)
        assert "the cursor cannot be kept" in f"{committed.checkpoint_error} {committed.delete_error}"
        assert len(disk.names(ROOT / "segments")) == 2
        disk.errors = no_errors
        committed = commit(store)
        assert (committed.checkpoint_error, committed.delete_error) == (None, None)
        assert len(disk.names(ROOT / "segments")) == 1

    def test_events_are_kept_while_the_cursor_cannot_be_written(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        disk.errors = failing("pwrite", errno.EIO, ROOT / "cursor")
        committed = commit(store, [entry("a")])
        assert committed.refused is None
        assert committed.checkpoint_error is not None
        disk.crash(LoseAll())
        assert numbers(Store(disk, ROOT, Limits())) == [1]

    def test_closing_makes_everything_durable(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(sync="off"))
        commit(store, [entry("a", 5)])
        deliver(store, 1, 4)
        ledger = store.cursor.ledger()
        store.close()
        assert disk.open_files == 0
        disk.crash(LoseAll())
        store = Store(disk, ROOT, Limits())
        assert (store.cursor.ledger(), store.cursor.position) == (ledger, 4)

    @pytest.mark.parametrize("action", [Store.sync, Store.close])
    @pytest.mark.parametrize("call", range(2))
    def test_the_cursor_never_knows_of_events_that_a_power_loss_takes_from_the_log(
        self, disk: FaultFilesystem, action: Callable[[Store], None], call: int
    ) -> None:
        store = Store(disk, ROOT, Limits(sync="off"))
        commit(store, [entry("a", 5)])
        disk.crash_at(disk.calls + call, "after")
        with pytest.raises(Crash):
            action(store)
        disk.crash(LoseAll())
        reader = Store(disk, ROOT, Limits()).reader()
        assert not any(isinstance(item, Gap) for item in reader.read(1000))

    @pytest.mark.parametrize("path", [ROOT / "cursor", ROOT / "segments" / "00000000000000000001.seg"])
    def test_closing_reports_what_it_could_not_make_durable(self, disk: FaultFilesystem, path: Path) -> None:
        store = Store(disk, ROOT, Limits(sync="off"))
        commit(store, [entry("a")])
        disk.errors = failing("sync", errno.EIO, path)
        with pytest.raises(StorageError):
            store.close()
        assert disk.open_files == 0

    @pytest.mark.parametrize("operation", ["make_directory", "create", "names"])
    def test_a_queue_that_cannot_be_opened_leaves_nothing_open(self, disk: FaultFilesystem, operation: str) -> None:
        disk.errors = failing(operation, errno.EACCES)
        with pytest.raises(StorageError, match="/queue"):
            Store(disk, ROOT, Limits())
        assert disk.open_files == 0

    def test_a_pause_and_its_end_survive_a_power_cut(self, disk: FaultFilesystem) -> None:
        for pause in (PAUSE, None):
            store = Store(disk, ROOT, Limits())
            store.cursor.pause = pause
            assert commit(store).checkpoint_error is None
            disk.crash(LoseAll())
            assert Store(disk, ROOT, Limits()).cursor.pause == pause
            disk.kill()

    def test_a_pause_that_could_not_be_made_durable_is_tried_again(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        store.cursor.pause = PAUSE
        disk.errors = failing("sync", errno.EIO, ROOT / "cursor")
        assert commit(store).checkpoint_error is not None
        disk.errors = no_errors
        assert commit(store).checkpoint_error is None
        disk.crash(LoseAll())
        assert Store(disk, ROOT, Limits()).cursor.pause == PAUSE


class TestSyncModes:
    def test_off_survives_a_kill(self, disk: FaultFilesystem) -> None:
        commit(Store(disk, ROOT, Limits(sync="off")), [entry("a")])
        disk.kill()
        assert numbers(Store(disk, ROOT, Limits())) == [1]

    def test_off_syncs_nothing_by_itself(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(sync="off"))
        commit(store, [entry("a")])
        before = disk.calls
        commit(store, [entry("b")])
        assert [call.operation for call in disk.log[before:]] == [
            "free_bytes",
            "has_name",
            "pwrite",
            "has_name",
            "pwrite",
        ]

    def test_interval_keeps_what_was_there_at_the_last_sync(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(sync="interval"))
        commit(store, [entry("a")])
        deliver(store, 1, 2)
        commit(store, [entry("b")])
        store.sync()
        commit(store, [entry("c")])
        disk.crash(LoseAll())
        store = Store(disk, ROOT, Limits())
        assert numbers(store) == [2]
        assert store.cursor.ledger().delivered == 1

    def test_what_a_power_loss_took_from_a_lazy_queue_is_accounted_for(self, disk: FaultFilesystem) -> None:
        """The cursor may reach the disk and the events may not."""
        store = Store(disk, ROOT, Limits(sync="off"))
        commit(store, [entry("a", 3)])
        commit(store)
        disk.errors = failing("sync", errno.EIO, store.log.path(1))
        with pytest.raises(StorageError):
            store.close()
        disk.errors = no_errors
        disk.crash(LoseAll())
        store = Store(disk, ROOT, Limits())
        assert store.cursor.next_seq == 4
        assert store.reader().read(100) == [Gap(Span(1, 4))]
        assert commit(store, [entry("b")]).refused is None
        assert store.log.view.segments[-1].first_seq == 4

    def test_a_failed_interval_sync_is_reported(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(sync="interval"))
        commit(store, [entry("a")])
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(StorageError):
            store.sync()

    def test_a_commit_during_a_sync_is_not_taken_for_durable(self) -> None:
        """Else the next checkpoint would overwrite the only durable one."""
        disk = SlowToReturn()
        store = Store(disk, ROOT, Limits(sync="interval"))
        commit(store, [entry("a", 9)])
        deliver(store, 1, 5)
        commit(store)
        disk.slow = True
        syncing = threading.Thread(target=store.sync)
        syncing.start()
        assert disk.synced.wait(10)
        deliver(store, 5, 7)
        committing = threading.Thread(target=commit, args=(store,))
        committing.start()
        committing.join(0.1)  # time enough to do it wrong
        disk.go_on.set()
        syncing.join()
        committing.join()
        deliver(store, 7, 9)
        disk.crash_at(disk.calls, "after")
        with pytest.raises(Crash):
            commit(store)
        disk.crash(Torn())
        assert Store(disk, ROOT, Limits()).cursor.ledger().delivered == 4

    def test_commits_and_syncs_may_come_from_different_threads(self, tmp_path: Path) -> None:
        store = Store(OsFilesystem(), tmp_path, Limits(sync="interval", segment_bytes=2000))
        done = threading.Event()
        errors: list[StorageError] = []

        def keep_syncing() -> None:
            while not done.is_set():
                try:
                    store.sync()
                except StorageError as error:
                    errors.append(error)

        thread = threading.Thread(target=keep_syncing)
        thread.start()
        refused = [commit(store, [entry("x" * 200)]).refused for _ in range(300)]
        done.set()
        thread.join()
        store.close()
        assert (errors, set(refused)) == ([], {None})
        assert numbers(Store(OsFilesystem(), tmp_path, Limits())) == list(range(1, 301))


class TestRecovery:
    def test_a_lost_cursor_repeats_what_is_there(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            commit(store, [entry("a", 2)])
        deliver(store, 1, 4)
        commit(store)
        disk.unlink(ROOT / "cursor")
        store = Store(disk, ROOT, Limits())
        assert (store.cursor.position, numbers(store)) == (3, [3, 5])
        assert store.cursor.ledger().accepted == 4

    def test_deleted_segments_do_not_bring_numbers_back(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a", 5)])
        store.close()
        disk.unlink(ROOT / "segments" / "00000000000000000001.seg")
        store = Store(disk, ROOT, Limits())
        assert store.cursor.next_seq == 6
        assert store.reader().read(100) == [Gap(Span(1, 6))]

    def test_numbers_are_not_given_again_when_the_last_segment_cannot_be_read_after_a_kill(
        self, disk: FaultFilesystem
    ) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a", 50)])
        disk.kill()
        disk.errors = failing("open", errno.EACCES, ROOT / "segments" / "00000000000000000001.seg")
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("b", 10)])
        assert (store.cursor.next_seq, store.cursor.ledger().accepted) == (61, 60)
        disk.errors = no_errors
        assert numbers(Store(disk, ROOT, Limits())) == [1, 51]

    def test_a_delivered_queue_remembers_its_numbers_without_a_cursor(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            commit(store, [entry("a")])
        deliver(store, 1, 4)
        commit(store)
        disk.unlink(ROOT / "cursor")
        assert Store(disk, ROOT, Limits()).cursor.next_seq == 4

    def test_deletions_that_were_undone_are_done_again(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            commit(store, [entry("a")])
        deliver(store, 1, 3)
        disk.errors = failing("sync_directory", errno.EIO)
        assert commit(store).delete_error is not None
        disk.crash(LoseAll())
        disk.errors = no_errors
        assert len(disk.names(ROOT / "segments")) == 3
        store = Store(disk, ROOT, Limits())
        assert numbers(store) == [3]
        commit(store)
        assert len(disk.names(ROOT / "segments")) == 1


class TestOldest:
    def test_the_oldest_queued_event_tells_its_age(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        assert store.oldest_enqueued_at() is None
        commit(store, [Entry(1, encode_record(Record(12.5, Context(), encode_events([EVENT]))))])
        commit(store, [Entry(2, encode_record(Record(13.5, Context(), encode_events([EVENT, EVENT]))))])
        assert store.oldest_enqueued_at() == 12.5
        deliver(store, 1, 3)
        assert store.oldest_enqueued_at() == 13.5
        deliver(store, 3, 4)
        assert store.oldest_enqueued_at() is None

    @pytest.mark.parametrize("payload", [b"", b"\x93", b"\xa2\xff\xff", b"\x93\x01\x92\xa1\xff\x00\xc4\x00"])
    def test_a_record_that_cannot_be_decoded_has_no_age(self, disk: FaultFilesystem, payload: bytes) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [Entry(1, payload)])
        assert store.oldest_enqueued_at() is None

    def test_an_unreadable_queue_has_no_age(self, disk: FaultFilesystem) -> None:
        store = Store(disk, ROOT, Limits())
        commit(store, [entry("a")])
        store.log.seal()
        files = disk.open_files
        disk.errors = failing("pread", errno.EIO)
        assert store.oldest_enqueued_at() is None
        assert disk.open_files == files


def test_everything_is_there_after_a_crash_that_kept_everything(disk: FaultFilesystem) -> None:
    store = Store(disk, ROOT, Limits())
    commit(store, [entry("a")])
    disk.crash(KeepAll())
    assert numbers(Store(disk, ROOT, Limits())) == [1]
