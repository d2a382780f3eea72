"""What of a request says for which team it is. It has to say it in one way: the API may read it otherwise."""

import re
from urllib.parse import unquote, unquote_plus

PARAMETERS = ("teamId", "slug")
_LETTERS = re.compile("[^a-z]")
_PLAIN_ARTIFACTS_PATH = re.compile(r"/v[0-9]+/artifacts(/[A-Za-z0-9_-][A-Za-z0-9._~-]*)*/?")


def ambiguous_team(query: str) -> str | None:
    """Say what in a query could be taken for another team than `teamId` and `slug` say; None if there is nothing."""
    found: list[str] = []
    for pair in re.split("[&;]", query):
        name = pair.partition("=")[0]
        letters = _LETTERS.sub("", unquote_plus(name).partition("[")[0].lower())
        meant = next((each for each in PARAMETERS if each.lower() == letters), None)
        if meant is not None and name != meant:
            return f"the query should say {meant} in this spelling"
        if meant in found:
            return f"the query should say {meant} once"
        if meant is not None:
            found.append(meant)
    return None


def plain_path(path: str) -> str:
    """Return a path as the most lenient server may read it: decoded, without empty segments and dots, in lower case."""
    while (decoded := unquote(path)) != path:
        path = decoded
    segments: list[str] = []
    for segment in path.replace("\\", "/").split("/"):
        name = segment.partition(";")[0].strip().lower()
        if name == "..":
            del segments[-1:]
        elif name not in {"", "."}:
            segments.append(name)
    return "/" + "/".join(segments)


def is_for_artifacts(path: str) -> bool:
    """Tell whether a path leads to the API's artifacts, whoever reads it."""
    return _PLAIN_ARTIFACTS_PATH.fullmatch(path) is not None
