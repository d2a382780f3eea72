"""What can befall the daemon: each fault is done to a `World` whose daemon is up, and leaves one whose daemon is up.

It knows the order of things in each fault. It must never know what the daemon makes of it, beyond being up.
"""

import resource
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from tests.soak.disk import LoopDisk, SmallDisk
from tests.soak.world import MAX_EVENTS, START_SECONDS, STORAGE_ERROR, World

Fault = Callable[[World], None]
DAY = 86400.0
KILL_EVERY = 5.0  # seconds, at least
# Two of them together stay below queue.max_age: no event is ever too old.
MOST_SKEW = 3 * DAY
# Those of `tests.neighbours` that send no valid event: whatever the server takes is a client's.
ATTACKS = [
    "pipeline-without-a-token",
    "rubbish-datagrams",
    "datagrams-like-events",
    "rubbish-streams",
    "rubbish-like-events",
    "short-connections-with-rubbish",
    "held-connections",
    "held-connections-of-many-processes",
    "short-connections-without-a-token",
    "drip-bodies-without-a-token",
    "drip-bodies",
    "drip-heads",
    "drip-chunks",
    "one-byte-chunks",
]


def kill_at_work(world: World) -> None:
    """At any moment, most of them busy."""
    world.kill("at work")
    world.start()


def kill_at_start_up(world: World) -> None:
    """Once or twice amidst its start, after a kill."""
    world.kill("at work")
    for _ in range(world.random.randint(1, 2)):
        world.daemon.launch()
        world.idle(0.0, 0.8)
        world.kill("starting")
    world.start()


def kill_at_drain(world: World) -> None:
    """After SIGTERM."""
    world.signal(signal.SIGTERM)
    if world.daemon.ended_within(world.random.uniform(0.0, 0.3)):
        world.ended(world.daemon.wait())
    else:
        world.kill("draining")
    world.start()


def restart(world: World) -> None:
    """An orderly one."""
    world.terminate()
    world.start()


def stop_and_continue(world: World) -> None:
    """Sometimes so long that answers come too late for it; sometimes it is killed before it goes on."""
    world.signal(signal.SIGSTOP)
    world.idle(0.1, 3.0)
    if world.chance(0.3):
        world.kill("stopped")
        world.start()
    else:
        world.signal(signal.SIGCONT)


def reload(world: World) -> None:
    """Several in a row, with smaller batches or larger ones; sometimes a wrong configuration, which must change nothing."""
    for _ in range(world.random.randint(1, 3)):
        world.configure(world.random.choice([10, MAX_EVENTS // 2, MAX_EVENTS]))
        if world.chance(0.2):
            world.daemon.config.write_text("[api\n")
        world.signal(signal.SIGHUP)
        world.idle(0.0, 0.2)
    world.configure()


def pause_and_resume(world: World) -> None:
    """The pause survives a kill."""
    world.control("pause")
    world.idle(0.1, 2.0)
    if world.chance(0.5):
        world.kill("paused")
        world.start()
    world.control("resume")


def fill_the_disk(world: World) -> None:
    """No byte is left; then a kill or a stop or nothing; then there is room again."""
    disk = _disk(world, SmallDisk)
    disk.fill()
    world.note("the disk is full")
    world.idle(0.2, 2.0)
    if world.chance(0.6):
        if world.chance(0.7):
            world.kill("disk full")
        else:
            world.terminate(STORAGE_ERROR)
        world.start()
        world.idle(0.1, 1.0)
    disk.free()
    world.note("the disk has room again")


def limit_the_file_size(world: World) -> None:
    """As RLIMIT_FSIZE does it: writes fail with EFBIG, the log's as well."""
    world.limit_file_size(world.random.choice([0, 4096, 20_000]))
    world.idle(0.2, 1.5)
    if world.chance(0.5):
        world.kill("file size limited")
        world.start()
    else:
        world.limit_file_size(resource.RLIM_INFINITY)


def lose_the_disk(world: World) -> None:
    """The file system goes read-only under the daemon and forgets what was not synced; sometimes it is started on that."""
    disk = _disk(world, LoopDisk)
    with world.standing_still():
        disk.fail()
    world.note("the file system has failed: read-only")
    world.idle(0.2, 2.0)
    if world.chance(0.7):
        world.kill("disk failed")
    else:
        world.terminate(STORAGE_ERROR)
    if world.chance(0.5):
        world.refuse_to_start()
    disk.mend()
    world.note("the file system was mounted anew")
    world.start()


def start_on_a_read_only_disk(world: World) -> None:
    """It has to refuse, and to start when that is over."""
    disk = _disk(world, SmallDisk)
    world.kill("at work")
    disk.set_read_only(True)
    world.note("the file system is read-only")
    world.refuse_to_start()
    disk.set_read_only(False)
    world.note("the file system can be written again")
    world.start()


def freeze_the_disk(world: World) -> None:
    """Writes and syncs hang, sometimes when it is to end. No kill amidst that: the kernel would not let it die."""
    disk, terminated = _disk(world, LoopDisk), world.chance(0.3)
    with disk.frozen():
        world.note("the file system hangs")
        world.idle(0.2, 3.0)
        if terminated:
            world.signal(signal.SIGTERM)
            world.daemon.ended_within(world.random.uniform(0.0, 3.0))
    world.note("the file system goes on")
    if terminated:
        world.ended(world.daemon.wait(START_SECONDS))
        world.start()


def jump_in_time(world: World) -> None:
    """The daemon's wall clock, forwards or backwards by up to six days."""
    offset = world.random.uniform(-MOST_SKEW, MOST_SKEW)
    world.clock.set(offset)
    world.note(f"the clock is off by {offset / DAY:+.2f} days")


def hostile_neighbours(world: World) -> None:
    """One or two; sometimes it ends amidst that, and has to start under attack."""
    with world.under_attack(*world.random.sample(ATTACKS, world.random.randint(1, 2))):
        world.idle(1.0, 4.0)
        if world.chance(0.4):
            world.kill("under attack")
            world.start()
            world.idle(0.5, 2.0)
        elif world.chance(0.3):
            world.terminate()
            world.start()


def change_destinations(world: World) -> None:
    """Some are removed, brought back or renamed, by a few reloads; each is waited for."""
    for _ in range(world.random.randint(1, 3)):
        world.note(world.destinations.change(world.random))
        world.configure()
        world.reload()
        world.idle(0.0, 0.5)


def storm_of_reloads(world: World) -> None:
    """Many changes at once, by SIGHUP and by request; mostly it is killed amidst that."""
    last = world.random.randint(5, 30)
    kill_at = world.random.randint(0, last) if world.chance(0.7) else None
    for number in range(last + 1):
        world.note(world.destinations.change(world.random))
        world.configure()
        if world.chance(0.3):
            world.control("reload")
        else:
            world.signal(signal.SIGHUP)
        world.idle(0.0, world.random.choice([0.0, 0.02, 0.1]))
        if number == kill_at:
            world.kill("amid reloads")
            world.start()
    world.reload()


def damage_a_directory(world: World) -> None:
    """What is in the place of a destination's directory is none, at a start, while the others go on; then it is mended."""
    world.reload()
    name = world.random.choice(sorted(world.destinations.names) or [""])
    if not name:
        return
    world.kill("at work")
    place = world.directory_of(name)
    away = world.disk.path / "away"
    place.rename(away)
    place.write_text("in the way")
    world.note(f"the directory of {name} is damaged")
    world.start(failing=[name])
    world.idle(0.2, 1.0)
    place.unlink()
    away.rename(place)
    world.note(f"the directory of {name} is mended")
    world.reload()


# How often each comes, and the disk that it takes.
TABLE: Mapping[Fault, int] = {
    kill_at_work: 34,
    kill_at_start_up: 10,
    kill_at_drain: 10,
    restart: 5,
    stop_and_continue: 5,
    reload: 5,
    pause_and_resume: 5,
    fill_the_disk: 7,
    limit_the_file_size: 4,
    lose_the_disk: 4,
    start_on_a_read_only_disk: 2,
    freeze_the_disk: 3,
    jump_in_time: 6,
    hostile_neighbours: 12,
    change_destinations: 10,
    storm_of_reloads: 10,
    damage_a_directory: 4,
}
_OF_DESTINATIONS = {change_destinations, storm_of_reloads, damage_a_directory}
_NEEDS: Mapping[Fault, type[SmallDisk]] = {
    fill_the_disk: SmallDisk,
    start_on_a_read_only_disk: SmallDisk,
    lose_the_disk: LoopDisk,
    freeze_the_disk: LoopDisk,
}


def name_of(fault: Fault) -> str:
    """Return what a fault is called in the summary."""
    return getattr(fault, "__name__", "fault").replace("_", " ")


def skipped(world: World) -> list[str]:
    """Name the faults that this world's disk does not allow."""
    return [name_of(fault) for fault, disk in _NEEDS.items() if not isinstance(world.disk, disk)]


def deck(world: World, only: Collection[str] = ()) -> Iterator[Fault]:
    """Yield faults for ever, each as often as the table says, in random order, after one of each; `only` names some.

    Where the machine is slow, kills come in between, so that a soak of a given time always has many.
    """
    possible = [fault for fault in TABLE if isinstance(world.disk, _NEEDS.get(fault, object))]
    possible = [fault for fault in possible if world.destinations.accounts or fault not in _OF_DESTINATIONS]
    possible = [fault for fault in possible if name_of(fault) in (only or map(name_of, possible))]
    yield from world.random.sample(possible, len(possible))
    cards = [fault for fault in possible for _ in range(TABLE[fault])]
    while True:
        for fault in world.random.sample(cards, len(cards)):
            while kill_at_work in possible and world.seconds > KILL_EVERY * world.happened.kills.total():
                yield kill_at_work
            yield fault


D = TypeVar("D", bound=SmallDisk)


def _disk(world: World, kind: type[D]) -> D:
    assert isinstance(world.disk, kind), f"{world.disk.name} cannot do that"
    return world.disk
