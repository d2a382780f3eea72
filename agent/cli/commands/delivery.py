"""`pause` and `resume`: an operator's hold on delivery."""

from pathlib import Path

import click

from agent.cli.options import ask_daemon, config_option, destinations_option
from agent.cli.views.output import say
from agent.cli.views.words import duration


@click.command()
@destinations_option
@config_option
def pause(path: Path | None, destinations: tuple[str, ...]) -> None:
    """Stop delivering until `resume`.

    Events are still accepted and queued. The pause survives a restart of the daemon.
    """
    ask_daemon(path).pause(destinations)
    say("Delivery is paused; events are still accepted and queued. To resume: artifacts-agent resume")


@click.command()
@destinations_option
@config_option
def resume(path: Path | None, destinations: tuple[str, ...]) -> None:
    """Resume delivery at once.

    This ends any pause: one by `pause`, and one that the daemon began because the account is blocked. It also ends a wait that
    the server asked for, and says so. If the account is still
    blocked, the next answer of the server pauses delivery again.
    """
    answer = ask_daemon(path).resume(destinations)
    if answer.retry_after_overridden is not None:
        say(f"The server had asked to wait for {duration(answer.retry_after_overridden)} more: it is asked now.")
    say("Delivery is resumed. To see how it goes: artifacts-agent status")
