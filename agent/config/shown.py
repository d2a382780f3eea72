"""Names and values as errors may show them: tokens get pasted into any place of a configuration."""

import re
from typing import Final

from agent.config.schema import SECTIONS

TOKEN_FILES: Final = {"api.token_file", "http.token_file", "http.tokens"}
# A word of letters and digits that nobody would write by hand, or one of Vercel's own tokens.
_LIKE_A_TOKEN: Final = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_.~+=-]{20,}|vc[a-z]_.*", re.DOTALL)
_NAME_LIKE_A_TOKEN: Final = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9-]{20,}|vc[a-z]_.*", re.DOTALL)
NOT_SHOWN: Final = "(not shown, it may hold a secret)"


def is_token_file(key: str) -> bool:
    """Tell whether a key holds the path of a file with a token, for which the token itself may stand."""
    return (
        key in TOKEN_FILES
        or key.startswith("http.tokens.")
        or (key.startswith("destinations.") and key.endswith(".token_file"))
    )


def shown_name(text: str) -> str:
    """A name as far as it can be shown: one that looks like a token was pasted there."""
    section, dot, name = text.partition(".")
    if _NAME_LIKE_A_TOKEN.fullmatch(name if dot and section in SECTIONS else section):
        return NOT_SHOWN
    return _short(text if text.isprintable() else repr(text))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def secrets_in(value: object) -> list[str]:
    """Return what looks like a token: a text, one of its words, or what is in a list or a table."""
    if isinstance(value, str):
        return [each for each in dict.fromkeys([value.strip(), *value.split()]) if _LIKE_A_TOKEN.fullmatch(each)]
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return [secret for each in value for secret in secrets_in(each)] if isinstance(value, list) else []


def shown(key: str, value: object) -> str:
    """The value on one line and not too long; one that may be a token, or a URL with a password, is not shown at all."""
    if is_token_file(key) or secrets_in(value) or (key.endswith(".servers") and "@" in str(value)):
        return NOT_SHOWN
    if key.endswith(".url") and isinstance(value, str) and {"@", "?", "#"} & set(value):
        return NOT_SHOWN
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "(a number of thousands of digits)"
