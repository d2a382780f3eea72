"""Finds what makes the agent's files durable and whole, and writes the source as it would be without each of them.

It knows Python's syntax tree and the names of the calls that matter. It must never know tests, or where the copies are.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REMOVED = frozenset(
    {"sync", "sync_directory", "fsync", "fdatasync", "flock", "rename", "unlink", "truncate", "ftruncate"}
)
"""The methods and functions whose calls are taken away: what makes bytes or names durable, exclusive, whole or gone."""

FLAGS = frozenset({"O_EXCL", "O_NOFOLLOW"})
"""The flags that keep the agent from writing into somebody else's file."""

HANDED_OVER = frozenset({"sync", "sync_directory"})
"""The methods that may also be handed to others as a value, as for a thread to call."""

CHECKS = frozenset({"record.holds"})
"""The functions that answer whether a CRC holds, as they are called."""


class Mutation(NamedTuple):
    """A file of the agent (`path` is relative to the tree) as it would be with one mistake in it, at `line`."""

    name: str
    path: str
    line: int
    source: str


class _Found(NamedTuple):
    node: ast.expr
    replacement: str
    verb: str


def find_in_tree(root: Path) -> Iterator[Mutation]:
    """Yield every mutation that is found in the modules of the agent, in the order of their paths."""
    for file in sorted((root / "agent").rglob("*.py")):
        yield from find(file.relative_to(root).as_posix(), file.read_text())


def find(path: str, source: str) -> Iterator[Mutation]:
    """Yield every mutation that is found in one module, in the order of its lines."""
    tree = ast.parse(source)
    arguments = {each for node in ast.walk(tree) if isinstance(node, ast.Call) for each in node.args}
    places = _functions(tree)
    expressions = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
    for node in sorted(expressions, key=lambda node: (node.lineno, node.col_offset)):
        found = _judge(node, arguments)
        if found is not None:
            place = places.get(node.lineno, Path(path).stem)
            name = f"{place}: {found.verb} {ast.unparse(node)}"
            yield Mutation(name, path, node.lineno, _replaced(source, node, found.replacement))


def _judge(node: ast.expr, arguments: set[ast.expr]) -> _Found | None:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) if name in REMOVED:
            return _Found(node, "None", "without")
        case ast.Call(func=function) if ast.unparse(function) in CHECKS:
            return _Found(node, "True", "never doubts")
        case ast.Attribute(attr=name) if name in HANDED_OVER and node in arguments:
            return _Found(node, "(lambda *_: None)", "without")
        case ast.Attribute(attr=name) if name in FLAGS:
            return _Found(node, "0", "without")
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() as operator]) if _has_crc(node):
            return _Found(node, str(isinstance(operator, ast.Eq)), "never doubts")
    return None


def _has_crc(comparison: ast.Compare) -> bool:
    sides = [comparison.left, *comparison.comparators]
    return any(isinstance(side, ast.Call) and ast.unparse(side.func).endswith("crc32") for side in sides)


def _functions(tree: ast.Module) -> dict[int, str]:
    """Return for each line the function it belongs to, with its class."""
    places: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert child.end_lineno is not None
                name = f"{prefix}{child.name}"
                places.update(dict.fromkeys(range(child.lineno, child.end_lineno + 1), name))
                walk(child, f"{name}.")

    walk(tree, "")
    return places


def _replaced(source: str, node: ast.expr, replacement: str) -> str:
    """Return the source with the node's text replaced; columns count bytes."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = source.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    data = b"".join(lines)
    return (data[:start] + replacement.encode() + data[end:]).decode()
