"""The mutation script finds every place that matters, and its table fits the agent's source."""

import re
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from tests.mutations.accounts import ACCOUNTS
from tests.mutations.finder import Mutation, find, find_in_tree
from tests.mutations.fleets import FLEETS
from tests.mutations.orders import EXCEPTIONS, ORDERS
from tests.mutations.rewriting import Order, StaleOrderError, mutations
from tests.mutations.trial import TESTS, likely_tests

ROOT = Path(__file__).parents[3]


def found(source: str) -> list[tuple[int, str]]:
    """Return the line and the text of the mutated lines."""
    source = dedent(source)
    before = source.splitlines()
    return [
        (mutation.line, mutation.source.splitlines()[mutation.line - 1].strip())
        for mutation in find("agent/module.py", source)
        if mutation.source.splitlines() != before
    ]


@pytest.mark.parametrize(
    ("line", "mutated"),
    [
        ("file.sync()", "None"),
        ("self._fs.sync_directory(path)", "None"),
        ("os.fsync(fd)", "None"),
        ("x = fcntl.flock(fd, fcntl.LOCK_EX)", "x = None"),
        ("run(Writer.sync)", "run((lambda *_: None))"),
        ("fd = os.open(path, os.O_CREAT | os.O_EXCL)", "fd = os.open(path, os.O_CREAT | 0)"),
        ("if zlib.crc32(body) != crc:  # é", "if False:  # é"),
        ("é = crc == zlib.crc32(body)", "é = True"),
        ("if record.holds(tail, 1, 2):", "if True:"),
    ],
)
def test_each_kind_is_found_and_made_harmless(line: str, mutated: str) -> None:
    end = "\n    pass" if line.startswith("if") else ""
    assert found(line + end) == [(1, mutated)]


@pytest.mark.parametrize(
    "line", ["limits.sync == 'commit'", "Limits(sync=queue.sync)", "crc = zlib.crc32(data)", "x == y"]
)
def test_what_only_looks_alike_is_left_alone(line: str) -> None:
    assert found(line) == []


def test_a_mutation_names_the_function_and_the_call() -> None:
    source = "class Log:\n    def append(self):\n        self.file.sync()\n"
    [mutation] = find("agent/queue/log.py", source)
    assert (mutation.name, mutation.line) == ("Log.append: without self.file.sync()", 3)


@pytest.mark.parametrize(
    ("pattern", "verb"),
    [
        (r"\.(?:sync|sync_directory|fsync|fdatasync)\(", "without"),
        (r"crc32\(.*\) [!=]= |[!=]= zlib\.crc32\(|record\.holds\(", "never doubts"),
    ],
)
def test_as_many_are_found_in_the_queue_as_a_search_for_words_finds(pattern: str, verb: str) -> None:
    places = Counter(
        f"{file.relative_to(ROOT)}:{number}"
        for file in (ROOT / "agent" / "queue").glob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line) and not line.strip().startswith(("#", "def "))
    )
    assert places
    mutated = {
        f"{mutation.path}:{mutation.line}"
        for mutation in find_in_tree(ROOT)
        if verb in mutation.name and re.search(pattern, _line(mutation))
    }
    assert places.keys() <= mutated


def test_every_order_is_in_the_source_and_every_mutation_compiles() -> None:
    every = [*find_in_tree(ROOT), *mutations(ROOT, (*ORDERS, *ACCOUNTS, *FLEETS))]
    assert len(every) > 70
    for mutation in every:
        compile(mutation.source, mutation.path, "exec")
        assert mutation.source != (ROOT / mutation.path).read_text()


def test_an_order_whose_lines_have_changed_is_an_error() -> None:
    with pytest.raises(StaleOrderError, match="0 places with the lines of “lost”"):
        mutations(ROOT, [Order("lost", "agent/queue/log.py", "what nobody wrote", "")])


def test_every_test_file_that_is_named_exists_and_every_exception_is_a_mutation() -> None:
    every = [*find_in_tree(ROOT), *mutations(ROOT, (*ORDERS, *ACCOUNTS, *FLEETS))]
    named = {test for mutation in every for test in likely_tests(mutation.path)} | set(TESTS)
    assert [test for test in sorted(named) if not (ROOT / test).exists()] == []
    assert EXCEPTIONS.keys() <= {mutation.name for mutation in every}


def _line(mutation: Mutation) -> str:
    return (ROOT / mutation.path).read_text().splitlines()[mutation.line - 1]
