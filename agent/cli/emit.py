"""`emit`: one event from options, or many from standard input, to the daemon's stream socket.

It knows `agent.client`, and what a shell wants: never to wait long, never to fail. It must never import what a build would
feel: no configuration is read.
"""

import os
from collections.abc import Iterable
from typing import Any

import click

from agent.cli.emit_report import Report
from agent.cli.options import PROGRAM

_REASONS = {
    "absent": "no daemon listens on {path}: start it with `artifacts-agent run`, or name its socket with --socket",
    "denied": "{path}: Permission denied: this user needs the group of the socket (listen.group, listen.mode)",
    "disabled": "sending is turned off by an empty ARTIFACTS_AGENT_SOCKET",
    "full": "{path}: the daemon does not keep up, or is stopped",
    "invalid": "a value is none that the API allows",
    "too_large": "a line may have 64 KiB",
    "failed": "{path}: the socket cannot be used: is the path right?",
}


@click.command()
@click.argument("source_of_lines", metavar="[-]", required=False, type=click.Choice(["-"]))
@click.option("--event", type=click.Choice(["HIT", "MISS"]), help="Was it in the cache?")
@click.option("--source", type=click.Choice(["LOCAL", "REMOTE"]), help="In which cache?")
@click.option("--hash", "artifact", metavar="HASH", help="The artifact's hash.")
@click.option("--duration", type=float, metavar="MS", help="Milliseconds that a HIT saved.")
@click.option("--session-id", metavar="UUID", help="The run of the build.  [default: a new one]")
@click.option(
    "--socket",
    "path",
    # Not for click to check: whether it may be used, sending finds out, and says it without failing a build.
    type=click.Path(readable=False),
    help="The daemon's stream socket.  [default: ARTIFACTS_AGENT_SOCKET, else "
    "$XDG_RUNTIME_DIR/artifacts-agent/events.sock if it exists, else /run/artifacts-agent/events.sock]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 4 (no daemon) or 1 if something was not sent; wait as long as lines are taken.",
)
def emit(
    source_of_lines: str | None,
    event: str | None,
    source: str | None,
    artifact: str | None,
    duration: float | None,
    session_id: str | None,
    path: str | None,
    strict: bool,
) -> int:
    """Send one usage event, or the lines of standard input.

    \b
    artifacts-agent emit --event HIT --source LOCAL --hash 115c7929ab9c479c --duration 514
    tool --events | artifacts-agent emit -

    With "-", each line is an event object, an array of them, or a context line, as the stream socket takes them. What is
    not valid is named by its line, and costs that line only.

    It hands the events to the daemon and does not wait for them to be on disk. What cannot be sent is said on standard
    error, and the exit code is 0 all the same, since telemetry must not fail a build: see --strict. The configuration file
    is not read: a socket elsewhere than by default is named by --socket or ARTIFACTS_AGENT_SOCKET.
    """
    fields = {"event": event, "source": source, "hash": artifact, "duration": duration, "session_id": session_id}
    report = Report()
    if source_of_lines is not None:
        if given := [name for name, value in fields.items() if value is not None]:
            raise click.UsageError(f"'-' reads events from standard input: leave out {_options(given)}.")
        from agent.cli.emit_lines import send_standard_input

        send_standard_input(report, path, strict=strict)
    else:
        if missing := [name for name in ("event", "source", "hash") if fields[name] is None]:
            raise click.UsageError(f"Missing {_options(missing)}; or write '-' to read events from standard input.")
        _send_one(report, path, fields)
    if strict or set(report.unsent) != {"disabled"}:
        _say(report, path)
    return report.exit_code if strict else 0


def _options(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _send_one(report: Report, path: str | None, fields: dict[str, Any]) -> None:
    """Send the event that the options describe, without waiting."""
    from agent.client import EventClient

    if (duration := fields["duration"]) is not None and duration.is_integer():
        fields["duration"] = int(duration)
    with EventClient(path) as client:
        if not client.emit(**fields):
            report.unsent.update(client.unsent_by_reason)


def _say(report: Report, path: str | None) -> None:
    from agent.client import find_socket

    for line, reason in report.rejects:
        click.echo(f"{PROGRAM}: line {line}: {reason}", err=True)
    if more := report.rejected - len(report.rejects):
        noun = "line that is" if more == 1 else "lines that are"
        click.echo(f"{PROGRAM}: and {more:,} more {noun} not valid", err=True)
    where = find_socket(os.environ) if path is None else path
    for reason, count in report.unsent.items():
        noun = "1 event was" if count == 1 else f"{count:,} events were"
        click.echo(f"{PROGRAM}: {noun} not sent: {_REASONS[reason].format(path=where)}", err=True)
