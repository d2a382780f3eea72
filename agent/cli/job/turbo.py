"""Where turbo's own configuration says that its remote cache is.

Looked at are, as turbo 2 does in this order: `.turbo/config.json` of the repository, `turborepo/config.json` below the user's
configuration directory, and `remoteCache` in the repository's turbo.json.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_LIMIT = 1024 * 1024  # bytes of a file that are read
_KEYS = ("apiUrl", "apiurl", "ApiUrl", "APIURL")
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)


def with_api_url(environ: Mapping[str, str], directory: Path) -> Mapping[str, str]:
    """Return an environment whose TURBO_API is what turbo, run in `directory`, would go by without the variable."""
    if "TURBO_API" in environ:
        return environ
    found = next(_api_urls(environ, directory), None)
    return environ if found is None else {**environ, "TURBO_API": found}


def _api_urls(environ: Mapping[str, str], directory: Path) -> Iterator[str]:
    places = [directory, *directory.parents]
    home = environ.get("HOME", "")
    user = environ.get("TURBO_CONFIG_DIR_PATH") or environ.get("XDG_CONFIG_HOME") or (home and f"{home}/.config")
    yield from _found(_object(place / ".turbo" / "config.json") for place in places)
    if user:
        yield from _found([_object(Path(user) / "turborepo" / "config.json")])
    yield from _found(_object(place / "turbo.json").get("remoteCache") for place in places)


def _found(objects: Iterable[object]) -> Iterator[str]:
    for each in objects:
        if isinstance(each, dict):
            yield from (url for key in _KEYS if isinstance(url := each.get(key), str) and url)


def _object(path: Path) -> dict[str, object]:
    """Return what a file of JSON with comments on lines of their own holds; {} if it holds no object."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            found = json.loads(_COMMENT.sub("", file.read(_LIMIT).decode()))
    except (OSError, ValueError, RecursionError):  # turbo complains about it, or cannot read it either
        return {}
    return found if isinstance(found, dict) else {}
