"""Which destinations a request is about: `destination=NAME` in its query, or several names with commas between them."""

from collections.abc import Mapping

from agent.delivery.pipeline import Pipeline
from agent.http.server import Request
from agent.rules import DEFAULT


class BadRequestError(Exception):
    """A request cannot be understood; the message says why."""


def selected(request: Request, pipelines: Mapping[str, Pipeline]) -> dict[str, Pipeline]:
    """Return those that are named, all if none is. Raises BadRequestError."""
    given = request.query.get("destination")
    names = list(pipelines) if given is None else given.split(",")
    for name in names:
        if name not in pipelines:
            raise BadRequestError(f"there is no destination {name!r}, only {', '.join(pipelines)}")
    return {name: pipelines[name] for name in names}


def selected_one(request: Request, pipelines: Mapping[str, Pipeline]) -> tuple[str, Pipeline]:
    """Return the one that is named, or DEFAULT. Raises BadRequestError."""
    found = selected(request, pipelines) if "destination" in request.query else {DEFAULT: pipelines[DEFAULT]}
    if len(found) > 1:
        raise BadRequestError(f"{request.path} is about one destination: name one of {', '.join(found)}")
    return next(iter(found.items()))
