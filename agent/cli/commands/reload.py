"""`reload`: have the daemon read its configuration and tokens again, and say whether it did."""

from pathlib import Path

import click

from agent.cli.options import ask_daemon, config_option
from agent.cli.views.output import say
from agent.errors import ConfigError


@click.command(short_help="Have the daemon read its configuration and tokens again.")
@config_option
def reload(path: Path | None) -> None:
    """Have the daemon read its configuration and its tokens again, as SIGHUP does.

    It says what has changed, and what changes only at the next start. Exit code 78: the daemon has refused the new configuration
    or a token, and goes on with the old one. A token that is refused keeps nothing else from being taken over.
    """
    answer = ask_daemon(path).reload()
    say(f"Reloaded: {', '.join(answer.changed) or 'nothing'} changed.")
    if answer.restart_needed:
        say(f"A restart is needed for {', '.join(answer.restart_needed)}.")
    if answer.tokens_refused:
        raise ConfigError("\n".join(f"token refused: {each}" for each in answer.tokens_refused))
