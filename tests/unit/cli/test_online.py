"""What the server's answers show of the token: the judgement behind `check --online`, as a table."""

import random
import string

import pytest

from agent.cli.checks.online import Answers, judge, wrong_token
from agent.delivery.http_transport import classify
from agent.delivery.transport import Kind, Verdict

ENABLED = Verdict(Kind.ACCEPTED, "enabled", 200)
DISABLED = Verdict(Kind.BLOCKED, "the account's Remote Caching status is 'disabled'", 200)
PAGE = Verdict(Kind.ACCEPTED, "the server's status cannot be read", 200)
GONE = Verdict(Kind.TRANSIENT, "cannot reach it")
BROKEN = Verdict(Kind.CUT_OFF, "the connection broke")


def got(status: int) -> Verdict:
    return classify(status, {}, b"", now=0.0)


OK, FOUND, BAD, UNAUTHORIZED, FORBIDDEN, ABSENT, BUSY, DOWN = map(got, (200, 302, 400, 401, 403, 404, 429, 503))
NO_METHOD = got(405)

Case = tuple[Verdict, Verdict, Verdict, Verdict]

PROVEN: dict[str, Case] = {
    "status open to all, artifacts not (turborepo-remote-cache)": (ENABLED, ABSENT, ENABLED, UNAUTHORIZED),
    "nothing open (Vercel)": (ENABLED, ABSENT, FORBIDDEN, FORBIDDEN),
    "artifacts want a team, after the token": (ENABLED, BAD, ENABLED, UNAUTHORIZED),
    "it has every artifact": (ENABLED, OK, ENABLED, UNAUTHORIZED),
    "no status": (ABSENT, ABSENT, ABSENT, UNAUTHORIZED),
    "no HEAD, but a status that is not open": (ENABLED, NO_METHOD, UNAUTHORIZED, NO_METHOD),
    "artifacts in trouble, but a status that is not open": (ENABLED, DOWN, UNAUTHORIZED, DOWN),
}
NOT_PROVEN: dict[str, Case] = {
    "not found to everybody": (ENABLED, ABSENT, ENABLED, ABSENT),
    "found to everybody": (ENABLED, OK, ENABLED, OK),
    "bad request to everybody": (ENABLED, BAD, ENABLED, BAD),
    "found without a status": (ABSENT, OK, ABSENT, OK),
    "busy": (ENABLED, BUSY, ENABLED, BUSY),
    "down for artifacts": (ENABLED, DOWN, ENABLED, UNAUTHORIZED),
    "busy for the wrong token": (ENABLED, ABSENT, ENABLED, BUSY),
    "unreachable for the wrong token": (ENABLED, ABSENT, GONE, GONE),
    "a redirect for artifacts": (ENABLED, FOUND, ENABLED, UNAUTHORIZED),
}
CANNOT_WORK: dict[str, tuple[Case, str]] = {
    "wrong token": ((ENABLED, UNAUTHORIZED, ENABLED, UNAUTHORIZED), "401 Unauthorized: check the token"),
    "wrong team": ((ENABLED, FORBIDDEN, ENABLED, FORBIDDEN), "403 Forbidden: check the token, the team"),
    "wrong token for the status": ((UNAUTHORIZED, ABSENT, UNAUTHORIZED, ABSENT), "check the token"),
    "disabled": ((DISABLED, ABSENT, DISABLED, UNAUTHORIZED), "'disabled': check the token, the team and the account"),
    "nobody there": ((GONE, GONE, GONE, GONE), "cannot reach it: check api.url"),
    "nobody there any more": ((ENABLED, BROKEN, ENABLED, BROKEN), "the connection broke: check api.url"),
    "down": ((DOWN, DOWN, DOWN, DOWN), "delivery would try again"),
    "a redirect": ((FOUND, FOUND, FOUND, FOUND), "correct api.url"),
    "a page": ((PAGE, OK, PAGE, OK), "cannot be read: check api.url"),
    "another server": ((ABSENT, ABSENT, ABSENT, ABSENT), "it knows nothing below /v8/artifacts (404 Not Found)"),
}


def judged(case: Case) -> tuple[bool, bool, str]:
    found = judge(Answers(*case[:2]), Answers(*case[2:]))
    return found.ok, found.proven, found.message


@pytest.mark.parametrize("case", PROVEN.values(), ids=PROVEN)
def test_who_refuses_a_wrong_token_and_not_this_one_has_proven_it(case: Case) -> None:
    ok, proven, said = judged(case)
    assert (ok, proven) == (True, True)
    assert said.startswith("it accepts the token, and refuses a wrong one (40")


@pytest.mark.parametrize("case", NOT_PROVEN.values(), ids=NOT_PROVEN)
def test_who_answers_everybody_alike_or_is_in_trouble_has_proven_nothing(case: Case) -> None:
    ok, proven, said = judged(case)
    assert (ok, proven) == (True, False)
    assert said.startswith("not proven: ")


@pytest.mark.parametrize(("case", "said"), CANNOT_WORK.values(), ids=CANNOT_WORK)
def test_what_cannot_work_is_a_problem_and_says_what_to_do(case: Case, said: str) -> None:
    ok, proven, message = judged(case)
    assert (ok, proven) == (False, False)
    assert said in message


def test_without_a_token_nothing_is_proven() -> None:
    assert judge(Answers(ENABLED, ABSENT), None).message == "not proven: it answers, but there is no token to ask with"


@pytest.mark.parametrize("token", ["vcp_Ab3-Zz9.x", "a", "0", "aaaaaaaaaaaaaaaaaaaaaaaa"])
def test_a_wrong_token_looks_like_the_right_one_and_has_none_of_its_letters_and_digits(token: str) -> None:
    wrong = wrong_token(token, random.Random(7).choice)
    assert len(wrong) == len(token)
    for there, here in zip(wrong, token, strict=True):
        assert (there == here) is (here in string.punctuation)
        assert (there.islower(), there.isupper(), there.isdigit()) == (here.islower(), here.isupper(), here.isdigit())
