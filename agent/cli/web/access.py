"""Who may see the page. Pure.

Without a token it is for browsers on this machine. Other pages in them could ask for it as well, under a name of their own that
leads to 127.0.0.1 (DNS rebinding), so that the Host header has to name this machine. With a token, which a browser asks for and
then sends to this page alone, any name will do.
"""

import base64
import hmac
import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from agent.secret import Secret


class Refusal(NamedTuple):
    """Why a request is not answered, and with which status and headers."""

    status: int
    message: str
    headers: tuple[tuple[str, str], ...] = ()


_ASK = ("www-authenticate", 'Basic realm="artifacts-agent", charset="UTF-8"')
_NO_TOKEN = Refusal(
    401, "The password is the token in the file that --token-file names; the user's name is of no matter.", (_ASK,)
)
_NO_HOST = Refusal(
    403, "Without a token this page is shown under the names of this machine alone, such as 127.0.0.1 and localhost."
)


def refusal(headers: Mapping[str, str], token: Secret | None) -> Refusal | None:
    """Return why whoever sends these headers may not see the page; None if they may. Names of headers are in lower case."""
    if token is not None:
        return None if _has(headers.get("authorization", ""), token) else _NO_TOKEN
    return None if _names_this_machine(headers.get("host", "")) else _NO_HOST


def is_loopback(address: str) -> bool:
    """Tell whether HOST:PORT, the host an IP address, which for IPv6 is in brackets, can be reached from this machine alone."""
    return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback


def _has(authorization: str, token: Secret) -> bool:
    """Tell whether a header has the token: as a password (RFC 7617), whatever the user, or as a bearer's."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
        except ValueError:  # it is not base64, or not UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.reveal().encode())


def _names_this_machine(host: str) -> bool:
    """Tell whether a Host header has "localhost" or a loopback address, with whatever port: a tunnel may have another one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
