"""Rules: the first that matches decides, whoever asks for another destination gets none, and dead rules are found."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rules import (
    DEFAULT,
    SOCKETS,
    Dead,
    Route,
    Rule,
    Rules,
    Sender,
    SocketKind,
    dead_rules,
    passed_by_datagrams,
    user_number,
)

NAMES = ("web", "mobile")
USERS, GROUPS, TEAMS = (1, 2), (10, 20), ("a", "b")


def wanted(*values: object) -> st.SearchStrategy[object]:
    return st.none() | st.frozensets(st.sampled_from(values), min_size=1)


RULES = st.lists(
    st.builds(
        Rule,
        st.sampled_from([None, DEFAULT, *NAMES]),
        wanted(*USERS),
        wanted(*GROUPS),
        wanted(*SOCKETS),
        wanted(*TEAMS),
        wanted(*TEAMS),
        wanted(DEFAULT, *NAMES),
    ),
    max_size=5,
)

_SUBSETS_OF_GROUPS = [frozenset(), *map(frozenset, [{10}, {20}, {10, 20}])]


def _senders() -> list[Sender]:
    """Return every sender that there can be: only Unix sockets say who it is, HTTP the team, and lines ask."""
    found = []
    for socket in SOCKETS:
        who = [(None, frozenset[int]())] if socket == "tcp" else list(product([*USERS, 3], _SUBSETS_OF_GROUPS))
        over_http = socket in {"http", "tcp"}
        teams = list(product([None, *TEAMS], repeat=2)) if over_http else [(None, None)]
        asked = [None] if over_http else [None, DEFAULT, *NAMES]
        for (uid, gids), (team_id, slug), asks_for in product(who, teams, asked):
            found.append(Sender(socket, uid, gids, team_id, slug, asks_for))
    return found


SENDERS = _senders()


def naive(rules: Rules, sender: Sender) -> str | None:
    """Say where a sender's events go, as the documents tell it."""
    facts = {
        "uid": {sender.uid},
        "gid": set(sender.gids),
        "socket": {sender.socket},
        "team_id": {sender.team_id},
        "slug": {sender.slug},
        "asks_for": {sender.asks_for},
    }
    destination = None if rules.denies_others else DEFAULT
    for rule in rules.rules:
        conditions = {name: getattr(rule, name) for name in facts}
        if all(want is None or want & facts[name] for name, want in conditions.items()):
            destination = rule.destination
            break
    return destination if sender.asks_for in {None, destination} else None


@given(RULES, st.booleans(), st.sampled_from(SENDERS))
def test_rules_decide_as_a_naive_reader_of_them_does(rules: list[Rule], denies: bool, sender: Sender) -> None:
    found = Rules(rules, denies).route(sender)
    assert found.destination == naive(Rules(rules, denies), sender)
    assert (found.reason is None) == (found.destination is not None)
    if found.rule is not None:
        assert not any(rule.matches(sender) for rule in rules[: found.rule - 1])
        assert Rules(rules, denies).rule_of(found) is rules[found.rule - 1]


@given(
    RULES,
    st.booleans(),
    st.sampled_from([*USERS, 3]),
    st.sampled_from(_SUBSETS_OF_GROUPS),
    st.sets(st.sampled_from(SOCKETS)),
)
def test_events_of_a_user_go_nowhere_but_to_what_is_called_reachable(
    rules: list[Rule], denies: bool, uid: int, gids: frozenset[int], sockets: set[SocketKind]
) -> None:
    these = [
        each
        for each in SENDERS
        if each.socket in sockets and (each.uid, each.gids) in {(uid, gids), (None, frozenset())}
    ]
    found = {naive(Rules(rules, denies), sender) for sender in these} - {None}
    assert found <= Rules(rules, denies).reachable(uid, gids, sockets) <= {DEFAULT, *NAMES}


@pytest.mark.parametrize(
    ("rules", "sockets", "reachable"),
    [
        (Rules(), SOCKETS, {DEFAULT}),
        (Rules((), True), SOCKETS, set()),
        (Rules([Rule("web", uid=frozenset({1}))]), ("stream", "http"), {"web"}),
        (Rules([Rule("web", uid=frozenset({1}))]), SOCKETS, {"web", DEFAULT}),
        (Rules([Rule("web", slug=frozenset({"a"})), Rule(None)]), ("http",), {"web"}),
        (Rules([Rule("web", uid=frozenset({2}))], True), ("stream",), set()),
    ],
)
def test_where_events_of_a_user_may_go(rules: Rules, sockets: tuple[SocketKind, ...], reachable: set[str]) -> None:
    assert rules.reachable(1, frozenset({10}), sockets) == reachable


@given(RULES)
def test_a_rule_that_is_called_dead_decides_about_no_sender_there_can_be(rules: list[Rule]) -> None:
    deciding = {Rules(rules).route(sender).rule for sender in SENDERS}
    assert not deciding & {dead.rule for dead in dead_rules(rules)}


@pytest.mark.parametrize(
    ("rules", "sender", "route"),
    [
        (Rules(), Sender("stream", 1), Route(DEFAULT)),
        (Rules(), Sender("stream", 1, asks_for=DEFAULT), Route(DEFAULT)),
        (Rules((), True), Sender("stream", 1), Route(None, None, "no rule lets this sender in")),
        (Rules([Rule("web", uid=frozenset({1}))]), Sender("datagram", 1), Route("web", 1)),
        (Rules([Rule(None), Rule("web")]), Sender("tcp"), Route(None, 1, "rule 1 denies this sender")),
        (Rules([Rule("web", gid=frozenset({7}))]), Sender("http", 1, frozenset({5, 7})), Route("web", 1)),
        (
            Rules([Rule("web")]),
            Sender("stream", 1, asks_for="mobile"),
            Route(None, 1, "the destination 'mobile' is not for this sender: rule 1 sends it to 'web'"),
        ),
        (
            Rules(),
            Sender("stream", 1, asks_for="web"),
            Route(None, None, "the destination 'web' is not for this sender: no rule lets this sender choose it"),
        ),
    ],
)
def test_where_events_go(rules: Rules, sender: Sender, route: Route) -> None:
    assert rules.route(sender) == route
    assert rules.rule_of(Route(DEFAULT)) is None


ONE, BOTH = frozenset({1}), frozenset({1, 2})
TCP: frozenset[SocketKind] = frozenset({"tcp"})


@pytest.mark.parametrize(
    ("rules", "dead"),
    [
        ([], []),
        ([Rule("web", uid=ONE), Rule("web")], []),
        ([Rule("web"), Rule("mobile", uid=ONE)], [2]),
        ([Rule("web", uid=BOTH), Rule("mobile", uid=ONE, slug=frozenset("a"))], [2]),
        ([Rule("web", uid=ONE), Rule("mobile", uid=BOTH)], []),
        ([Rule("web", socket=TCP, gid=ONE)], [1]),
        ([Rule("web", socket=frozenset({"stream"}), slug=frozenset("a"))], [1]),
        ([Rule("web", socket=TCP, asks_for=frozenset({"web"}))], [1]),
        ([Rule("web", uid=ONE, slug=frozenset("a"), socket=frozenset({"http", "tcp"}))], []),
        ([Rule("web", slug=frozenset("a"), asks_for=frozenset({"web"}))], [1]),
    ],
)
def test_dead_rules_are_found(rules: list[Rule], dead: list[int]) -> None:
    assert [each.rule for each in dead_rules(rules)] == dead


def test_rules_that_deny_a_group_are_passed_by_datagrams_unless_they_are_for_other_sockets() -> None:
    group, stream, datagram = frozenset({7}), frozenset({"stream"}), frozenset({"stream", "datagram"})
    rules = [Rule(None, gid=group), Rule("web", gid=group), Rule(None, uid=group), Rule(None, gid=group, socket=stream)]
    assert [*passed_by_datagrams([*rules, Rule(None, gid=group, socket=datagram)])] == [1, 5]


def test_rules_are_trivial_if_everybodys_events_go_to_the_default() -> None:
    assert Rules().is_trivial
    assert not Rules([Rule("web")]).is_trivial
    assert not Rules(denies_others=True).is_trivial


def test_a_dead_rule_says_why() -> None:
    found = list(dead_rules([Rule("web"), Rule("mobile", uid=ONE), Rule("web", socket=TCP, gid=ONE)]))
    assert found == [
        Dead(2, "rule 1 takes everybody whom it matches: put it before that one"),
        Dead(3, "nothing says who connects on the sockets that are left: change uid or gid, or socket"),
    ]


def test_rules_are_trivial_only_if_nobody_gets_elsewhere() -> None:
    assert Rules().is_trivial
    assert not Rules(denies_others=True).is_trivial
    assert not Rules([Rule(DEFAULT)]).is_trivial


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1000", 1000),
        ("4294967294", 4294967294),
        ("4294967295", None),
        ("99999999999", None),
        ("9" * 5000, None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("\N{ARABIC-INDIC DIGIT TWO}", None),
        ("-1", None),
        ("ci", None),
        ("", None),
    ],
)
def test_a_users_number_is_one_that_the_kernel_could_name(text: str, number: int | None) -> None:
    assert user_number(text) == number
