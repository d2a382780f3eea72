"""The misbehaving API server with a remote cache in memory: artifacts work whatever mood the events' side is in.

It knows how artifacts are put and got. It must never know which events come with them.
"""

from tests.support.api_server import Answer, ApiServer, error
from tests.support.capture import STATUS_PATH, Captured

_ARTIFACTS = "/v8/artifacts/"
_KEPT = ("x-artifact-duration", "x-artifact-tag", "content-type")


class ArtifactsApi(ApiServer):
    """`ApiServer`, and an artifact that was put can be got again. `artifacts_down` is what everything about them gets instead."""

    def __init__(self, port: int = 0, *, token: str | None = None) -> None:
        super().__init__(port, token=token)
        self.artifacts_down: Answer | None = None
        self._artifacts: dict[str, Captured] = {}

    def forget_artifacts(self) -> None:
        """Let every artifact be missing again."""
        self._artifacts.clear()

    def _found(self, request: Captured, scripted: Answer) -> Answer:
        if request.is_events or not request.path.startswith(_ARTIFACTS):
            return super()._found(request, scripted)
        if request.method == "OPTIONS":
            return Answer(headers={"access-control-allow-headers": "Authorization"})
        found = None if request.path == STATUS_PATH else self._artifact(request)
        return self.artifacts_down or found or super()._found(request, scripted)

    def _artifact(self, request: Captured) -> Answer | None:
        if request.method == "PUT":
            self._artifacts[request.path] = request
            return Answer(202, body=b'{"urls":[]}')
        stored = self._artifacts.get(request.path)
        if request.method not in {"GET", "HEAD"} or stored is None:
            return None if stored else error(404, "not_found", "Artifact not found")
        headers = {name: value for name, value in stored.headers.items() if name in _KEPT}
        return Answer(headers=headers, body=stored.body)
