"""The shape of the code, for comparing trees: `python -m tests.benchmarks.shape [TREE ...]` (default: this one).

Counts without importing: lengths in lines of functions (from `def` to the last line, docstring included) and of files; private
functions and methods (one leading underscore) and how many of them are used in one place, called or handed on, resolved by name
within their file; modules that lie loose in `agent/`; public classes that share a name; lines of README.md.
"""

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def spread(name: str, lengths: Sequence[int]) -> dict[str, int]:
    """Return median, 90th percentile and maximum."""
    ordered = sorted(lengths)
    places = {"median": len(ordered) // 2, "p90": 9 * len(ordered) // 10, "max": len(ordered) - 1}
    return {f"{name} lines, {what}": ordered[place] for what, place in places.items()}


def is_private(name: str) -> bool:
    """Tell whether a name has one leading underscore."""
    return name.startswith("_") and not name.startswith("__")


def uses_of_private(module: ast.Module) -> Iterator[int]:
    """Yield for each private function or method how often its name is read in the same file."""
    nodes = list(ast.walk(module))
    used = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    used += Counter(node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    return (used[node.name] for node in nodes if isinstance(node, Function) and is_private(node.name))


def figures(tree: Path) -> dict[str, int]:
    """Return the figures of a tree that has `agent/` and README.md."""
    package = tree / "agent"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    modules = [ast.parse(text) for text in texts.values()]
    nodes = [node for module in modules for node in ast.walk(module)]
    functions = [node for node in nodes if isinstance(node, Function)]
    private = [count for module in modules for count in uses_of_private(module)]
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef) and not is_private(node.name))
    loose = [path for path in package.glob("*.py") if path.name not in {"__init__.py", "__main__.py"}]
    return {
        "files": len(texts),
        "lines": sum(text.count("\n") for text in texts.values()),
        "loose modules": len(loose),
        **spread("file", [text.count("\n") for text in texts.values() if text]),
        "functions": len(functions),
        **spread("function", [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]),
        "private functions": len(private),
        "private functions used in one place": private.count(1),
        "public classes that share a name": sum(count for count in classes.values() if count > 1),
        "README lines": (tree / "README.md").read_text(encoding="utf-8").count("\n"),
    }


def show(found: Mapping[Path, Mapping[str, int]]) -> None:
    """Print a table with a column for each tree."""
    table = Table("", *(str(tree) for tree in found), box=None)
    first, *_ = found.values()
    for row in first:
        table.add_row(row, *(f"{each[row]:,}" for each in found.values()))
    shares = [100 * each["private functions used in one place"] / each["private functions"] for each in found.values()]
    table.add_row("… of the private ones, %", *(f"{share:.0f}" for share in shares))
    Console().print(table)


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shape", description=main.__doc__)
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT], help="where agent/ and README.md are")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {tree: figures(tree) for tree in options.trees}
    if options.json:
        sys.stdout.write(json.dumps({str(tree): each for tree, each in found.items()}, indent=2) + "\n")
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
