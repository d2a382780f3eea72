"""Every fuzz target's contract, for its seeds, for mutations of them and for any bytes."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXAMPLES = {"answer": 40, "control": 40, "http": 40, "queue": 60, "events": 80, "scan": 80}
"""Those that are slow get fewer than the others; `python -m tests.fuzz` gives each of them a minute."""

Edit = Callable[[bytes], bytes]
TELLING = [
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\xef\xbb\xbf",
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"1e999",
    b"9" * 400,
    b"-0",
    b"[" * 200,
    b'{"a":' * 200,
    b"\xa4\xec\xe5R",
    b"\xa4\xec\xe5R\xff\xff\x3f\0" * 4,
    b"%TOKEN%",
    b"\xff\x00\xff",
    b"\x1b[2J",
    b"\xe2\x80\xae",
]
snippets = st.binary(max_size=20) | st.sampled_from(TELLING)
places = st.floats(0, 1, exclude_max=True)


def at(data: bytes, place: float) -> int:
    """Where a place is in this data."""
    return int(place * (len(data) + 1))


def insert(place: float, snippet: bytes) -> Edit:
    """Insert bytes."""
    return lambda data: data[: at(data, place)] + snippet + data[at(data, place) :]


def overwrite(place: float, snippet: bytes) -> Edit:
    """Overwrite bytes."""
    return lambda data: data[: at(data, place)] + snippet + data[at(data, place) + len(snippet) :]


def flip(place: float, bit: int) -> Edit:
    """Flip a bit."""
    return lambda data: (
        data[: at(data, place)] + bytes(b ^ 1 << bit for b in data[at(data, place) :][:1]) + rest(data, place)
    )


def rest(data: bytes, place: float) -> bytes:
    """What follows the byte at a place."""
    return data[at(data, place) + 1 :]


def cut(one: float, other: float) -> Edit:
    """Remove a stretch."""
    start, end = sorted([one, other])
    return lambda data: data[: at(data, start)] + data[at(data, end) :]


def repeat(one: float, other: float, times: int) -> Edit:
    """Repeat a stretch."""
    start, end = sorted([one, other])
    return lambda data: data[: at(data, start)] + data[at(data, start) : at(data, end)] * times + data[at(data, end) :]


edits = st.one_of(
    st.builds(insert, places, snippets),
    st.builds(overwrite, places, snippets),
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(cut, places, places),
    st.builds(repeat, places, places, st.integers(2, 9)),
)


@pytest.mark.parametrize("name", TARGETS)
def test_the_contract_holds_for_the_seeds(name: str) -> None:
    seeds = TARGETS[name].seeds()
    assert len({*seeds}) == len(seeds) >= 3
    for seed in seeds:
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_the_contract_holds_for_mutations_and_for_any_bytes(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=EXAMPLES.get(name, 150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(seeds) | st.binary(max_size=200), st.lists(edits, max_size=4))
    def check(seed: bytes, changes: list[Edit]) -> None:
        data = seed
        for change in changes:
            data = change(data)[: target.max_bytes]
        target.check(data)

    check()


FOUND = {
    "queue": [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x97\x01\x01\x01\x90\x80\x80\xc0\xff\x00\xff\x0c",
        b"\x07\0\0\0\0\0\0\0\x97\x01\x01\x01\x90\x80\x80\xc0\xff\x00\xff\x2a\x01\x0d\x25\0\0\0\0\0\0\0\x03\0\0\0y",
        b"\xff\x00\xff\x0c\x01\x0d\xfe\xff\xff\xff\xff\xff\xff\x7f\x01\0\0\0y",
    ],
    "frame": [b""],
    "cursor": [b"\x01\x00\x00\x00\x00\x00\x00\x00\x97B\x01\x01\x90\x80\x80\xc0"],
}
"""What `python -m tests.fuzz` has found, in short."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_not_found_again(name: str) -> None:
    for data in FOUND[name]:
        TARGETS[name].check(data)
