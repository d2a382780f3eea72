"""When the API counts as failing, and for whom that makes a difference."""

import pytest

from agent.http.outage import FORGOTTEN_SECONDS, FRESH_SECONDS, LASTING_SECONDS, Outage, insists

Noted = list[tuple[float, int | None]]

CASES: dict[str, tuple[Noted, bool]] = {
    "nothing asked": ([], False),
    "it answers": ([(0, 200), (9, 404)], False),
    "one failure, after which asking again may help": ([(0, 503)], False),
    "two requests of one moment": ([(0, 503), (0.1, 503)], False),
    "a third one in a row, which would be turbo's last": ([(0, 503), (0.1, 503), (0.2, 503)], True),
    "whoever waited and asked again": ([(0, None), (LASTING_SECONDS, None)], True),
    "429 and 5xx alike": ([(0, 429), (2, 500)], True),
    "an answer in between": ([(0, 503), (1, 404), (2, 503)], False),
    "an answer since": ([(0, 503), (2, 503), (3, 200)], False),
    "refusals are answers": ([(0, 401), (2, 403), (4, 501)], False),
    "a failure long ago": ([(0, None), (FORGOTTEN_SECONDS, None)], False),
}


@pytest.mark.parametrize(("noted", "lasts"), CASES.values(), ids=CASES.keys())
def test_an_outage_lasts_if_asking_again_has_not_helped(noted: Noted, lasts: bool) -> None:
    outage = Outage()
    for now, status in noted:
        outage.note(now, status)
    assert outage.lasts == lasts
    assert outage.is_fresh(noted[-1][0] if noted else 0) == lasts


def test_the_api_is_asked_again_after_a_while() -> None:
    outage = Outage()
    outage.note(0, None)
    outage.note(2, None)
    assert outage.is_fresh(2 + FRESH_SECONDS - 0.1)
    assert not outage.is_fresh(2 + FRESH_SECONDS)
    assert outage.lasts


@pytest.mark.parametrize(
    ("user_agent", "does"),
    [
        ("turbo 1.10.16 go1.20.10 linux (amd64)", True),
        ("turbo 2.11.11 1.98.0-nightly linux x86_64", False),
        ("curl/8 turbo 1 go1", False),
        ("", False),
    ],
)
def test_it_is_turbo_in_go_that_asks_for_longer_than_alone(user_agent: str, does: bool) -> None:
    assert insists(user_agent) == does
