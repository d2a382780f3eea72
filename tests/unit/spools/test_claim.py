"""Whoever can make a spool can make links: where one is, nothing is moved, written or removed behind it."""

from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.filesystem import OsFilesystem
from agent.queue.history import DIRECTORY, SEGMENTS, Heir
from agent.queue.lock import LOCK
from agent.spools import identity as spool
from agent.spools.claim import Adopter, Claim, NotOursError
from agent.spools.identity import DESTINATION, DESTINATIONS, EMPTY_LEDGER, Account, Settled

FS = OsFilesystem()
ACCOUNT = Account("https://api.example")
OWN = [segment.name(1), segment.name(1000)]
MARK = Settled("other", "me", EMPTY_LEDGER)


class Scene:
    """An agent with a queue of its own, and a place where others leave spools."""

    def __init__(self, root: Path) -> None:
        self.parent, home = root / "spools", root / "home"
        self.live = home / DESTINATION / SEGMENTS
        self.live.mkdir(parents=True)
        for name in OWN:
            (self.live / name).write_bytes(bytes(8192))
        spool.identify(FS, home, ACCOUNT, "me")
        self.adopter = Adopter(FS, home, self.parent)
        self.heir = Heir(home / DESTINATION, 1 << 30, 1e9)

    def spool(self, name: str) -> Path:
        directory = self.parent / name
        (directory / DESTINATION).mkdir(parents=True)
        (directory / LOCK).touch()
        spool.identify(FS, directory, ACCOUNT, "other")
        return directory

    def claim(self, directory: Path) -> Claim:
        claim = self.adopter.claim(directory, {ACCOUNT}, {ACCOUNT, None})
        assert claim is not None
        return claim

    def settle(self, claim: Claim) -> str | None:
        return self.adopter.settle(claim, MARK, lambda _account: self.heir, 1.0)

    def assert_untouched(self) -> None:
        assert FS.names(self.live) == OWN
        assert FS.names(self.live.parent) == [SEGMENTS]
        assert FS.names(self.live.parents[1]) == [DESTINATION, "identity.json"]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("place", [SEGMENTS, DIRECTORY])
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_spool_with_a_link_to_the_agents_own_queue_is_not_claimed(scene: Scene, place: str, is_marked: bool) -> None:
    directory = scene.spool("job")
    (directory / DESTINATION / place).symlink_to(scene.live)
    if is_marked:
        spool.settle(FS, directory, MARK)
    with pytest.raises(NotOursError, match=f"{DESTINATION}/{place} is no directory"):
        scene.adopter.claim(directory, {ACCOUNT}, {ACCOUNT, None})
    scene.assert_untouched()


@pytest.mark.parametrize("place", [f"{DESTINATION}/{SEGMENTS}", f"{DESTINATION}/{DIRECTORY}"])
def test_a_link_that_comes_while_a_spool_is_delivered_moves_nothing(scene: Scene, place: str) -> None:
    directory = scene.spool("job")
    claim = scene.claim(directory)
    (directory / place).symlink_to(scene.live)
    with pytest.raises(StorageError, match=f"{place} is no directory"):
        scene.settle(claim)
    assert not (directory / "settled.json").exists()
    scene.assert_untouched()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_neither_does_a_link_in_place_of_any_directory_on_the_way(scene: Scene, level: int) -> None:
    """Of the queue, the further destination, the directory that has it, and the spool."""
    scene.spool("job")
    inner = scene.spool(f"job/{DESTINATIONS}/web")
    claim = scene.claim(inner)
    path, home = inner / DESTINATION, scene.live.parent
    for _ in range(level):
        path, home = path.parent, home.parent
    path.rename(scene.parent / "moved")
    path.symlink_to(home if level < 2 else scene.parent / "moved")
    with pytest.raises(StorageError, match=f"{path} is no directory"):
        scene.settle(claim)
    scene.assert_untouched()


def test_the_place_of_spools_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spools").symlink_to("elsewhere")
    scene = Scene(tmp_path)
    directory = scene.spool("job")
    assert scene.settle(scene.claim(directory)) is None
    assert not directory.exists()


def test_a_history_is_not_handed_over_through_a_link(scene: Scene, tmp_path: Path) -> None:
    heir = Heir(tmp_path / "heir", 1 << 30, 1e9)
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / DIRECTORY).symlink_to(scene.live)
    (tmp_path / "linked").symlink_to(scene.live.parent)
    for name in ("queue", "linked"):
        heir.inherit(FS, "other", tmp_path / name, 1.0, removed=True)
    scene.assert_untouched()
    assert not (tmp_path / "heir").exists()
