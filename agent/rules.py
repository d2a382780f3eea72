"""Who may send, where to, and how much: rules over what the kernel and the request say of a sender. The first that matches wins.

A rule that says nothing of a condition matches whatever it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

DEFAULT = "default"
"""The destination that `[api]` describes: where events go for which no rule says otherwise."""

DENIED = "denied"
"""The reason for which events of a sender that no rule lets in are dropped. They are of no destination."""

SocketKind = Literal["stream", "datagram", "http", "tcp"]
SOCKETS: tuple[SocketKind, ...] = get_args(SocketKind)

_SAY_WHO = frozenset({"stream", "datagram", "http"})
_SAY_TEAM = frozenset({"http", "tcp"})
_ASK = frozenset({"stream", "datagram"})


_NO_ID = 2**32 - 1  # -1 as the kernel writes it


def user_number(text: str) -> int | None:
    """Return the number of a user or group that is written as one; None if it is none that the kernel could name."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_NO_ID))
    return int(text) if is_number and int(text) < _NO_ID else None


class Sender(NamedTuple):
    """What is known of a sender: its user and groups, None and none over TCP, and by which socket it came.

    Over HTTP it says for which team its events are; by a context line it `asks_for` a destination.
    """

    socket: SocketKind
    uid: int | None = None
    gids: frozenset[int] = frozenset()
    team_id: str | None = None
    slug: str | None = None
    asks_for: str | None = None


class Rule(NamedTuple):
    """What to do with whom: `destination` None denies. Limits are per second and sender's user, None for none.

    `weight` is how large a share of a full queue the user has, beside others that send to it.
    Each of the conditions holds what is wanted, one of several; None for anything.
    """

    destination: str | None
    uid: frozenset[int] | None = None
    gid: frozenset[int] | None = None
    socket: frozenset[str] | None = None
    team_id: frozenset[str] | None = None
    slug: frozenset[str] | None = None
    asks_for: frozenset[str] | None = None
    max_events_per_second: int | None = None
    max_bytes_per_second: int | None = None
    weight: int = 1

    def matches(self, sender: Sender) -> bool:
        """Tell whether all conditions hold."""
        return (
            (self.uid is None or sender.uid in self.uid)
            and (self.gid is None or not self.gid.isdisjoint(sender.gids))
            and (self.socket is None or sender.socket in self.socket)
            and (self.team_id is None or sender.team_id in self.team_id)
            and (self.slug is None or sender.slug in self.slug)
            and (self.asks_for is None or sender.asks_for in self.asks_for)
        )

    @property
    def conditions(self) -> dict[str, frozenset[int] | frozenset[str]]:
        """Return the conditions that it has, by name."""
        return {name: wanted for name in CONDITIONS if (wanted := getattr(self, name)) is not None}


CONDITIONS = ("uid", "gid", "socket", "team_id", "slug", "asks_for")


class Route(NamedTuple):
    """Where a sender's events go: to a `destination`, or nowhere, with the reason.

    `rule` is the number, from 1, of the rule that decided; None if none matched.
    """

    destination: str | None
    rule: int | None = None
    reason: str | None = None


class Rules(NamedTuple):
    """All rules, in order. Whom none matches goes to DEFAULT, unless `denies_others`."""

    rules: Sequence[Rule] = ()
    denies_others: bool = False

    @property
    def is_trivial(self) -> bool:
        """Whether everybody's events go to DEFAULT."""
        return not self.rules and not self.denies_others

    def route(self, sender: Sender) -> Route:
        """Decide about a sender. Who asks for another destination than its rule's gets none: it would not know."""
        number = next((index for index, rule in enumerate(self.rules, 1) if rule.matches(sender)), None)
        if number is None:
            if self.denies_others:
                return Route(None, None, "no rule lets this sender in")
            found = DEFAULT
        elif (destination := self.rules[number - 1].destination) is None:
            return Route(None, number, f"rule {number} denies this sender")
        else:
            found = destination
        if sender.asks_for is not None and sender.asks_for != found:
            by = "no rule lets this sender choose it" if number is None else f"rule {number} sends it to {found!r}"
            return Route(None, number, f"the destination {sender.asks_for!r} is not for this sender: {by}")
        return Route(found, number)

    def reachable(self, uid: int, gids: frozenset[int], sockets: Iterable[SocketKind]) -> frozenset[str]:
        """Return every destination to which a user's events may go over these sockets, whichever team they name or ask for."""
        found: set[str | None] = set()
        for socket in sockets:
            sender = Sender(socket) if socket == "tcp" else Sender(socket, uid, gids)
            for rule in self.rules:
                of_any_team = rule._replace(team_id=None, slug=None, asks_for=None)
                if of_any_team.matches(sender):
                    found.add(rule.destination)
                    if rule == of_any_team:
                        break
            else:
                found.add(None if self.denies_others else DEFAULT)
        return frozenset(name for name in found if name is not None)

    def rule_of(self, route: Route) -> Rule | None:
        """Return the rule that decided."""
        return None if route.rule is None else self.rules[route.rule - 1]


NO_RULES = Rules()


class Dead(NamedTuple):
    """A rule, by number from 1, that can never decide, and why."""

    rule: int
    reason: str


def dead_rules(rules: Sequence[Rule]) -> Iterator[Dead]:
    """Find rules that can never decide: what they want is never said, or an earlier rule takes all that they match."""
    for number, rule in enumerate(rules, 1):
        if contradiction := _contradiction(rule):
            yield Dead(number, contradiction)
            continue
        for earlier, other in enumerate(rules[: number - 1], 1):
            if _covers(other, rule):
                yield Dead(number, f"rule {earlier} takes everybody whom it matches: put it before that one")
                break


def passed_by_datagrams(rules: Sequence[Rule]) -> Iterator[int]:
    """Find rules, by number from 1, that deny a group: of who sends a datagram only the first group is known."""
    for number, rule in enumerate(rules, 1):
        if rule.destination is None and rule.gid is not None and (rule.socket is None or "datagram" in rule.socket):
            yield number


def _covers(first: Rule, second: Rule) -> bool:
    """Tell whether the first matches whatever the second does."""
    wanted = second.conditions
    return all(name in wanted and wanted[name] <= allowed for name, allowed in first.conditions.items())


def _contradiction(rule: Rule) -> str | None:
    """Say which conditions no sender can meet together."""
    sockets = frozenset(SOCKETS) if rule.socket is None else rule.socket
    for names, said_on, what in (
        (("uid", "gid"), _SAY_WHO, "who connects"),
        (("team_id", "slug"), _SAY_TEAM, "for which team it is"),
        (("asks_for",), _ASK, "which destination is asked for"),
    ):
        if any(getattr(rule, name) is not None for name in names):
            sockets &= said_on
            if not sockets:
                return f"nothing says {what} on the sockets that are left: change {' or '.join(names)}, or socket"
    return None
