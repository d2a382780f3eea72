"""Makes mutations out of lines: where some stand in a file, others are put."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent, indent
from typing import NamedTuple

from tests.mutations.finder import Mutation


class Order(NamedTuple):
    """One mistake: `old` are whole lines of the file at `path`, but for their common indentation; `new` takes their place."""

    name: str
    path: str
    old: str
    new: str


class StaleOrderError(Exception):
    """The agent no longer has the lines that an order is about."""


def mutations(root: Path, orders: Sequence[Order]) -> list[Mutation]:
    """Return each order as a mutation. Raises StaleOrderError."""
    return [_mutation(order, (root / order.path).read_text()) for order in orders]


def _mutation(order: Order, source: str) -> Mutation:
    lines, old = source.splitlines(), _lines(order.old)
    places = [at for at in range(len(lines)) if _lines("\n".join(lines[at : at + len(old)])) == old]
    if len(places) != 1:
        raise StaleOrderError(
            f"{order.path} has {len(places)} places with the lines of “{order.name}”:\n{dedent(order.old)}"
        )
    [at] = places
    margin = " " * min(len(line) - len(line.lstrip()) for line in lines[at : at + len(old)] if line.strip())
    new = indent("\n".join(_lines(order.new)), margin).splitlines()
    return Mutation(order.name, order.path, at + 1, "\n".join([*lines[:at], *new, *lines[at + len(old) :], ""]))


def _lines(text: str) -> list[str]:
    return dedent(text).strip("\n").splitlines()
