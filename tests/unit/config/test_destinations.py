"""Destinations and rules in the configuration: what is inherited, where tokens are found, and what is said of mistakes."""

from pathlib import Path

import pytest

from agent.config import Config, load, read_http_tokens, read_token, token_source
from agent.errors import ConfigError
from agent.rules import Rule
from agent.secret import Secret

ENVIRON = {"HOME": "/home/ci", "XDG_RUNTIME_DIR": "/run/user/1000"}


def loaded(directory: Path, text: str, **environ: str) -> Config:
    path = directory / "agent.toml"
    path.write_text(text)
    return load(path, ENVIRON | environ, euid=1000)


def problems(directory: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(directory, text, **environ)
    return str(caught.value).replace(f"{directory}/agent.toml: ", "").splitlines()


def test_a_destination_takes_over_what_it_leaves_out_but_not_what_is_one_accounts_alone(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        api = { url = "http://127.0.0.1:9", token_file = "token", team_id = "team_a", timeout = "3s" }
        batch = { max_events = 7, max_delay = "1s" }
        [destinations.web]
        slug = "web"
        batch.max_events = 5
        [destinations.mobile]
        url = "http://127.0.0.1:8"
        """,
    )
    default, web, mobile = config.accounts.values()
    assert list(config.accounts) == ["default", "web", "mobile"]
    assert (default.api, default.batch) == (config.api, config.batch)
    assert (web.api.url, web.api.timeout, web.api.token_file) == ("http://127.0.0.1:9", 3.0, None)
    assert (web.api.team_id, web.api.slug) == (None, "web")
    assert (web.batch.max_events, web.batch.max_delay) == (5, 1.0)
    assert (mobile.api.url, mobile.api.team_id, mobile.batch) == ("http://127.0.0.1:8", "team_a", config.batch)


def test_where_a_destination_is_forwarded_to_is_its_own_alone(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        forward = { servers = "nats://a:4222, tls://b", team = "web", pool = "ci", credentials = "ci.creds" }
        [destinations.mobile]
        [destinations.shop]
        forward = { servers = ["nats://c/"], team = "shop", pool = "ci", credentials = "shop.creds" }
        """,
    )
    default, mobile, shop = [each.forward for each in config.accounts.values()]
    assert (default.servers, default.credentials) == (("nats://a:4222", "tls://b"), tmp_path / "ci.creds")
    assert mobile.servers is None
    assert (shop.servers, shop.team, shop.credentials) == (("nats://c",), "shop", tmp_path / "shop.creds")
    turned_off = loaded(tmp_path, "", ARTIFACTS_AGENT_FORWARD_SERVERS="")
    assert turned_off.forward.servers is None


def test_a_password_among_the_servers_is_not_shown(tmp_path: Path) -> None:
    servers = 'forward = { servers = ["nats://me:hunter2@a"], team = "web", pool = "ci" }'
    (problem,) = problems(tmp_path, servers)
    assert "hunter2" not in problem
    assert "forward.credentials" in problem


def test_a_variable_for_the_default_counts_for_those_that_take_it_over(tmp_path: Path) -> None:
    config = loaded(tmp_path, "[destinations.web]\n", ARTIFACTS_AGENT_API_TIMEOUT="2s")
    assert config.accounts["web"].api.timeout == 2.0


def test_rules_take_names_and_numbers_one_or_several(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        listen.default = "deny"
        [destinations.web]
        [[rules]]
        uid = "root"
        gid = ["root", 7, "8"]
        socket = "stream"
        destination = "web"
        max_events_per_second = 10
        max_bytes_per_second = "1MB"
        weight = 2
        [[rules]]
        slug = ["a", "b"]
        team_id = "team_a"
        asks_for = "default"
        deny = true
        """,
    )
    first = Rule("web", frozenset({0}), frozenset({0, 7, 8}), frozenset({"stream"}))
    second = Rule(None, team_id=frozenset({"team_a"}), slug=frozenset({"a", "b"}), asks_for=frozenset({"default"}))
    assert config.routing.rules == (
        first._replace(max_events_per_second=10, max_bytes_per_second=1_000_000, weight=2),
        second,
    )
    assert config.routing.denies_others


def test_tokens_are_found_for_each_destination(tmp_path: Path) -> None:
    (tmp_path / "web-token").write_text("of-web\n")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "token.mobile").write_text("of-mobile")
    environ = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "ARTIFACTS_AGENT_DESTINATIONS_TV_2_TOKEN": "of-tv",
        "TURBO_TOKEN": "of-default",
    }
    text = "[destinations.web]\ntoken_file = 'web-token'\n[destinations.mobile]\n[destinations.tv-2]\n[destinations.none]\n"
    config = loaded(tmp_path, text, **environ)
    found = {name: read_token(config, environ, name) for name in config.accounts}
    assert {name: token and token.reveal() for name, token in found.items()} == {
        "default": "of-default",
        "web": "of-web",
        "mobile": "of-mobile",
        "tv-2": "of-tv",
        "none": None,
    }
    assert token_source(config, environ, "web") == tmp_path / "web-token"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("destinations = 3", "destinations: should be tables: write [destinations.NAME] above the keys of each"),
        ("destinations.web = 3", "destinations.web: should be a table: write [destinations.web] above its keys"),
        ("[destinations.web]\nurk = 3", "destinations.web.urk: unknown key; the nearest is url"),
        (
            "[destinations.web.batch]\nmax = 3",
            "destinations.web.batch.max: unknown key; the nearest is batch.max_delay",
        ),
        (
            "[destinations.web]\nbatch = 3",
            "destinations.web.batch: should be a table: write [destinations.web.batch] above its keys",
        ),
        ("[destinations.web]\ntimeout = 0", "destinations.web.timeout = 0: should be greater than 0"),
        (
            "[destinations.web.retry]\ninitial_delay = '1h'",
            (
                "destinations.web.retry.initial_delay = '1h': retry.max_delay and retry.initial_delay do not fit: "
                "max_delay must be at least initial_delay, here 3600.0"
            ),
        ),
        (
            "[destinations.'../web']",
            (
                "destinations.../web: should be a name of at most 32 lower-case letters, digits and hyphens, such as web-2: "
                "it names a directory"
            ),
        ),
        (
            "[destinations.a]\n[destinations.'a.b']\nslug = 'web'\nbatch.max_events = 3",
            (
                "destinations.a.b: should be a name of at most 32 lower-case letters, digits and hyphens, such as web-2: "
                "it names a directory"
            ),
        ),
        (
            "[destinations.default]",
            "destinations.default: default is the one that [api] describes: choose another name",
        ),
        ("rules = 3", "rules: should be an array of tables: write [[rules]] above the keys of each"),
        ("[[rules]]\ndeny = true\nsockte = 'tcp'", "rule 1: sockte: unknown key; the nearest is socket"),
        ("[[rules]]\nuid = 1", "rule 1: should have either destination or deny = true"),
        ("[[rules]]\ndeny = true\ndestination = 'default'", "rule 1: should have either destination or deny = true"),
        (
            "[[rules]]\ndeny = true\nuid = 'no-such-user'",
            "rule 1: uid = 'no-such-user': there is no user 'no-such-user' here: create it, or write its number",
        ),
        (
            "[[rules]]\ndeny = true\ngid = 'no-such-group'",
            "rule 1: gid = 'no-such-group': there is no group 'no-such-group' here: create it, or write its number",
        ),
        ("[[rules]]\ndeny = true\nuid = true", "rule 1: uid = True: should be a user, by name or number"),
        (
            "[[rules]]\ndeny = true\nslug = []",
            "rule 1: slug = []: is empty, so that nobody could match: leave it out to match everybody",
        ),
        (
            "[[rules]]\ndeny = true\n[[rules]]\ndestination = 'web'",
            (
                "rule 2: destination = 'web': there is no destination 'web', only default: write [destinations.web], "
                "or correct the name"
            ),
        ),
        (
            "[destinations.web]\n[[rules]]\ndestination = 'web'\nasks_for = ['web', 'mobile']",
            (
                "rule 1: asks_for = ['web', 'mobile']: there is no destination 'mobile', only default, web: "
                "write [destinations.mobile], or correct the name"
            ),
        ),
        (
            "[destinations.web]\n[http]\ntokens = { web = 3 }",
            "http.tokens.web = (not shown, it may hold a secret): is not a valid path",
        ),
        (
            "[[rules]]\ndeny = 'true'",
            "rule 1: deny = 'true': should be true or false, without quotes",
        ),
        ("[[rules]]\ndeny = 1", "rule 1: deny = 1: should be true or false, without quotes"),
        (
            "[[rules]]\ndeny = true\nmax_events_per_second = 5",
            "rule 1: has deny = true, which lets nothing in: remove max_events_per_second, or deny",
        ),
        (
            "[http]\ntokens = { web = 'a' }",
            (
                "http.tokens.web = (not shown, it may hold a secret): there is no destination 'web', only default: "
                "write [destinations.web], or correct the name"
            ),
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, found: str) -> None:
    assert problems(tmp_path, text) == [found]


def test_a_mistake_that_is_taken_over_is_named_once(tmp_path: Path) -> None:
    text = "batch.max_events = 0\n[destinations.web]\n[destinations.mobile]"
    assert problems(tmp_path, text) == ["batch.max_events = 0: should be greater than or equal to 1"]


CLIENTS = """
    [http]
    listen = "127.0.0.1:0"
    token_file = "default-clients"
    tokens = { web = "web-clients", mobile = "mobile-clients" }
    [destinations.web]
    [destinations.mobile]
"""


@pytest.mark.parametrize(
    ("files", "before", "tokens", "wrong"),
    [
        ({"mobile": ""}, {}, {"default": "d", "web": "w"}, "token is empty"),
        ({"mobile": ""}, {"mobile": "m"}, {"default": "d", "web": "w", "mobile": "m"}, "token is empty"),
        ({"mobile": "w"}, {}, {"default": "d"}, "have the same token"),
        ({"mobile": "w"}, {"web": "w", "mobile": "m"}, {"default": "d", "web": "w", "mobile": "m"}, "the same token"),
        ({"mobile": "w"}, {"web": "w", "mobile": "d"}, {"default": "d", "web": "w"}, "have the same token"),
        ({"mobile": "d"}, {}, {"default": "d", "web": "w"}, "default and mobile have the same token"),
        ({"mobile": "w", "web": "m"}, {"web": "w", "mobile": "m"}, {"default": "d", "web": "m", "mobile": "w"}, ""),
        ({"default": "two\nlines"}, {"default": "d"}, {"default": "d", "web": "w", "mobile": "m"}, "several lines"),
    ],
)
def test_a_clients_token_that_is_not_usable_concerns_its_own_destination_alone(
    tmp_path: Path, files: dict[str, str], before: dict[str, str], tokens: dict[str, str], wrong: str
) -> None:
    for name, content in ({"default": "d", "web": "w", "mobile": "m"} | files).items():
        (tmp_path / f"{name}-clients").write_text(content)
    config = loaded(tmp_path, CLIENTS)
    found = read_http_tokens(config, {}, {name: Secret(token) for name, token in before.items()})
    assert {name: token.reveal() for name, token in found.tokens.items()} == tokens
    assert bool(wrong) == bool(found.problems)
    for problem in found.problems.values():
        assert wrong in problem


def test_a_token_for_no_destination_is_a_mistake(tmp_path: Path) -> None:
    variable = "ARTIFACTS_AGENT_DESTINATIONS_WEBS_TOKEN"
    there = "there are ARTIFACTS_AGENT_DESTINATIONS_WEB_TOKEN"
    assert problems(tmp_path, "[destinations.web]", **{variable: "x"}) == [
        f"{variable}: is the token of no destination: {there}"
    ]
    assert problems(tmp_path, "", **{variable: "x"}) == [
        f"{variable}: is the token of no destination: no destination is configured"
    ]


def test_what_all_queues_may_use_together_is_enough_for_each(tmp_path: Path) -> None:
    text = '[queue]\ntotal_bytes = "{}"\n[destinations.web]\n[destinations.mobile]\n'
    assert loaded(tmp_path, text.format("768KiB")).queue.total_bytes == 768 * 1024
    (problem,) = problems(tmp_path, text.format("767KiB"))
    assert "queue.total_bytes" in problem
    assert "is too small to share: 3 destinations need at least 786432, 256 KiB each" in problem


@pytest.mark.parametrize(
    "text",
    [
        "[[rules]]\ndestination = '{}'",
        "[[rules]]\nasks_for = ['web', '{}']\ndestination = 'default'",
        "[[rules]]\nuid = ['{}']\ndeny = true",
        "[[rules]]\nuid = 'Bearer {}'\ndeny = true",
        "[http]\ntokens = {{ '{}' = '/x' }}",
        "[destinations.web]\n[http]\ntokens = {{ web = ['{}'] }}",
        "[destinations.web]\nslug = ['{}']",
    ],
)
@pytest.mark.parametrize("pasted", ["vcp_abcdefghijklmnop0123456789abcdef", "2dhDyTsR5Jx0lsSw9qkD1v4C"])
def test_a_token_in_any_place_is_not_shown(tmp_path: Path, text: str, pasted: str) -> None:
    (problem,) = problems(tmp_path, text.format(pasted))
    assert "(not shown, it may hold a secret)" in problem
    assert pasted not in problem
