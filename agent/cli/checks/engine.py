"""`check --online` of a destination that is forwarded: whether the engine would take events, without leaving one there.

It publishes a message that is for another stream than the one that would keep it: who may publish is told so.
"""

import anyio

from agent.config import ForwardConfig, RelayConfig
from agent.daemon.forwarding import engine_of
from agent.fleet.engine import EngineError, NotPermittedError
from agent.fleet.inspection import team_status
from agent.fleet.names import EVENTS, consumer, events_subject
from agent.fleet.nats_engine import NatsEngine, engine_for_relays

_NO_STREAM = "AA_CHECK"
_REFUSED = "expected stream does not match"


async def _ask(forward: ForwardConfig) -> tuple[bool, str]:
    engine = engine_of(forward)
    subject = events_subject(forward.team or "", forward.pool or "")
    version = ""
    try:
        version = await engine.version()
        await engine.publish(subject, b"", {"Nats-Expected-Stream": _NO_STREAM})
    except NotPermittedError as error:
        return False, f"{error}: check forward.credentials, forward.team and forward.pool; forwarding would pause"
    except EngineError as error:
        if _REFUSED in str(error):
            problem = await _problem_of_team(engine, forward)
            return problem is None, problem or f"nats-server {version} would take events on {subject}"
        return False, f"{error}: check forward.servers and the engine; forwarding would try again"
    finally:
        await engine.aclose()
    return False, f"{subject} is kept by no stream of a fleet: `artifacts-agent fleet init` makes it"


async def _problem_of_team(engine: NatsEngine, forward: ForwardConfig) -> str | None:
    """Say why no relay could take events of the team. Credentials are of one team, and may not ask."""
    if forward.credentials is not None:
        return None
    try:
        await engine.consumer_state(EVENTS, consumer(forward.team or ""))
    except EngineError as error:
        return f"nobody takes events of the team {forward.team}: {error}, or check forward.team"
    return None


def ask_engine(forward: ForwardConfig) -> tuple[bool, str]:
    """Return whether the engine would take events, and what it says."""
    return anyio.run(_ask, forward)


async def _ask_as_relay(relay: RelayConfig) -> tuple[bool, str]:
    team = relay.team or ""
    engine = engine_for_relays(relay.servers or (), relay.credentials, team)
    try:
        version = await engine.version()
        found = await team_status(engine, team)
    except NotPermittedError as error:
        return False, f"{error}: check relay.credentials and relay.team"
    except EngineError as error:
        return False, f"{error}: check relay.servers and the engine"
    finally:
        await engine.aclose()
    return (
        True,
        f"nats-server {version} has the ledger of team {team}, and {found.overview.messages} messages in its stream",
    )


def ask_engine_of_relay(relay: RelayConfig) -> tuple[bool, str]:
    """Return whether the engine lets a relay read what its team has there, and what it says. Nothing is taken or written."""
    return anyio.run(_ask_as_relay, relay)
