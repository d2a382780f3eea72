"""`check --online`: what the server says about the account. It asks with delivery's own transport, and sends no event."""

import time
from collections.abc import Mapping

import anyio

from agent import config
from agent.config import Config
from agent.delivery.http_transport import STATUS_PATH, Endpoint, HttpTransport
from agent.delivery.transport import Kind, Verdict
from agent.errors import ConfigError

_ADVICE = {
    Kind.TRANSIENT: "check api.url, the network and the proxy; delivery would try again",
    Kind.CUT_OFF: "check api.url, the network and the proxy; delivery would try again",
    Kind.BLOCKED: "check the token, the team and the account; delivery would pause",
    Kind.REJECTED: "check the token, the team and api.url",
    Kind.TOO_LARGE: "check api.url",
    Kind.MISCONFIGURED: "check api.url; delivery would pause",
}


def ask_server(settings: Config, environ: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether the server takes events as far as it says, and what it said."""
    url = settings.api.url
    try:
        verdict = anyio.run(_probe, _endpoint(settings, environ))
    except ConfigError as error:  # of the variables that say which certificates and which proxy to use
        return False, str(error)
    if verdict is None:
        return True, f"{url}: it answers, but has no {STATUS_PATH}: only a delivery shows whether it accepts the token"
    if verdict.kind is not Kind.ACCEPTED:
        return False, f"{url}: {verdict.message}: {_ADVICE[verdict.kind]}"
    if verdict.message != "enabled":
        return False, f"{url}: {verdict.message}: check api.url"
    return (
        True,
        f'{url}: it says "enabled", which does not prove that the token is right: some servers say so to everybody',
    )


async def _probe(endpoint: Endpoint) -> Verdict | None:
    transport = HttpTransport(endpoint, wall_clock=time.time)
    try:
        return await transport.probe()
    finally:
        await transport.aclose()


def _endpoint(settings: Config, environ: Mapping[str, str]) -> Endpoint:
    """Return where to ask, without a token if it cannot be read: another check says so."""
    try:
        token = config.read_token(settings, environ)
    except ConfigError:
        token = None
    api = settings.api
    return Endpoint(api.url, token.get_secret_value() if token else None, api.team_id, api.slug, api.timeout)
