"""`devserver`: a server of the API for authors of build tools."""

import click

from agent.cli.views.output import say


def _no_space(_ctx: click.Context, _param: click.Parameter, token: str) -> str:
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise click.BadParameter("it needs at least one character, and only printable ASCII without spaces")
    return token


@click.command(short_help="Serve the API locally and show what it receives.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="The port, on 127.0.0.1 only.  [default: a free one]",
)
@click.option(
    "--token", default="devtoken", show_default=True, callback=_no_space, help="The token that clients have to send."
)
def devserver(port: int, token: str) -> None:
    """Serve the API on this machine, and show each event that it receives: for authors of build tools.

    It starts with its address, its token, a curl command that sends an event, and the variables that make Turborepo use it.
    Then it prints, for each request, the events, where they come from, and the totals so far. A request that is not valid is
    refused as the real API would, and the reason is printed. Ctrl-C ends it.

    \b
    artifacts-agent devserver --port 9800
    TURBO_API=http://127.0.0.1:9800 TURBO_TOKEN=devtoken TURBO_TEAM=dev turbo run build

    It needs no account, no daemon and no configuration, and writes no file.
    """
    from agent.demo.devserver import run

    run(port, token, say)
