"""`pause` and `resume`: an operator's hold on delivery."""

from pathlib import Path

import click

from agent.cli.options import config_option, load_config
from agent.cli.views.output import say


@click.command()
@config_option
def pause(path: Path | None) -> None:
    """Stop delivering until `resume`.

    Events are taken and kept meanwhile. The pause survives a restart of the daemon.
    """
    from agent.control.client import ControlClient

    ControlClient(load_config(path).listen.control).pause()
    say("Delivery is paused; events are taken and kept. To go on: artifacts-agent resume")


@click.command()
@config_option
def resume(path: Path | None) -> None:
    """Deliver again, at once.

    It ends any pause: an operator's, and one that the daemon made because the account is blocked. If that is still so, the
    next answer of the server pauses delivery again.
    """
    from agent.control.client import ControlClient

    ControlClient(load_config(path).listen.control).resume()
    say("Delivery goes on. How it fares: artifacts-agent status")
