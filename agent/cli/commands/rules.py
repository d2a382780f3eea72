"""`rules`: who may send, and where to, as the configuration says."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, find_config, json_option
from agent.cli.views.output import say, say_json
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.rules import Rule, Sender

DENIED = 1


@click.group(short_help="Say which rule decides about a sender.")
def rules() -> None:
    """Ask the rules in the configuration. The daemon is not asked: it goes by them from its next reload on."""


@rules.command(short_help="Say where a sender's events go, and why.")
@click.option("--uid", metavar="USER", help="Who sends, by name or number.  [default: this user]")
@click.option(
    "--socket",
    type=click.Choice(["stream", "datagram", "http", "tcp"]),
    help="By which socket.  [default: stream, or http with a team]",
)
@click.option("--team-id", metavar="ID", help="The teamId of a request over HTTP.")
@click.option("--slug", metavar="SLUG", help="The slug of a request over HTTP.")
@click.option("--asks-for", metavar="NAME", help="The destination that a context line names.")
@config_option
@json_option
def explain(
    path: Path | None,
    uid: str | None,
    socket: str | None,
    team_id: str | None,
    slug: str | None,
    asks_for: str | None,
    as_json: bool,
) -> int:
    """Say where a sender's events go, and which rule decides. Exit code 1: they are refused.

    \b
    artifacts-agent rules explain --uid ci --slug web

    Groups are those that the user has in the system's tables; a process may have others. Over TCP a client of the token of one of
    http.tokens sends to that destination, whatever the rules say.
    """
    import os

    from agent import config

    settings = config.load(find_config(path), os.environ)
    routing = settings.routing
    socket = socket or ("http" if team_id or slug else "stream")
    sender = _sender(uid, socket, team_id, slug, asks_for)
    route = routing.route(sender)
    rule = routing.rule_of(route)
    if as_json:
        say_json(
            {"destination": route.destination, "rule": route.rule, "reason": route.reason, "sender": _facts(sender)}
        )
    elif route.destination is None:
        say(f"refused: {route.reason}", *_because(sender, rule, route.rule))
    else:
        api = settings.accounts[route.destination].api
        team = api.team_id or api.slug
        say(f"to {route.destination}: {api.url}{f', team {team}' if team else ''}", *_because(sender, rule, route.rule))
    return DENIED if route.destination is None else 0


def _sender(uid: str | None, socket: str, team_id: str | None, slug: str | None, asks_for: str | None) -> "Sender":
    """Return what the daemon would know of a sender. Raises AgentError for a user that is not there."""
    import os
    import pwd
    from typing import cast

    from agent.rules import Sender, SocketKind, user_number

    kind = cast("SocketKind", socket)
    if kind in {"stream", "datagram"}:
        team_id = slug = None
    if kind == "tcp":
        return Sender(kind, None, frozenset(), team_id, slug, None)
    number = os.getuid() if uid is None else user_number(uid)
    try:
        entry = pwd.getpwnam(str(uid)) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):  # ValueError: a name that is no text
        if number is not None:  # a user without an entry, as in containers
            return Sender(kind, number, frozenset(), team_id, slug, asks_for)
        raise AgentError(f"there is no user {uid!r} here: write its number") from None
    groups = [entry.pw_gid] if kind == "datagram" else os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Sender(kind, entry.pw_uid, frozenset(groups), team_id, slug, asks_for if kind != "http" else None)


def _facts(sender: "Sender") -> dict[str, object]:
    return {name: sorted(value) if name == "gids" else value for name, value in sender._asdict().items()}


def _because(sender: "Sender", rule: "Rule | None", number: int | None) -> list[str]:
    """Say what is known of the sender, and what the rule wants."""
    known = ", ".join(
        f"{name} {' '.join(map(str, sorted(value))) if name == 'gids' else value}"
        for name, value in sender._asdict().items()
        if value not in (None, frozenset())
    )
    lines = [f"sender: {known}"]
    if rule is None:
        return [*lines, "no rule matches: listen.default decides"]
    wanted = ", ".join(f"{name} {' or '.join(map(str, sorted(each)))}" for name, each in rule.conditions.items())
    lines.append(f"rule {number}: {wanted or 'everybody'}")
    if rule.destination is not None and rule.max_events_per_second is not None:
        lines.append(f"at most {rule.max_events_per_second:,} events a second for each user")
    if rule.destination is not None and rule.max_bytes_per_second is not None:
        lines.append(f"at most {rule.max_bytes_per_second:,} bytes a second for each user")
    if rule.destination is not None and rule.weight > 1:
        lines.append(f"of a full queue each user has {rule.weight:,} shares")
    return lines
