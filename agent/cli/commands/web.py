"""`web`: the page."""

import ipaddress
import os
import re
import sys
from functools import partial
from pathlib import Path

import click

from agent.cli.options import config_option, find_config, find_queue
from agent.cli.views.output import say
from agent.errors import AgentError

DEFAULT_ADDRESS = "127.0.0.1:9901"


class Address(click.ParamType[str]):
    """HOST:PORT, the host an IP address, which for IPv6 is in brackets."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        host, _, port = text.rpartition(":")
        try:
            fits = host.startswith("[") == (ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version == 6)
        except ValueError:
            fits = False
        if not fits or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
            self.fail(f'{text!r} is no address: write it like "127.0.0.1:9901" or "[::1]:9901"', param, ctx)
        return text


@click.command(short_help="Serve a page for browsers: hit rate, time saved, delivery.")
@click.option(
    "--listen",
    type=Address(),
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="HOST:PORT",
    help="Where; the host is an IP address, and port 0 is a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file with the token that browsers have to give as a password; without one only this machine is served.",
)
@click.option(
    "--destination", metavar="NAME", help="Whose report: the name in [destinations.NAME].  [default: default]"
)
@config_option
def web(path: Path | None, destination: str | None, listen: str, token_file: Path | None) -> None:
    """Serve a page that shows what builds got out of the cache, and how the agent is doing, until Ctrl-C or SIGTERM.

    It is what `report` and `status` say, with charts: hit rate, task time saved, tasks, unanswered ones, worst builds, hashes
    that were built again, the queue, and the state and ledger of each destination. It has no scripts, takes nothing from
    elsewhere, and shows itself again every minute.

    It is a process beside the daemon, and changes nothing but usage.sqlite3, as `report` does. Run it as the daemon's user, or as
    root; then it goes on as that user.

    Every user of this machine can connect to a port of 127.0.0.1. With --token-file a browser asks for a password, which is the
    token; any user's name will do. Addresses that others can reach need one. There is no TLS: for others, better let a proxy
    or `ssh -L 9901:127.0.0.1:9901` reach it.
    """
    from agent import config
    from agent.cli.queue.owner import become_owner
    from agent.cli.web.access import is_loopback
    from agent.cli.web.server import run
    from agent.daemon import journal, logging
    from agent.daemon.settings import queue_directory
    from agent.ingest.sockets import bind_tcp, tcp_address
    from agent.rules import DEFAULT

    if token_file is None and not is_loopback(listen):
        raise click.UsageError(f"Others can reach {listen}: name a --token-file, or listen on 127.0.0.1.")
    settings, name, _ = find_queue(path, destination or DEFAULT)
    directory = queue_directory(settings, name)
    token = None if token_file is None else config.read_token_file(token_file, may_show=True)
    bound = bind_tcp(listen)
    with bound.socket:
        become_owner(directory)
        if not os.access(sys.executable, os.X_OK):  # it was root's, and what is folded later is folded by the owner
            owner = f"the owner of {directory}, uid {os.geteuid()}, as whom the page is served"
            raise AgentError(f"{sys.executable}: cannot be run by {owner}: install the agent where they can read it")
        logging.configure(settings.log.level, settings.log.format, to_journal=journal.is_journal(os.environ))
        said = "" if token_file is None else f", and its password is the token in {token_file}"
        announce = partial(say, f"The page is at http://{tcp_address(bound)}/{said}. Ctrl-C ends it.")
        file = find_config(path)
        named = [] if file is None else ["--config", str(file)]
        fold = [
            sys.executable,
            "-P",
            "-m",
            "agent.cli",
            "report",
            "--since",
            "1h",
            "--format",
            "json",
            "--destination",
            name,
            *named,
        ]
        run(bound, directory, settings.listen.control, fold, token, announce)
