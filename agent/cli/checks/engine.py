"""`check --online` of a destination that is forwarded: whether the engine would take events, without leaving one there.

It publishes a message that is for another stream than the one that would keep it: who may publish is told so.
"""

import anyio

from agent.config import ForwardConfig
from agent.daemon.forwarding import engine_of
from agent.fleet.engine import EngineError, NotPermittedError
from agent.fleet.names import events_subject

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
            return True, f"nats-server {version} would take events on {subject}"
        return False, f"{error}: check forward.servers and the engine; forwarding would try again"
    finally:
        await engine.aclose()
    return False, f"{subject} is kept by no stream of a fleet: `artifacts-agent fleet init` makes it"


def ask_engine(forward: ForwardConfig) -> tuple[bool, str]:
    """Return whether the engine would take events, and what it says."""
    return anyio.run(_ask, forward)
