"""Whether the engine's client is here: it is an extra, which agents that do not forward do without."""

from importlib.util import find_spec

from agent.errors import ConfigError


def require_client(key: str) -> None:
    """Raise ConfigError, for the key that wants it, if the client of NATS is not installed."""
    missing = [name for name in ("nats", "nacl") if find_spec(name) is None]
    if missing:
        how = "pip install '.[fleet]' in a checkout installs the agent with it"
        raise ConfigError(f"{key}: needs {missing[0]}, which is not installed: {how}")
