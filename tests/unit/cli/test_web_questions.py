"""What a request for the page may ask, and what is said of one that asks something else."""

import pytest

from agent.cli.views.web_page import Asked
from agent.cli.web.questions import BadQuestionError, asked_in, period_of
from agent.usage.report import Period

NOW = 1_750_000_000.0
HOUR = int(NOW // 3600)


@pytest.mark.parametrize(
    ("query", "asked", "period"),
    [
        ({}, Asked("7d"), Period(since=HOUR - 168)),
        ({"since": " ", "until": "", "session": "", "refresh": ""}, Asked("7d"), Period(since=HOUR - 168)),
        ({"since": "24h", "refresh": "off"}, Asked("24h", refresh="off"), Period(since=HOUR - 24)),
        ({"since": "2d", "until": " 1d "}, Asked("2d", "1d"), Period(HOUR - 48, HOUR - 23)),
        ({"since": "2025-06-01"}, Asked("2025-06-01"), Period(since=485_760)),
        ({"session": "s & s"}, Asked("", "", "s & s"), Period(session="s & s")),
        ({"session": "s", "since": "1h"}, Asked("1h", "", "s"), Period(HOUR - 1, None, "s")),
    ],
)
def test_it_is_about_whole_hours(query: dict[str, str], asked: Asked, period: Period) -> None:
    assert asked_in(query) == asked
    assert period_of(asked, NOW) == period


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            {"since": "yesterday"},
            "since: 'yesterday' is not a time: write it like \"7d\" (ago; units are s, m, h and d)",
        ),
        ({"until": "9999-12-31T23:59"}, "until: '9999-12-31T23:59' is not a time"),
        ({"since": "0001-01-01"}, "since: '0001-01-01' is not a time"),
        ({"since": "99999999d"}, "since: '99999999d' is not a time"),
        ({"since": "1d", "until": "2d"}, "the first has to be before the second"),
        ({"since": "1d", "until": "1d"}, "the first has to be before the second"),
        ({"until": "8d"}, "since is '7d' and until is '8d': the first has to be before the second."),
        ({"refresh": "1"}, "refresh is '1': it may be off, 30, 60, 300"),
        ({"sinec": "1d"}, "There is no parameter 'sinec', only since, until, session, refresh."),
        ({"session": "x" * 513}, "session is too long: it may have 512 characters"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(query: dict[str, str], said: str) -> None:
    with pytest.raises(BadQuestionError) as refused:
        period_of(asked_in(query), NOW)
    assert said in str(refused.value)
