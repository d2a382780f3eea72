"""What the agent's source code says, for those who hold documents against it: log events, metrics, requests."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.support.documents import ROOT

_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
_METRICS = {
    "CounterMetricFamily": "_total",
    "_counter": "_total",
    "GaugeMetricFamily": "",
    "_gauge": "",
    "_histogram": "",
    "InfoMetricFamily": "_info",
}


class _Wrapper(NamedTuple):
    """A function that logs what it is given: its name, which of its arguments is the event, and the level."""

    name: str
    position: int
    level: str


@cache
def trees(under: str = "agent") -> dict[Path, ast.Module]:
    """Return the parsed modules below a directory of the project."""
    return {path: ast.parse(path.read_bytes()) for path in sorted((ROOT / under).rglob("*.py"))}


@cache
def logged_events() -> dict[str, set[str]]:
    """Return the events that the agent logs, with their levels. Raises ValueError for one that cannot be told."""
    found = defaultdict[str, set[str]](set)
    for path, tree in trees().items():
        wrappers = set[_Wrapper]()
        for function in _functions(tree):
            for level, event in _log_calls(function):
                match event:
                    case ast.Constant(value=str(name)):
                        found[name].add(level)
                    case ast.Name(id=name) if name in (names := [each.arg for each in function.args.args]):
                        wrappers.add(_Wrapper(function.name, names.index(name) - (names[0] == "self"), level))
                    case _:
                        raise ValueError(f"{path}, line {event.lineno}: which event is logged here?")
        for wrapper in wrappers:
            for where in [tree] if wrapper.name.startswith("_") else trees().values():
                for name in _given_to(where, wrapper):
                    found[name].add(wrapper.level)
    return dict(found)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _log_calls(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield level and event of each call to a logger, or to a method of one that has a name of its own."""
    aliases = defaultdict[str, set[str]](set)
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == "log":
                aliases[name] |= {each.attr for each in ast.walk(value) if isinstance(each, ast.Attribute)} & {*_LEVELS}
            case _:
                pass
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=logger, attr=level), args=[event, *_]) if level in _LEVELS:
                if re.search(r"(?:\blog|_log|get_logger\(.*\))$", ast.unparse(logger)):
                    yield _LEVELS[level], event
            case ast.Call(func=ast.Name(id=name), args=[event, *_]) if name in aliases:
                yield from ((_LEVELS[level], event) for level in aliases[name])
            case _:
                pass


def _given_to(tree: ast.Module, wrapper: _Wrapper) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args) if name == wrapper.name:
                match args[wrapper.position]:
                    case ast.Constant(value=str(event)):
                        yield event
                    case other:
                        raise ValueError(f"line {other.lineno}: which event is given to {name} here?")
            case _:
                pass


def metric_names(file: str = "agent/control/metrics.py") -> list[str]:
    """Return the names of the metrics that a module has, as Prometheus shows them."""
    module = ast.parse((ROOT / file).read_bytes())
    calls = (node for node in ast.walk(module) if isinstance(node, ast.Call) and node.args)
    return [
        f"artifacts_agent_{name.removeprefix('artifacts_agent_')}{_METRICS[call.func.id]}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in _METRICS
        for name in _strings(call.args[0])
    ]


def _strings(node: ast.expr) -> list[str]:
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def control_requests() -> set[str]:
    """Return what the control socket can be asked, as `METHOD /path`: the first two values of each route."""
    modules = (tree for path, tree in trees("agent/control").items() if "client" not in path.name)
    nodes = (node for tree in modules for node in ast.walk(tree))
    values = (
        node.elts if isinstance(node, ast.Tuple) else node.args
        for node in nodes
        if isinstance(node, ast.Tuple | ast.Call)
    )
    pairs = (_strings(ast.Tuple(found[:2], ast.Load())) for found in values)
    return {" ".join(pair) for pair in pairs if len(pair) == 2 and pair[0] in {"GET", "POST"}}
