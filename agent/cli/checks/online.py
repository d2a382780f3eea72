"""`check --online`: whether the server takes the token, as far as that can be shown without sending an event.

It asks with delivery's own transport for the account's status, and for an artifact that nobody has, both with the token and with
one that is wrong. Only a server that refuses the wrong one shows anything by not refusing the right one: some say "enabled", or
"not found", to everybody.
"""

import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import anyio

from agent import config
from agent.config import Config
from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.transport import Kind, Verdict
from agent.errors import ConfigError
from agent.http.api import STATUS_PATH

ARTIFACTS_PATH = "/v8/artifacts"
_ABSENT = {404, 405, 501}
_REFUSED = {401, 403}
_ADVICE = {
    Kind.TRANSIENT: "check api.url, the network and the proxy; delivery would try again",
    Kind.CUT_OFF: "check api.url, the network and the proxy; delivery would try again",
    Kind.BLOCKED: "check the token, the team and the account; delivery would pause",
    Kind.REJECTED: "check the token, the team and api.url",
    Kind.TOO_LARGE: "check api.url",
    Kind.MISCONFIGURED: "check api.url; delivery would pause",
}
_ONLY_DELIVERY = "only a delivery shows whether it accepts the token"


class Answers(NamedTuple):
    """What one token got: to `GET /v8/artifacts/status`, and to `HEAD` of an artifact that nobody has."""

    status: Verdict
    artifact: Verdict


class Judgement(NamedTuple):
    """Whether delivery can work, as far as it is known, why, and whether it is `proven` that it does."""

    ok: bool
    message: str
    proven: bool = False


def judge(own: Answers, wrong: Answers | None) -> Judgement:
    """Say what the answers to the token show, beside those to a `wrong` one, if that was asked with."""
    status, artifact = own
    if status.status not in _ABSENT and status.kind is not Kind.ACCEPTED:
        return Judgement(False, f"{status.message}: {_ADVICE[status.kind]}")
    if status.kind is Kind.ACCEPTED and status.message != "enabled":
        return Judgement(False, f"{status.message}: check api.url")
    if artifact.kind is Kind.BLOCKED or artifact.status is None:
        return Judgement(False, f"asked for an artifact: {artifact.message}: {_ADVICE[artifact.kind]}")
    if wrong is None:
        return Judgement(True, "not proven: it answers, but there is no token to ask with")
    refusal = _refusal(own, wrong)
    if refusal is not None:
        return Judgement(True, f"it accepts the token, and refuses a wrong one ({refusal.message})", proven=True)
    if {status.status, artifact.status} <= _ABSENT:
        return Judgement(False, f"it knows nothing below {ARTIFACTS_PATH} ({artifact.message}): check api.url")
    if not _lets_in(artifact):
        return Judgement(True, f"not proven: asked for an artifact: {artifact.message}: {_ONLY_DELIVERY}")
    same = f"it answers a wrong token as it does this one ({artifact.message})"
    return Judgement(True, f"not proven: {same}: {_ONLY_DELIVERY}")


def _refusal(own: Answers, wrong: Answers) -> Verdict | None:
    """Return the answer by which the wrong token was refused where the right one was let in."""
    for right, other in zip(reversed(own), reversed(wrong), strict=True):
        if other.status in _REFUSED and _lets_in(right):
            return other
    return None


def _lets_in(verdict: Verdict) -> bool:
    """Tell whether an answer is one about what was asked for, and not about who asks, or about other trouble."""
    if verdict.status is None or verdict.kind in {Kind.BLOCKED, Kind.TRANSIENT}:
        return False
    return verdict.kind is Kind.ACCEPTED or 400 <= verdict.status < 500


def wrong_token(token: str, choose: Callable[[str], str]) -> str:
    """Return another token that looks like this one, so that it is refused for nothing but being wrong."""
    return "".join(_other(character, choose) for character in token)


def _other(character: str, choose: Callable[[str], str]) -> str:
    for alphabet in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        if character in alphabet:
            return choose(alphabet.replace(character, ""))
    return character


def ask_server(settings: Config, environ: Mapping[str, str], destination: str) -> Judgement:
    """Ask a destination's server. Four requests at most are made, none of which changes anything there."""
    try:
        found = anyio.run(_ask, _endpoint(settings, environ, destination), secrets.token_hex(8))
    except ConfigError as error:  # of the variables that say which certificates and which proxy to use
        return Judgement(False, str(error))
    return found._replace(message=f"{settings.accounts[destination].api.url}: {found.message}")


async def _ask(endpoint: Endpoint, artifact: str) -> Judgement:
    own = await _answers(endpoint, artifact)
    found = judge(own, None)
    if not found.ok or endpoint.token is None:
        return found
    other = replace(endpoint, token=wrong_token(endpoint.token, secrets.choice))
    return judge(own, await _answers(other, artifact))


async def _answers(endpoint: Endpoint, artifact: str) -> Answers:
    transport = HttpTransport(endpoint, wall_clock=time.time)
    try:
        status = await transport.ask("GET", STATUS_PATH)
        if status.status is None:  # nobody is there: there is nothing more to ask
            return Answers(status, status)
        return Answers(status, await transport.ask("HEAD", f"{ARTIFACTS_PATH}/{artifact}"))
    finally:
        await transport.aclose()


def _endpoint(settings: Config, environ: Mapping[str, str], destination: str) -> Endpoint:
    """Return where to ask, without a token if it cannot be read: another check says so."""
    try:
        token = config.read_token(settings, environ, destination)
    except ConfigError:
        token = None
    api = settings.accounts[destination].api
    return Endpoint(api.url, token.reveal() if token else None, api.team_id, api.slug, api.timeout)
