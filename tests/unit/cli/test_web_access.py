"""Who may see the page of `web`."""

from base64 import b64encode

import pytest

from agent.cli.web.access import is_loopback, refusal
from agent.secret import Secret

TOKEN = Secret("s3cret:with~colon")


def basic(pair: str) -> str:
    return f"Basic {b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9901", "127.0.0.1", "localhost", "localhost:8000", "LOCALHOST:80", "[::1]:9901", "127.8.8.8", "[::1]"],
)
def test_without_a_token_the_names_of_this_machine_will_do(host: str) -> None:
    assert refusal({"host": host}, None) is None


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:9901", "127.0.0.1.evil.example", "localhost.evil.example", "localhost."),
        *(
            "10.0.0.1:9901",
            "[::2]:9901",
            "0.0.0.0:9901",
            "[::ffff:10.0.0.1]",
            "evil@127.0.0.1.example",
            "[",
            "2130706433",
        ),
        *("evil.example#127.0.0.1", "evil.example/localhost", "evil.example?localhost", "a b", "\xff"),
    ],
)
def test_without_a_token_a_name_of_elsewhere_is_refused(host: str) -> None:
    refused = refusal({"host": host}, None)
    assert refused is not None
    assert refused.status == 403
    assert "127.0.0.1 and localhost" in refused.message


def test_without_a_token_no_token_is_asked_for() -> None:
    assert refusal({"host": "localhost", "authorization": "Basic !"}, None) is None


@pytest.mark.parametrize(
    "authorization",
    [
        *(basic(f"anybody:{TOKEN.reveal()}"), basic(f":{TOKEN.reveal()}")),
        *(f"Bearer {TOKEN.reveal()}", f"bearer  {TOKEN.reveal()} "),
        basic(f"ü:{TOKEN.reveal()}").replace("Basic", "bAsIc"),
    ],
)
def test_with_the_token_any_name_will_do(authorization: str) -> None:
    assert refusal({"host": "proxy.example", "authorization": authorization}, TOKEN) is None


@pytest.mark.parametrize(
    "authorization",
    [
        *(
            "",
            "Basic",
            "Basic !",
            "Basic /w==",
            "Bearer",
            "Bearer s3cret",
            "Digest s3cret:with~colon",
            "s3cret:with~colon",
        ),
        *(
            basic("s3cret"),
            basic("s3cret:with~colon"),
            basic("anybody:"),
            basic("a:s3cret:with~colo"),
            "Bearer \xff",
            "Basic \xff",
        ),
    ],
)
def test_without_the_right_token_a_browser_is_asked_for_it(authorization: str) -> None:
    for headers in ({"host": "localhost"}, {"host": "localhost", "authorization": authorization}):
        refused = refusal(headers, TOKEN)
        assert refused is not None
        assert refused.status == 401
        assert dict(refused.headers)["www-authenticate"].startswith("Basic realm=")
        assert TOKEN.reveal() not in str(refused)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:0", True), ("[::1]:1", True), ("127.1.2.3:1", True), ("0.0.0.0:1", False), ("[::]:1", False)],
)
def test_what_others_can_reach_is_known_by_its_address(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
