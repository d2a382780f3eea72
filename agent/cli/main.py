"""The group of commands, and the one place where an error becomes an exit code.

A command's module is imported only when the command is called: `emit` runs in builds, and has to start quickly.
"""

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from agent import __version__
from agent.cli.problems import report
from agent.cli.views.words import PROGRAM
from agent.errors import AgentError
from agent.escaping import printable

INTERRUPTED = 130

_COMMANDS = {
    "run": "agent.cli.commands.run:run",
    "relay": "agent.cli.commands.relay:relay",
    "exec": "agent.cli.commands.exec:exec_",
    "emit": "agent.cli.commands.emit:emit",
    "status": "agent.cli.commands.status:status",
    "top": "agent.cli.commands.top:top",
    "report": "agent.cli.commands.report:report",
    "web": "agent.cli.commands.web:web",
    "flush": "agent.cli.commands.flush:flush",
    "hook": "agent.cli.commands.hook:hook",
    "pause": "agent.cli.commands.delivery:pause",
    "resume": "agent.cli.commands.delivery:resume",
    "reload": "agent.cli.commands.reload:reload",
    "queue": "agent.cli.commands.queue:queue",
    "dead-letters": "agent.cli.commands.dead_letters:dead_letters",
    "monitoring": "agent.cli.commands.monitoring:monitoring",
    "rules": "agent.cli.commands.rules:rules",
    "config": "agent.cli.commands.config:config",
    "check": "agent.cli.commands.check:check",
    "fleet": "agent.cli.commands.fleet:fleet",
    "demo": "agent.cli.commands.demo:demo",
    "devserver": "agent.cli.commands.devserver:devserver",
    "completion": "agent.cli.commands.completion:completion",
}

_EPILOG = """
\b
Exit codes:
    0  success
    1  a problem was found
    2  usage: the command line is wrong
    3  a deadline passed before the work was done
    4  no daemon is running, or this user is not allowed to ask it (fleet: the engine, with these credentials)
    5  another daemon uses the queue directory
    6  a socket cannot be opened
    7  the queue directory cannot be read or written
    8  events were dead-lettered or dropped
    9  delivery is paused (status --check), or the hit rate is below --fail-under (report)
   10  delivery has been backing off for more than a minute, or is going to (status --check)
   78  the configuration or the token is wrong
  130  interrupted (Ctrl-C)
  141  broken pipe: the program that read the output has ended

The configuration file is --config FILE, else the one that ARTIFACTS_AGENT_CONFIG names, else
/etc/artifacts-agent/config.toml if it exists. Without a file, environment variables and defaults apply.
"""


class _LazyGroup(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS and (ctx.resilient_parsing or cmd_name.startswith("-")):
            return None
        if cmd_name not in _COMMANDS:
            import difflib  # for a mistake only

            near = difflib.get_close_matches(cmd_name, _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {cmd_name!r}.{hint}", ctx)
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Keep Remote Cache usage events safe on disk, and deliver them, so that builds never wait.

    `run` is the daemon and `emit` sends it events. `exec` runs a build with a daemon beside it. The other commands inspect and
    control a daemon or its queue. To see it at work: `demo`.
    """


def main() -> int:
    """Run the command that `sys.argv` names, and return its exit code.

    A command returns its exit code, None for 0. What it raises on purpose is an AgentError.
    """
    _open_closed_streams()
    _replace_unencodable_characters()
    try:
        code: Any = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)  # which has words of the command line in it
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except (AgentError, ExceptionGroup) as error:
        return report(error)
    return int(code or 0)


def _open_closed_streams() -> None:
    """Give each standard stream that was closed the null device, or the next file to be opened would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _replace_unencodable_characters() -> None:
    if isinstance(sys.stdout, TextIOWrapper):  # None if it is closed
        sys.stdout.reconfigure(errors="replace")
