"""Targets for what an operator writes: the configuration file, variables, and the token's file."""

from pathlib import Path

from agent import config
from agent.config import Config
from agent.errors import ConfigError
from tests.fuzz.scratch import scratch
from tests.support.daemon import TOKEN

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
ENVIRONMENT = {"HOME": "/home/ci", "XDG_RUNTIME_DIR": "/run/user/1000", "ARTIFACTS_AGENT_TOKEN": TOKEN}
LINE_CHARACTERS = 500
MAX_PROBLEMS = 100
_SEPARATOR = b"\xff\x00\xff"


def toml(data: bytes) -> None:
    """A file and variables are a configuration, or each problem is a line that can be read and holds no token.

    What follows a separator sets variables: an index byte, and the value up to NUL.
    """
    text, _, rest = data.partition(_SEPARATOR)
    path = scratch() / "config.toml"
    path.write_bytes(text)
    names = sorted(config.VARIABLES)
    values = {names[each[0] % len(names)]: each[1:].decode(errors="replace") for each in rest.split(b"\0") if each}
    try:
        found = config.load(path, ENVIRONMENT | values, euid=1000)
    except ConfigError as error:
        _check_message(str(error))
        return
    assert isinstance(found, Config)
    assert TOKEN not in repr(found)
    assert found.listen.control.is_absolute()
    assert found.queue.max_bytes > 0


def token(data: bytes) -> None:
    """A token's file holds a token, or the complaint says which file and nothing of its content."""
    path = scratch() / "token"
    path.write_bytes(data)
    settings = config.load(None, ENVIRONMENT | {"ARTIFACTS_AGENT_API_TOKEN_FILE": str(path)}, euid=1000)
    try:
        secret = config.read_token(settings, ENVIRONMENT)
    except ConfigError as error:
        _check_complaint(str(error), data.decode("ascii", "replace").strip())
        return
    assert secret is not None
    assert f"Bearer {secret.reveal()}".isprintable()
    assert secret.reveal() not in {repr(secret), str(secret)}


def _check_complaint(message: str, content: str) -> None:
    _check_message(message)
    assert len(content) < 8 or content not in message


def _check_message(message: str) -> None:
    problems = message.split("\n")
    assert len(problems) <= MAX_PROBLEMS
    assert all(problem.isprintable() and 10 < len(problem) <= LINE_CHARACTERS for problem in problems)
    assert TOKEN not in message


def toml_seeds() -> list[bytes]:
    """The example, its single lines as settings, and numbers and keys that parsers fall over."""
    example = EXAMPLE.read_bytes()
    return [
        example,
        b'[api]\nurl = "https://example.com"\nslug = "team"\n[queue]\nmax_bytes = "1GiB"\nmax_age = 7\n',
        b"[queue]\nmax_bytes = 0x" + b"F" * 4000 + b"\n",
        b"[batch]\nmax_events = 1e999\nmax_dely = nan\n",
        b"queue.max_bytes.x = [[[[[[1]]]]]]\n[queue]\n",
        b'[listen]\nstream = "~/s"\ndatagram = "\\u0000"\n',
        b"\xef\xbb\xbf[log]\r\nlevel = 'debug'\r\n",
        b'"a\\nb" = 1\n[[api]]\n',
        b"" + _SEPARATOR + b"\x00https://[::1\0\x059999999999999999999999TiB\0\x13~x",
    ]


def token_seeds() -> list[bytes]:
    """Tokens, and what is none."""
    return [b"a-token\n", b"", b"two\nlines", b"x" * 9000, "naïve".encode(), b"a b", b"\0\x1b"]
