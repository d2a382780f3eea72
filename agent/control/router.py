"""A table of routes, and the answers to what it does not have and to what fails."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from agent.control.selection import BadRequestError
from agent.errors import ConfigError, DeadlineError, StorageError
from agent.http.server import Request, Response


class Route(NamedTuple):
    """A request that is answered; `about` says in one line with what."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    about: str


class Router:
    """Answers requests for its routes; errors are in the API's shape."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._by_request = {(route.method, route.path): route for route in routes}

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        route = self._by_request.get((request.method, request.path))
        if route is None:
            return self._refuse(request)
        try:
            return await route.handler(request)
        except BadRequestError as error:
            return Response.error(400, "bad_request", str(error))
        except ConfigError as error:
            return Response.error(422, "invalid_configuration", str(error))
        except DeadlineError as error:
            return Response.error(504, "deadline_passed", str(error))
        except StorageError as error:
            return Response.error(507, "storage_error", str(error))

    def _refuse(self, request: Request) -> Response:
        allowed = [route.method for route in self._routes if route.path == request.path]
        if allowed:
            return Response.error(405, "method_not_allowed", f"{request.path} takes {' and '.join(allowed)}")
        paths = ", ".join(sorted({route.path for route in self._routes}))
        return Response.error(404, "not_found", f"there is no {request.path}, only {paths}")
