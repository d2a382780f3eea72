"""What a secret promises: it can be told whether two are the same, and nothing that is written down shows one."""

import copy

from agent.secret import Secret


def test_nothing_that_is_written_down_shows_it() -> None:
    secret = Secret("sekret-4711")
    assert secret.reveal() == "sekret-4711"
    assert {str(secret), repr(secret), f"{secret}", f"{[secret]}"} == {"Secret(…)", "[Secret(…)]"}


def test_the_same_text_is_the_same_secret() -> None:
    assert Secret("a") == Secret("a") == copy.copy(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
