"""`relay`: deliver for a fleet, what agents elsewhere have forwarded."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, find_config

if TYPE_CHECKING:
    from agent.config import Config
    from agent.fleet.engine import Engine


@click.command()
@config_option
def relay(path: Path | None) -> int:
    """Run a relay in the foreground.

    It takes the events of [relay] team from the engine at [relay] servers and delivers them to the API. It keeps nothing on a
    disk, and there may be several: they share one pause and one rate. Logs go to standard error.

    SIGTERM or SIGINT: begin no more requests, settle those under way, for at most shutdown.deadline, and leave the rest to other
    relays. A second one: stop at once.
    """
    from agent import config

    loaded = config.load(find_config(path), os.environ, directories=config.Directories.of_system())
    from agent.daemon import relay as process

    process.run(loaded, os.environ, _connect)
    return 0


def _connect(loaded: "Config") -> "Engine":
    from agent.fleet.installed import require_client

    require_client("relay.servers")
    from agent.fleet.nats_engine import engine_for_relays

    return engine_for_relays(loaded.relay.servers or (), loaded.relay.credentials, loaded.relay.team or "")
