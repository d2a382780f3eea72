"""What `agent.config` promises: the documented defaults, one order of sources, and errors that say what to do."""

import os
import re
import socket
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from agent.config import (
    KEYS,
    RESTART_KEYS,
    VARIABLES,
    Config,
    Directories,
    control_socket,
    differences,
    exposed_token_files,
    load,
    needs_restart,
    read_http_tokens,
    read_token,
    runtime_directory,
    state_directory,
    token_source,
)
from agent.errors import ConfigError
from agent.secret import Secret
from agent.units import parse_duration, parse_size

EXAMPLE = Path(__file__).parents[3] / "config.example.toml"
USER = 1000
ENVIRON = {"HOME": "/home/ci", "XDG_RUNTIME_DIR": "/run/user/1000"}
SECRET = "sekret-4711"


def loaded(path: Path | None = None, /, **environ: str) -> Config:
    return load(path, ENVIRON | environ, euid=USER)


def value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def problems(path: Path | None = None, /, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, euid=USER)
    return str(caught.value).splitlines()


def written(directory: Path, text: str) -> Path:
    path = directory / "agent.toml"
    path.write_text(text)
    return path


def assigned(key: str, literal: str) -> str:
    section, _, name = key.partition(".")
    return f"[{section}]\n{name} = {literal}\n"


# --- defaults and the example ------------------------------------------------------------------------------------

DEFAULTS: dict[str, object] = {
    "api.url": "https://api.vercel.com",
    "api.token_file": None,
    "api.team_id": None,
    "api.slug": None,
    "api.timeout": 10.0,
    "api.max_requests_per_minute": None,
    "listen.stream": Path("/run/user/1000/artifacts-agent/events.sock"),
    "listen.datagram": Path("/run/user/1000/artifacts-agent/datagram.sock"),
    "listen.control": Path("/run/user/1000/artifacts-agent/control.sock"),
    "listen.mode": 0o660,
    "listen.group": None,
    "listen.max_connections": 1024,
    "listen.default": "allow",
    "http.socket": None,
    "http.listen": None,
    "http.token_file": None,
    "http.tokens": {},
    "http.max_connections": 512,
    "front.enabled": False,
    "metrics.socket": None,
    "metrics.listen": None,
    "queue.directory": Path("/home/ci/.local/state/artifacts-agent"),
    "queue.adopt": None,
    "queue.segment_bytes": 8 * 1024**2,
    "queue.max_bytes": 1024**3,
    "queue.total_bytes": None,
    "queue.max_age": 7 * 86400.0,
    "queue.overflow": "drop-oldest",
    "queue.min_free_bytes": 64 * 1024**2,
    "queue.sync": "commit",
    "history.max_bytes": 64 * 1024**2,
    "history.max_age": 30 * 86400.0,
    "history.keep_usage": 400 * 86400.0,
    "batch.max_events": 1000,
    "batch.max_bytes": 960 * 1024,
    "batch.max_delay": 2.0,
    "batch.concurrency": 4,
    "batch.split_sessions": False,
    "retry.initial_delay": 1.0,
    "retry.max_delay": 300.0,
    "pause.probe_interval": 300.0,
    "pause.max_probe_interval": 3600.0,
    "pause.rejections_in_a_row": 20,
    "forward.servers": None,
    "forward.credentials": None,
    "forward.team": None,
    "forward.pool": None,
    "relay.servers": None,
    "relay.credentials": None,
    "relay.team": None,
    "relay.replicas": 3,
    "relay.events_max_bytes": 10 * 1024**3,
    "relay.pool_max_messages": 1_000_000,
    "relay.ledger_max_bytes": 2 * 1024**3,
    "relay.dead_letters_max_bytes": 256 * 1024**2,
    "shutdown.deadline": 10.0,
    "log.level": "info",
    "log.format": "console",
}


def test_defaults_are_the_documented_ones() -> None:
    config = loaded()
    assert {key: value(config, key) for key in KEYS} == DEFAULTS


def test_example_holds_the_defaults() -> None:
    assert loaded(EXAMPLE) == loaded()


def test_example_shows_every_key_and_no_other(tmp_path: Path) -> None:
    uncommented = re.sub(r"^# +(\w+ = |\[)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    document = tomllib.loads(uncommented)
    fixed = {section: table for section, table in document.items() if section not in {"destinations", "rules"}}
    assert sorted(f"{section}.{key}" for section, table in fixed.items() for key in table) == sorted(KEYS)
    loaded(written(tmp_path, uncommented))


def test_example_comments_out_exactly_the_keys_without_a_fixed_default() -> None:
    document = tomllib.loads(EXAMPLE.read_text())
    derived = {"listen.stream", "listen.datagram", "listen.control", "queue.directory"}
    fixed = {key for key, default in DEFAULTS.items() if default not in (None, {})} - derived
    assert {f"{section}.{key}" for section, table in document.items() for key in table} == fixed


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    assert loaded(written(tmp_path, "")) == loaded()


def test_config_cannot_be_changed() -> None:
    config = loaded()
    with pytest.raises(FrozenInstanceError):
        config.api.url = "https://elsewhere.example"  # type: ignore[misc]


# --- where the directories come from ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "euid", "expected"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a"}, 0, "/run/a"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, USER, "/run/a"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/artifacts-agent"),
        ({"XDG_RUNTIME_DIR": "/run/user/1"}, USER, "/run/user/1/artifacts-agent"),
        ({"XDG_RUNTIME_DIR": "relative"}, USER, None),
        ({"XDG_RUNTIME_DIR": "", "RUNTIME_DIRECTORY": ""}, USER, None),
        ({}, USER, None),
    ],
)
def test_runtime_directory_is_systemd_then_root_then_xdg(
    environ: dict[str, str], euid: int, expected: str | None
) -> None:
    assert runtime_directory(environ, euid) == (expected and Path(expected))


@pytest.mark.parametrize(
    ("environ", "euid", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/root"}, 0, "/var/lib/a"),
        ({"HOME": "/root", "XDG_STATE_HOME": "/state"}, 0, "/var/lib/artifacts-agent"),
        ({"HOME": "/home/ci", "XDG_STATE_HOME": "/state"}, USER, "/state/artifacts-agent"),
        ({"HOME": "/home/ci", "XDG_STATE_HOME": "state"}, USER, "/home/ci/.local/state/artifacts-agent"),
        ({"XDG_STATE_HOME": ""}, USER, None),
    ],
)
def test_state_directory_is_systemd_then_root_then_xdg_then_home(
    environ: dict[str, str], euid: int, expected: str | None
) -> None:
    assert state_directory(environ, euid) == (expected and Path(expected))


def with_control_socket(directory: Path) -> Path:
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "control.sock"))
    return directory


def test_a_daemon_is_looked_for_where_systemd_says_then_at_the_user_then_at_the_system(tmp_path: Path) -> None:
    system, xdg = Path("/run/artifacts-agent"), {"XDG_RUNTIME_DIR": str(tmp_path)}
    missing = (tmp_path / "artifacts-agent/control.sock",)
    assert Directories.of_daemon({}, USER)[::2] == (system, ())
    assert Directories.of_daemon(xdg, USER)[::2] == (system, missing)
    own = with_control_socket(tmp_path / "artifacts-agent")
    assert Directories.of_daemon(xdg, USER)[::2] == (own, ())
    assert Directories.of_daemon(xdg | {"RUNTIME_DIRECTORY": "/run/r"}, USER)[::2] == (Path("/run/r"), ())
    assert Directories.of_daemon(xdg, 0)[::2] == (system, ())


def test_places_that_were_looked_at_count_only_for_a_socket_that_was_looked_for(tmp_path: Path) -> None:
    found = Directories.of_daemon({"XDG_RUNTIME_DIR": str(tmp_path)}, USER)
    assert found.passed_over_for(Path("/run/artifacts-agent/control.sock")) == found.passed_over != ()
    assert found.passed_over_for(tmp_path / "named.sock") == ()


def test_the_queue_of_a_daemon_is_the_users_own_if_there_is_one(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    own = tmp_path / ".local/state/artifacts-agent"
    own.mkdir(parents=True)
    assert Directories.of_daemon(home, USER).state == own
    assert Directories.of_daemon(home | {"STATE_DIRECTORY": "/var/lib/s"}, USER).state == Path("/var/lib/s")
    assert Directories.of_daemon({}, USER).state == Path("/var/lib/artifacts-agent")


def test_to_ask_a_daemon_nothing_but_its_control_socket_has_to_be_valid(tmp_path: Path) -> None:
    directories = Directories.of_daemon({}, USER)
    path = written(tmp_path, '[batch]\nmax_event = 1\n[listen]\ncontrol = "c.sock"\n[queue]\nmax_bytes = "lots"\n')
    assert control_socket(path, {"ARTIFACTS_AGENT_LOG_LEVEL": "loud"}, directories) == tmp_path / "c.sock"
    assert control_socket(None, {}, directories) == Path("/run/artifacts-agent/control.sock")
    named = {"ARTIFACTS_AGENT_LISTEN_CONTROL": "/run/other.sock"}
    assert control_socket(path, named, directories) == Path("/run/other.sock")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "not TOML"),
        ("[listen]\ncontrol = 5\n", "listen.control = 5: "),
        ('[listen]\ncontrol = ""\n', "listen.control = '': should be a path"),
        ('[listen]\ncontrol = "~/c.sock"\n', "~ stands for HOME"),
        (f'[listen]\ncontrol = "/{"x" * 200}"\n', "a socket's path may have 107"),
    ],
)
def test_a_control_socket_that_cannot_be_told_is_an_error_that_says_why(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        control_socket(written(tmp_path, text), {}, Directories.of_daemon({}, USER))


def test_missing_directories_name_the_keys_and_the_variable_to_set() -> None:
    sockets, queue = problems(environ={})
    assert sockets.startswith("listen.stream, listen.datagram, listen.control: no default without XDG_RUNTIME_DIR:")
    assert queue == "queue.directory: no default without HOME: set it, or the keys themselves"


def test_directories_are_not_needed_when_every_path_is_set(tmp_path: Path) -> None:
    text = '[listen]\nstream = "a"\ndatagram = ""\ncontrol = "c"\n[queue]\ndirectory = "q"\n'
    config = load(written(tmp_path, text), {}, euid=USER)
    assert config.queue.directory == tmp_path / "q"


def test_own_user_id_decides_when_none_is_given() -> None:
    environ = ENVIRON | {"RUNTIME_DIRECTORY": "/run/r", "STATE_DIRECTORY": "/var/lib/s"}
    assert load(None, environ) == load(None, environ, euid=USER)


# --- one order of sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "literal", "expected"),
    [
        ("api.url", '"https://cache.example/prefix/"', "https://cache.example/prefix"),
        ("api.team_id", '"team_1"', "team_1"),
        ("api.slug", '""', None),
        ("api.timeout", "2.5", 2.5),
        ("api.max_requests_per_minute", "60", 60),
        ("listen.mode", '"0600"', 0o600),
        ("listen.mode", '"0o666"', 0o666),
        ("listen.stream", '""', None),
        ("listen.datagram", '""', None),
        ("listen.group", '"builders"', "builders"),
        ("queue.max_bytes", '"2GiB"', 2 * 1024**3),
        ("queue.max_age", '"12h"', 43200.0),
        ("queue.min_free_bytes", "0", 0),
        ("queue.overflow", '"drop-newest"', "drop-newest"),
        ("queue.sync", '"off"', "off"),
        ("batch.max_delay", "0", 0.0),
        ("batch.split_sessions", "true", True),
        ("shutdown.deadline", '"0s"', 0.0),
        ("log.format", '"json"', "json"),
    ],
)
def test_file_and_variable_read_alike(tmp_path: Path, key: str, literal: str, expected: object) -> None:
    variable = next(name for name, target in VARIABLES.items() if target == key)
    assert value(loaded(written(tmp_path, assigned(key, literal))), key) == expected
    assert value(loaded(**{variable: literal.strip('"')}), key) == expected


def test_variable_beats_file_beats_turbo_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, '[api]\nslug = "of-file"\n')
    turbo = {"TURBO_TEAM": "of-turbo"}
    assert loaded(path, **turbo, ARTIFACTS_AGENT_API_SLUG="of-variable").api.slug == "of-variable"
    assert loaded(path, **turbo).api.slug == "of-file"
    assert loaded(**turbo).api.slug == "of-turbo"
    assert loaded(TURBO_TEAM="").api.slug is None


def test_turbo_variables_fill_url_team_and_slug() -> None:
    api = loaded(TURBO_API="https://cache.example", TURBO_TEAM="mine", TURBO_TEAMID="team_1").api
    assert (api.url, api.slug, api.team_id) == ("https://cache.example", "mine", "team_1")


def test_every_key_has_its_variable() -> None:
    assert VARIABLES["ARTIFACTS_AGENT_QUEUE_MAX_BYTES"] == "queue.max_bytes"
    assert sorted(VARIABLES.values()) == sorted(set(KEYS) - {"http.tokens"})  # a table


def test_variables_of_others_are_left_alone() -> None:
    others = {"SOCKET": "/s", "TOKEN": SECRET, "CONFIG": "/c", "PORT": "tcp://10.0.0.1:80"}
    assert loaded(**{f"ARTIFACTS_AGENT_{name}": text for name, text in others.items()}) == loaded()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub/queue", "{file}/sub/queue"),
        ("/abs/queue", "/abs/queue"),
        ("~/queue", "/home/ci/queue"),
        ("~", "/home/ci"),
    ],
)
def test_path_in_the_file_is_relative_to_the_file_or_to_home(tmp_path: Path, text: str, expected: str) -> None:
    config = loaded(written(tmp_path, assigned("queue.directory", f'"{text}"')))
    assert config.queue.directory == Path(expected.format(file=tmp_path))


def test_path_in_a_variable_is_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert loaded(ARTIFACTS_AGENT_QUEUE_DIRECTORY="queue").queue.directory == tmp_path / "queue"


def test_byte_order_mark_and_crlf_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(b'\xef\xbb\xbf[log]\r\nlevel = "debug"\r\n')
    assert loaded(path).log.level == "debug"


# --- sizes and durations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written_as", "size"),
    [
        ("8MiB", 8 * 1024**2),
        ("512kib", 512 * 1024),
        ("64KB", 64000),
        ("1.5 GiB", 3 * 1024**3 // 2),
        (" 1TiB ", 1024**4),
        ("100B", 100),
        ("4096", 4096),
        (4096, 4096),
        (4096.0, 4096),
        (0, 0),
        (9007199254740993, 9007199254740993),
    ],
)
def test_size_reads_like_people_write_it(written_as: object, size: int) -> None:
    assert parse_size(written_as) == size


@pytest.mark.parametrize(
    "bad", ["", "MiB", "8M", "8 MiB/s", "1,5GiB", "-1KiB", "1e3", "0.3KiB", "99999999TiB", "8Mbit", True, 1.5, None, []]
)
def test_size_that_could_be_misread_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(bad)


@pytest.mark.parametrize(
    ("written_as", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("7d", 604800.0),
        ("10", 10.0),
        (10, 10.0),
        (0.25, 0.25),
        (" 3 s ", 3.0),
    ],
)
def test_duration_reads_like_people_write_it(written_as: object, seconds: float) -> None:
    assert parse_duration(written_as) == seconds


@pytest.mark.parametrize(
    "bad",
    ["", "s", "5 minutes", "5M", "1h30m", "-5s", "1e3s", "inf", "٣s", float("inf"), float("nan"), "36501d", False],
)
def test_duration_that_could_be_misread_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(bad)


# --- what is refused, and how it is said --------------------------------------------------------------------------

REFUSED = [
    ("api.url", '"http://cache.example"', "https"),
    ("api.url", '"http://0.0.0.0:3000"', "https"),
    ("api.url", '"http://localhost.example"', "https"),
    ("api.url", '"ftp://cache.example"', "scheme and a host"),
    ("api.url", '"api.vercel.com"', "scheme and a host"),
    ("api.url", '"https://"', "scheme and a host"),
    ("api.url", '"https://cache.example:0"', "scheme and a host"),
    ("api.url", '"https://cache.example:99999"', "[Pp]ort"),
    ("api.url", '"https://[::1"', "IPv6"),
    ("api.url", '"https://cache.example?team=x"', "query"),
    ("api.url", '"https://cache.example/#x"', "fragment"),
    ("api.url", '"https://cache .example"', "spaces"),
    ("api.url", '"http://localhost\\\\.example"', "backslashes"),
    ("api.url", '""', "one word"),
    ("api.team_id", '"two words"', "one word"),
    ("api.slug", "5", "valid string"),
    ("api.timeout", "0", "greater than 0"),
    ("api.max_requests_per_minute", "0", "greater than or equal to 1"),
    ("listen.stream", f'"/{"x" * 107}"', r"108 bytes long.*107"),
    ("listen.control", '""', "not empty"),
    ("listen.control", '"a\\u0000b"', "NUL"),
    ("listen.control", "5", "valid path"),
    ("listen.mode", '"1777"', "octal"),
    ("listen.mode", '"0888"', "octal"),
    ("listen.mode", "660", "octal"),
    ("listen.max_connections", "0", "greater than or equal to 1"),
    ("listen.max_connections", "true", "number"),
    ("http.listen", '"0.0.0.0:80"', "this machine alone"),
    ("http.listen", '"192.168.0.1:80"', "this machine alone"),
    ("http.listen", '"localhost:80"', "this machine alone"),
    ("http.listen", '"[::]:80"', "this machine alone"),
    ("http.listen", '"::1:80"', "this machine alone"),
    ("http.listen", '"[127.0.0.1]:80"', "this machine alone"),
    ("http.listen", '"127.0.0.1"', "this machine alone"),
    ("http.listen", '"127.0.0.1:"', "this machine alone"),
    ("http.listen", '"127.0.0.1:65536"', "this machine alone"),
    ("http.listen", '"127.0.0.1:-1"', "this machine alone"),
    ("http.listen", "9900", "valid string"),
    ("http.max_connections", "0", "greater than or equal to 1"),
    ("http.listen", '"127.0.0.1:80"', "http.listen and http.token_file belong together"),
    ("front.enabled", '"true"', "front.enabled and http.listen belong together"),
    ("metrics.listen", '"0.0.0.0:9902"', "an address of this machine alone"),
    ("queue.directory", '""', "not empty"),
    ("queue.segment_bytes", '"63KiB"', "65536"),
    ("queue.max_bytes", '"255KiB"', "262144"),
    ("queue.max_age", "-1", "greater than 0"),
    ("queue.overflow", '"drop-all"', "'drop-oldest' or 'drop-newest'"),
    ("queue.sync", '"always"', "'commit', 'interval' or 'off'"),
    ("batch.max_events", "0", "greater than or equal to 1"),
    ("batch.max_events", "100001", "less than or equal to 100000"),
    ("batch.max_bytes", '"lots"', "not a size"),
    ("batch.concurrency", "65", "less than or equal to 64"),
    ("batch.split_sessions", '"perhaps"', "boolean"),
    ("history.keep_usage", '"2h"', 'should be at least "1d"'),
    ("retry.initial_delay", '"6m"', "max_delay must be at least initial_delay"),
    ("retry.max_delay", '"soon"', "not a duration"),
    ("pause.probe_interval", '"2h"', "max_probe_interval must be at least probe_interval"),
    ("pause.rejections_in_a_row", "0", "greater than or equal to 1"),
    ("forward.servers", '["http://nats.example"]', "a server of NATS"),
    ("forward.servers", '"nats://"', "a server of NATS"),
    ("forward.servers", '["nats://nats.example:4222/x"]', "a server of NATS"),
    ("forward.servers", '"nats://me:secret@nats.example"', "no user or password"),
    ("forward.servers", '"nats://nats.example:4222"', "forward.servers and forward.team belong together"),
    ("forward.team", '"web"', "forward.team and forward.servers belong together"),
    ("forward.team", '"We.b"', "no name"),
    ("forward.pool", '"a>"', "no name"),
    ("relay.servers", '"nats://nats.example:4222"', "relay.servers and relay.team belong together"),
    ("relay.team", '"web"', "relay.servers and relay.team belong together"),
    ("relay.replicas", "0", "greater than or equal to 1"),
    ("relay.events_max_bytes", '"1kB"', "greater than or equal to 1048576"),
    ("relay.pool_max_messages", "0", "greater than or equal to 1"),
    ("log.level", '"loud"', "'debug'"),
]


@pytest.mark.parametrize(("key", "literal", "reason"), REFUSED)
def test_bad_value_in_the_file_names_file_key_value_and_reason(
    tmp_path: Path, key: str, literal: str, reason: str
) -> None:
    path = written(tmp_path, assigned(key, literal))
    (problem,) = problems(path)
    assert re.match(f"{re.escape(str(path))}: {re.escape(key)} = .*{reason}", problem)


@pytest.mark.parametrize(("key", "literal", "reason"), [row for row in REFUSED if '"' in row[1] and "\\" not in row[1]])
def test_bad_value_in_a_variable_names_the_variable(key: str, literal: str, reason: str) -> None:
    variable = next(name for name, target in VARIABLES.items() if target == key)
    (problem,) = problems(environ=ENVIRON | {variable: literal.strip('"')})
    assert re.match(rf"{variable} \({key}\) = .*{reason}", problem)


def test_bad_turbo_variable_is_named() -> None:
    (problem,) = problems(environ=ENVIRON | {"TURBO_API": "http://cache.example"})
    assert problem.startswith("TURBO_API (api.url) = 'http://cache.example': should be https")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1:8080", "127.8.9.1", "[::1]:3000"])
def test_plain_http_is_fine_on_loopback(host: str) -> None:
    assert loaded(ARTIFACTS_AGENT_API_URL=f"http://{host}/").api.url == f"http://{host}"


def test_two_sockets_need_two_paths(tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, '[listen]\nstream = "s"\ndatagram = "s"\n'))
    assert problem.endswith("listen.stream and listen.datagram are the same path: each socket needs its own")


def test_the_http_socket_needs_a_path_of_its_own(tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, '[listen]\ncontrol = "s"\n[http]\nsocket = "s"\n'))
    assert problem.endswith("http.socket and listen.control are the same path: each socket needs its own")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.9.10:65535", "[::1]:9900"])
def test_a_port_on_loopback_is_fine(tmp_path: Path, address: str) -> None:
    path = written(tmp_path, f'[http]\nlisten = "{address}"\ntoken_file = "t"\n')
    assert loaded(path).http.listen == address


def test_with_the_front_clients_may_use_the_apis_token(tmp_path: Path) -> None:
    config = loaded(written(tmp_path, '[http]\nlisten = "127.0.0.1:0"\n[front]\nenabled = true\n'))
    assert read_http_tokens(config, {"TURBO_TOKEN": SECRET}) == ({"default": Secret(SECRET)}, {})
    with pytest.raises(ConfigError, match=r"http\.listen: clients need a token there"):
        read_http_tokens(config, {})


def test_clients_may_have_a_token_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{SECRET}\n")
    path = written(tmp_path, '[http]\nlisten = "127.0.0.1:0"\ntoken_file = "t"\n')
    assert read_http_tokens(loaded(path), {"TURBO_TOKEN": "another"}) == ({"default": Secret(SECRET)}, {})
    (tmp_path / "t").write_text("two words")
    with pytest.raises(ConfigError, match="the token has spaces"):
        read_http_tokens(loaded(path), {})


def test_without_a_port_clients_need_no_token() -> None:
    assert read_http_tokens(loaded(), {"TURBO_TOKEN": SECRET}) == ({}, {})


def test_socket_path_of_exactly_the_limit_is_fine() -> None:
    path = "/" + "x" * 106
    assert loaded(ARTIFACTS_AGENT_LISTEN_STREAM=path).listen.stream == Path(path)


def test_socket_path_is_measured_in_bytes_even_when_derived() -> None:
    (*three,) = problems(environ=ENVIRON | {"XDG_RUNTIME_DIR": "/" + "ü" * 50})
    assert [problem.split(" ")[0] for problem in three] == ["listen.stream", "listen.datagram", "listen.control"]
    assert all("(default)" in problem and "107" in problem for problem in three)


@pytest.mark.parametrize("text", ["~root/queue", "~"])
def test_tilde_without_a_home_is_refused(tmp_path: Path, text: str) -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/r", "STATE_DIRECTORY": "/var/lib/s"}
    (problem,) = problems(written(tmp_path, assigned("queue.directory", f'"{text}"')), environ)
    assert "queue.directory = " in problem
    assert "HOME" in problem


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        ("[queue]\nmax_byte = 1", "queue.max_byte", "queue.max_bytes"),
        ("[api]\nmin_free_bytes = 1", "api.min_free_bytes", "queue.min_free_bytes"),
        (f'[api]\ntoken = "{SECRET}"', "api.token", "api.token_file, the path of a file with the token alone"),
        ("[quue]\nmax_bytes = 1", "quue", "queue"),
        ('url = "https://a.example"', "url", "api.url"),
        ("[queue.max_bytez]\na = 1", "queue.max_bytez", "queue.max_bytes"),
        ('[queue]\n"max\\nbytes" = 1', r"'queue.max\nbytes'", "queue.max_bytes"),
    ],
)
def test_unknown_key_names_the_nearest_and_never_the_value(tmp_path: Path, text: str, where: str, nearest: str) -> None:
    path = written(tmp_path, text)
    assert problems(path) == [f"{path}: {where}: unknown key; the nearest is {nearest}"]


def test_unknown_variable_of_a_section_names_the_nearest() -> None:
    assert problems(environ=ENVIRON | {"ARTIFACTS_AGENT_QUEUE_MAX_BYTE": SECRET}) == [
        "ARTIFACTS_AGENT_QUEUE_MAX_BYTE: unknown variable; the nearest is ARTIFACTS_AGENT_QUEUE_MAX_BYTES"
    ]


@pytest.mark.parametrize("text", ["queue = 3", "[[queue]]\nmax_bytes = 1"])
def test_a_section_that_should_be_a_table_is_named(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert problems(path) == [f"{path}: queue: should be a table: write [queue] above its keys"]


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = '[queue]\nmax_byte = 1\nsync = "no"\n[retry]\nmax_delay = "x"\n[pause]\nprobe_interval = "2h"\n'
    found = problems(written(tmp_path, text), ENVIRON | {"ARTIFACTS_AGENT_LOG_LEVEL": "x", "ARTIFACTS_AGENT_LOG_X": ""})
    named = ["queue.max_byte", "queue.sync", "retry.max_delay", "pause.probe_interval", "LOG_LEVEL", "LOG_X"]
    assert len(found) == len(named)
    assert all(any(name in problem for problem in found) for name in named)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"[api]\nurl = ?", "line 2, column 7"),
        (b'[api]\nurl = "x', "line 2, column 9"),
        (b'[api]\nurl = "x"\nurl = "y"', "line 3, column"),
        (b"url = '\xff'", "not UTF-8: invalid start byte at byte 7"),
        (b"[batch]\nmax_events = " + b"9" * 5000, "not TOML"),
    ],
)
def test_bad_syntax_names_file_and_place(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: ")
    assert where in problem


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: cannot read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot read: Is a directory"]


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@cache.example", f"https://cache.example/?token={SECRET}"])
def test_secret_in_the_url_is_not_shown(url: str) -> None:
    (problem,) = problems(environ=ENVIRON | {"ARTIFACTS_AGENT_API_URL": url})
    assert problem.startswith("ARTIFACTS_AGENT_API_URL (api.url) = (not shown")
    assert SECRET not in problem


def test_long_value_is_cut() -> None:
    (problem,) = problems(environ=ENVIRON | {"ARTIFACTS_AGENT_LOG_LEVEL": "x" * 5000})
    assert len(problem) < 250


@pytest.mark.parametrize("key", ["queue.max_bytes", "queue.max_age", "batch.max_events", "api.url", "log.level"])
@pytest.mark.parametrize("shape", ["{}", "[{}]", "{{a = {}}}", "-{}"])
def test_a_number_that_python_refuses_to_write_is_a_problem_like_others(tmp_path: Path, key: str, shape: str) -> None:
    literal = shape.format("0x" + "F" * 6000) if shape[0] != "-" else "-" + "9" * 4000
    [problem] = problems(written(tmp_path, assigned(key, literal)))
    assert problem.startswith(f"{tmp_path / 'agent.toml'}: {key} = ")
    assert len(problem) < 300


@pytest.mark.parametrize(
    "text", ["9" * 1_100_000, "9" * 31, "0." + "1" * 31 + "s", "1" * 20 + "." + "9" * 2_000_000 + "d"]
)
@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_a_quantity_of_very_many_digits_is_refused(text: str, parse: Callable[[object], object]) -> None:
    with pytest.raises(ValueError, match=r"is not a (size|duration)"):
        parse(text)


def test_a_file_without_end_is_not_read_to_it() -> None:
    [problem] = problems(Path("/dev/zero"))
    assert problem == "/dev/zero: longer than 131072 bytes, so no configuration of this agent"


def test_of_many_problems_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    found = problems(written(tmp_path, "".join(f"[unknown-{number}]\n" for number in range(1500))))
    assert (len(found), found[-1]) == (21, "and 1480 more problems")
    assert "unknown-19: unknown key; the nearest is" in found[19]


def test_the_name_of_an_unknown_key_is_cut(tmp_path: Path) -> None:
    [problem] = problems(written(tmp_path, f"{'x' * 20_000} = 1\n"))
    assert f": {'x' * 77}...: unknown key; the nearest is" in problem


# --- the token ----------------------------------------------------------------------------------------------------


def test_token_sources_have_an_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of-file\n")
    (tmp_path / "token").write_text("  of-credential \n")
    environ = {
        "ARTIFACTS_AGENT_API_TOKEN_FILE": f"{tmp_path}/file",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "ARTIFACTS_AGENT_TOKEN": "of-variable ",
        "TURBO_TOKEN": "of-turbo",
    }
    sources = [tmp_path / "file", tmp_path / "token", "ARTIFACTS_AGENT_TOKEN", "TURBO_TOKEN", None]
    tokens = ["of-file", "of-credential", "of-variable", "of-turbo", None]
    for variable, source, token in zip([*environ, None], sources, tokens, strict=True):
        config = loaded(**environ)
        assert token_source(config, environ) == source
        assert read_token(config, environ) == (token and Secret(token))
        environ.pop(variable or "", None)


def test_a_blank_credential_stands_for_a_token_file_that_is_missing(tmp_path: Path) -> None:
    """The unit's SetCredential= is what there is where LoadCredential= finds no file."""
    (tmp_path / "token").write_text("\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"the service has no token: write it into .* /etc/artifacts-agent/token"):
        read_token(loaded(), environ)
    token = read_token(loaded(), environ | {"TURBO_TOKEN": "of-turbo"})
    assert token is not None
    assert token.reveal() == "of-turbo"


@pytest.mark.parametrize("environ", [{"ARTIFACTS_AGENT_TOKEN": " ", "TURBO_TOKEN": ""}, {"CREDENTIALS_DIRECTORY": "/"}])
def test_empty_variables_and_a_missing_credential_are_no_token(environ: dict[str, str]) -> None:
    assert read_token(loaded(), environ) is None


BAD_TOKENS = [
    (f"{SECRET}\nsecond\n", "several lines"),
    (f"Bearer {SECRET}", "spaces or control characters"),
    (f"{SECRET}\0x", "spaces or control characters"),
    (f"{SECRET}ü", "not ASCII"),
    (SECRET * 1000, "longer than 8192 bytes"),
]


@pytest.mark.parametrize(("content", "complaint"), [*BAD_TOKENS, ("", "empty"), (" \n", "empty")])
def test_bad_token_file_is_refused_without_showing_it(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_token(loaded(ARTIFACTS_AGENT_API_TOKEN_FILE=str(path)), {})
    assert str(caught.value).startswith(f"{path}: ")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("content", "complaint"), BAD_TOKENS)
def test_bad_token_variable_is_refused_without_showing_it(content: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"^TURBO_TOKEN: .*{complaint}") as caught:
        read_token(loaded(), {"TURBO_TOKEN": content})
    assert SECRET not in str(caught.value)


def test_a_pipe_in_a_token_files_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    config = loaded(written(tmp_path, '[api]\ntoken_file = "token"\n'))
    with pytest.raises(ConfigError, match=r"token: cannot read the token file: not a regular file"):
        read_token(config, {})


def test_missing_token_file_is_an_error_even_when_a_variable_has_a_token(tmp_path: Path) -> None:
    config = loaded(ARTIFACTS_AGENT_API_TOKEN_FILE=f"{tmp_path}/none")
    with pytest.raises(ConfigError, match="cannot read the token file: No such file"):
        read_token(config, {"TURBO_TOKEN": SECRET})


@pytest.mark.parametrize(
    "pasted", [SECRET, "vcp_2dhDyTsR5Jx0lsSw9qkD1v4C", "a/b+c/d==", "x" * 300, "eyJhbGciOiJIUzI1NiJ9.eyJz.Sfl"]
)
@pytest.mark.parametrize("key", ["api.token_file", "http.token_file"])
def test_a_token_in_the_place_of_its_files_path_is_never_shown(tmp_path: Path, key: str, pasted: str) -> None:
    port = {"ARTIFACTS_AGENT_HTTP_LISTEN": "127.0.0.1:0", "ARTIFACTS_AGENT_FRONT_ENABLED": "true"}
    config = loaded(written(tmp_path, assigned(key, f'"{pasted}"')), **port)
    with pytest.raises(ConfigError) as caught:
        (read_token if key == "api.token_file" else read_http_tokens)(config, {"TURBO_TOKEN": "t"})
    assert re.match(rf"{tmp_path}/… \(the rest is not shown: is it the token\?.*\): cannot read", str(caught.value))
    assert pasted not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "key", ["api.url", "api.timeout", "http.listen", "log.level", "listen.mode", "http.token_file"]
)
@pytest.mark.parametrize("pasted", ["vcp_" + SECRET, "2dhDyTsR5Jx0lsSw9qkD1v4C", "eyJhbGciOiJIUzI1NiJ9.eyJz.Sfl"])
def test_a_value_that_looks_like_a_token_is_not_shown(tmp_path: Path, key: str, pasted: str) -> None:
    value = f'"{pasted}\\u0000"' if key.endswith("file") else f'"{pasted}"'
    (problem,) = problems(written(tmp_path, assigned(key, value)))
    assert f"{key} = (not shown" in problem
    assert pasted not in problem


@pytest.mark.parametrize("key", ["listen.stream", "listen.control", "http.socket", "queue.directory", "queue.adopt"])
def test_a_token_in_the_place_of_a_path_is_a_mistake_and_not_shown(tmp_path: Path, key: str) -> None:
    (problem,) = problems(written(tmp_path, assigned(key, f'"vcp_{SECRET}"')))
    assert f"{key} = (not shown" in problem
    assert "looks like a token" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("text", ["[api]\n{} = 1", "[{}]", '{} = "x"'])
@pytest.mark.parametrize("pasted", [f"vcp_{SECRET}", "2dhDyTsR5Jx0lsSw9qkD1v4C"])
def test_a_token_in_the_place_of_a_name_is_not_shown(tmp_path: Path, text: str, pasted: str) -> None:
    (problem,) = problems(written(tmp_path, text.format(pasted)))
    assert "(not shown, it may hold a secret): " in problem
    assert pasted not in problem


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o440, False), (0o644, True), (0o604, True)])
def test_a_token_file_that_others_can_read_is_named(tmp_path: Path, mode: int, exposed: bool) -> None:
    path = tmp_path / "token"
    path.touch()
    path.chmod(mode)
    found = exposed_token_files(loaded(ARTIFACTS_AGENT_API_TOKEN_FILE=str(path)), {})
    assert found == ([path] if exposed else [])
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert exposed_token_files(loaded(), environ) == found
    assert exposed_token_files(loaded(), {}) == []
    assert exposed_token_files(loaded(ARTIFACTS_AGENT_API_TOKEN_FILE=f"{tmp_path}/none"), {}) == []


def test_config_never_holds_the_token() -> None:
    environ = {"ARTIFACTS_AGENT_TOKEN": SECRET, "TURBO_TOKEN": SECRET}
    assert SECRET not in repr(loaded(**environ))
    assert SECRET not in repr(read_token(loaded(**environ), environ))


# --- reload -------------------------------------------------------------------------------------------------------


def test_differences_name_the_changed_keys() -> None:
    assert differences(loaded(), loaded()) == []
    new = loaded(ARTIFACTS_AGENT_LOG_LEVEL="debug", ARTIFACTS_AGENT_LISTEN_MODE="0600")
    assert differences(loaded(), new) == ["listen.mode", "log.level"]
    assert needs_restart(loaded(), new) == ["listen.mode"]


def test_sockets_and_the_queue_need_a_restart_and_nothing_else_does() -> None:
    fixed = {"listen", "http", "front", "metrics", "queue", "history"}
    taken_over = {"listen.default", "http.tokens", "history.keep_usage"}
    assert {key for key in KEYS if key.split(".")[0] in fixed} - taken_over == RESTART_KEYS
