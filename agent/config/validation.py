"""What values the keys may have, and the one place where a configuration is checked: by pydantic.

Beside what checks a value stands the JSON Schema of what is written for it, which may let more pass, and nothing less.

Imported only to check one: pydantic takes longer to import than most commands run, and a fifth of an idle daemon's memory.
"""

import grp
import ipaddress
import pwd
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, TypeAdapter  # noqa: F401 - Field is for `schema`
from pydantic_core import CoreSchema

from agent.config.directories import usable_path, usable_socket
from agent.config.schema import Config
from agent.fleet.names import check_token
from agent.rules import DEFAULT, SocketKind, user_number  # noqa: F401 - SocketKind is for `schema`
from agent.units import parse_duration, parse_size

T = TypeVar("T")


def _count(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise ValueError("should be a number")  # noqa: TRY004 - pydantic reports nothing but a ValueError
    return value


def _flag(value: object) -> object:
    if not isinstance(value, bool):  # pydantic would read 1 and "no", too
        raise ValueError("should be true or false, without quotes")  # noqa: TRY004 - as above
    return value


def _mode(value: object) -> int:
    # An integer is refused: 660 and 0o660 look alike in a file and mean different permissions.
    if not isinstance(value, str) or not re.fullmatch(r"(0o)?[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ValueError('should be permissions in octal, quoted, at most "0777", such as "0660"')
    return int(value, 8)


def _off(value: object) -> object:
    return None if value == "" else value


def _is_word(value: str) -> bool:
    return value.isprintable() and value.split() == [value]


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _names_a_host(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0


def _hides_the_token(url: str) -> bool:
    return urlsplit(url).scheme == "https" or _is_loopback(urlsplit(url).hostname)


def _loopback(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        fits = address.is_loopback and host.startswith("[") == (address.version == 6)
    except ValueError:
        fits = False
    if not fits or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError('should be an address of this machine alone and a port, such as "127.0.0.1:0" or "[::1]:9900"')
    return text


def _listed(value: object) -> object:
    """Return a list for one value, or for several with commas between them, as in a variable."""
    return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value


def _engine_url(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("should have no user or password: see forward.credentials")
    try:
        is_server = parts.scheme in {"nats", "tls"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server or parts.path not in {"", "/"} or {"?", "#", "\\"} & set(url):
        raise ValueError('should be a server of NATS, such as "nats://10.0.0.5:4222" or "tls://nats.example.com:4222"')
    return url.rstrip("/")


def _must(holds: Callable[[T], bool], reason: str) -> AfterValidator:
    def check(value: T) -> T:
        if not holds(value):
            raise ValueError(reason)
        return value

    return AfterValidator(check)


def _one_or_several(value: object) -> object:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("is empty, so that nobody could match: leave it out to match everybody")
        return value
    return (value,)


def _id_of(find: Callable[[str], int], what: str) -> BeforeValidator:
    """Return what makes a number of a user's or group's name, or of digits."""

    def number(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _NO_ID:
            return value
        if not isinstance(value, str) or not value:
            raise ValueError(f"should be a {what}, by name or number")
        if (written := user_number(value)) is not None:
            return written
        try:
            return find(value)
        except (KeyError, ValueError):  # ValueError: a NUL
            raise ValueError(f"there is no {what} {value!r} here: create it, or write its number") from None

    return BeforeValidator(number)


class _Written:
    """In JSON Schema: what is written for the value where that is another type, or of a form. Bounds are kept."""

    def __init__(self, **schema: object) -> None:
        self._schema = schema

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), **self._schema}


class _EmptyIsOff:
    """In JSON Schema: what it stands at may be "", for there is no null in TOML."""

    @staticmethod
    def __get_pydantic_json_schema__(core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": [""]}, *(each for each in handler(core)["anyOf"] if each != {"type": "null"})]}


class _OneOrSeveral:
    """In JSON Schema: a value stands for a list that has it alone, and a list may repeat one."""

    @staticmethod
    def __get_pydantic_json_schema__(core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = handler(core)["items"]
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


class _TextOrList:
    """In JSON Schema: a text with commas may stand for the list of what is between them."""

    def __init__(self, pattern: str) -> None:
        self._text = {"type": "string", "pattern": pattern}

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self._text, handler(core)]}


_NO_ID = 2**32 - 1  # -1 as the kernel writes it
_ID_SCHEMA: Final = _Written(type=["integer", "string"], minimum=0, maximum=_NO_ID - 1, minLength=1)
_PATH_SCHEMA: Final = _Written(minLength=1)
_ON_LOOPBACK: Final = r"([Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt]|127\.[0-9.]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?"
SIZE_PATTERN: Final = r"^\s*[0-9]{1,30}(\.[0-9]{1,30})? ?(([KMGTkmgt][Ii]?)?[Bb])?\s*$"
DURATION_PATTERN: Final = r"^\s*[0-9]{1,30}(\.[0-9]{1,30})? ?(ms|[smhd])?\s*$"
MODE_PATTERN: Final = "^(0o)?0?[0-7]{1,3}$"

UserId = Annotated[int, _id_of(lambda name: pwd.getpwnam(name).pw_uid, "user"), _ID_SCHEMA]
GroupId = Annotated[int, _id_of(lambda name: grp.getgrnam(name).gr_gid, "group"), _ID_SCHEMA]
OneOf = Annotated[frozenset[T], BeforeValidator(_one_or_several), _OneOrSeveral()]
OrOff = Annotated[T | None, BeforeValidator(_off), _EmptyIsOff()]
Word = Annotated[
    str,
    _must(_is_word, "should be one word without spaces or control characters"),
    _Written(pattern=r"^\S+$"),
]
Count = Annotated[int, BeforeValidator(_count)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    _Written(type=["integer", "string"], minimum=0, pattern=SIZE_PATTERN),
]
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    _Written(type=["number", "string"], minimum=0, pattern=DURATION_PATTERN),
]
Days = Annotated[Duration, _must(lambda seconds: seconds >= 86_400, 'should be at least "1d"')]
Mode = Annotated[int, BeforeValidator(_mode), _Written(type="string", pattern=MODE_PATTERN)]
AbsolutePath = Annotated[Path, AfterValidator(usable_path), _PATH_SCHEMA]
SocketPath = Annotated[Path, AfterValidator(usable_socket), _PATH_SCHEMA]
LoopbackAddress = Annotated[
    str,
    AfterValidator(_loopback),
    _Written(pattern=r"^(127(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]*[1-9A-Fa-f][0-9A-Fa-f:.]*\]):[0-9]{1,5}$"),
]
Url = Annotated[
    Word,
    _must(lambda url: "\\" not in url, "should be a URL, without backslashes"),
    _must(lambda url: not {"?", "#"} & set(url), "should have no query or fragment: see api.team_id and api.slug"),
    _must(lambda url: "@" not in urlsplit(url).netloc, "should have no user or password: see api.token_file"),
    _must(_names_a_host, 'should have a scheme and a host, such as "https://api.vercel.com"'),
    _must(_hides_the_token, "should be https: plain http shows the token to the network, only loopback may use it"),
    AfterValidator(lambda url: url.rstrip("/")),
    _Written(pattern=rf"^[Hh][Tt][Tt][Pp]([Ss]://[^\s\\?#@/]+|://{_ON_LOOPBACK})(/[^\s\\?#]*)?$"),
]

_ENGINE_URL: Final = r"([Nn][Aa][Tt][Ss]|[Tt][Ll][Ss])://[^\s\\?#@/,]+/?"
EngineUrl = Annotated[Word, AfterValidator(_engine_url), _Written(pattern=f"^{_ENGINE_URL}$")]
EngineUrls = Annotated[
    tuple[EngineUrl, ...],
    BeforeValidator(_listed),
    _TextOrList(rf"^\s*({_ENGINE_URL}\s*(,\s*|$))*$"),
]
FleetName = Annotated[Word, AfterValidator(check_token), _Written(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")]

_DESTINATION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def _destination_name(value: str) -> str:
    if value == DEFAULT:
        raise ValueError(f"{DEFAULT} is the one that [api] describes: choose another name")
    if not _DESTINATION_NAME.fullmatch(value):
        raise ValueError(
            "should be a name of at most 32 lower-case letters, digits and hyphens, such as web-2: it names a directory"
        )
    return value


DestinationName = Annotated[
    str,
    AfterValidator(_destination_name),
    _Written(pattern=f"^(?!{DEFAULT}$){_DESTINATION_NAME.pattern}$"),
]

_CONFIG: Final = TypeAdapter(Config)
_CONFIG.rebuild(raise_errors=True, _types_namespace=globals())  # `schema` has but the names of what is above


def validate(values: Mapping[str, Mapping[str, object]]) -> Config:
    """Return the configuration with these values, by section and key. Raises pydantic's ValidationError."""
    return _CONFIG.validate_python(values)


def json_schema() -> dict[str, Any]:
    """Return pydantic's JSON Schema of a configuration; `agent.config.editors` makes of it one of the file."""
    return _CONFIG.json_schema()
