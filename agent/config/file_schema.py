"""The JSON Schema of the configuration file, for editors: what `validation` checks, as it is written in TOML.

It is pydantic's schema of the dataclasses, so that a new key is in it. It lets pass what `load` accepts, but for numbers and
booleans in quotes, as variables have them. It does not see how keys go together, nor how large a size in quotes is.
"""

from collections.abc import Mapping
from typing import Any, Final

from agent.config.validation import DURATION_PATTERN, MODE_PATTERN, SIZE_PATTERN, json_schema

DIALECT: Final = "http://json-schema.org/draft-07/schema#"  # the newest that editors of TOML know
_BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_DROPPED: Final = {"format", "required", "title"}  # pydantic's formats are its own, and what is required is derived
_UNITS: Final[Mapping[str, Mapping[str, int]]] = {  # the largest first
    SIZE_PATTERN: {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10},
    DURATION_PATTERN: {"d": 86_400, "h": 3_600, "m": 60, "s": 1},
}


def file_schema() -> dict[str, Any]:
    """Return the schema, without references."""
    whole = json_schema()
    definitions = whole.pop("$defs")
    about = {"title": "artifacts-agent", "description": "The configuration of artifacts-agent."}
    schema: dict[str, Any] = {"$schema": DIALECT, **_as_written(whole, definitions), **about}
    by_name = schema["properties"]["destinations"]["patternProperties"]
    for pattern, destination in by_name.items():
        by_name[pattern] = _without_defaults(_flattened(destination))  # they are those of [api], [batch] and so on
    return schema


def _as_written(node: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema for what stands in TOML, which has no null, and where no key may be unknown."""
    if "$ref" in node:
        node = {**definitions[node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key in {"properties", "patternProperties"}:
            found[key] = {name: _as_written(each, definitions) for name, each in value.items()}
            found["additionalProperties"] = False
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            found[key] = _as_written(value, definitions)
        elif key == "anyOf":
            found[key] = [_as_written(each, definitions) for each in value if each != {"type": "null"}]
        elif key == "default" and value is not None:
            found[key] = _written_default(value, node.get("pattern", ""))
        elif key not in {*_DROPPED, *_BOUNDS} and value is not None:
            found[key] = value
    return found | {_BOUNDS[key]: value for key, value in node.items() if key in _BOUNDS}


def _written_default(value: Any, pattern: str) -> Any:  # noqa: ANN401 - of any key
    if pattern == MODE_PATTERN:
        return f"{value:04o}"
    units = _UNITS.get(pattern, {})
    return next((f"{value // size:.0f}{unit}" for unit, size in units.items() if value and value % size == 0), value)


def _flattened(destination: dict[str, Any]) -> dict[str, Any]:
    """Return it with the keys of its account where the file has them."""
    properties = dict(destination["properties"])
    account = properties.pop("api")["properties"]
    return {**destination, "properties": {**account, **properties}}


def _without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _without_defaults(each) for name, each in node.get("properties", {}).items()}
    kept = {key: value for key, value in node.items() if key != "default"}
    return {**kept, "properties": properties} if properties else kept
