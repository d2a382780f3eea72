"""Credentials of NATS as nsc makes them: an operator, accounts, and users with permissions, in files of their own."""

import base64
import binascii
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from agent.fleet import names
from agent.fleet.permissions import Permissions

_UNLIMITED = -1
_OPERATOR, _ACCOUNT, _USER, _SEED = 14 << 3, 0, 20 << 3, 18 << 3  # what a key is of, or its seed: O, A, U, S in base32


class Key:
    """A key pair of one kind: `public` names it."""

    def __init__(self, kind: int) -> None:
        self._key = SigningKey.generate()
        self.public = _encoded(bytes([kind]) + bytes(self._key.verify_key))
        self.seed = _encoded(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + bytes(self._key))

    def token(self, subject: str, name: str, claims: dict[str, Any], expires: float | None = None) -> str:
        """Return a signed token that says `claims` of the key `subject`; `expires` is in seconds since the epoch."""
        body = {
            "jti": hashlib.sha256(f"{name}{subject}{time.time_ns()}".encode()).hexdigest().upper(),
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": {**claims, "version": 2},
            **({} if expires is None else {"exp": int(expires)}),
        }
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        return f"{signed}.{_base64(self._key.sign(signed.encode()).signature)}"


POOLS = ("ci", "linux", "mac", "other")


class Realm:
    """An operator, the account of a fleet, one for each pool of the team `web`, and a system account: `options` tell servers.

    A pool's account reaches the fleet's by the subject of its events alone, which it imports as a service.
    """

    def __init__(self) -> None:
        self._operator = Key(_OPERATOR)
        self._account = Key(_ACCOUNT)
        self._pools = {names.events_subject("web", pool): Key(_ACCOUNT) for pool in POOLS}
        self._system = Key(_ACCOUNT)
        claims = {"type": "operator", "system_account": self._system.public}
        self._operator_token = self._operator.token(
            self._operator.public, "operator", claims
        )  # no reload may change it
        self._revoked: dict[str, int] = {}

    @property
    def options(self) -> str:
        """The lines of a server's configuration."""
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
        storage = {"mem_storage": _UNLIMITED, "disk_storage": _UNLIMITED, "streams": _UNLIMITED, "consumer": _UNLIMITED}
        common: dict[str, Any] = {
            "type": "account",
            "limits": {**limits, "wildcards": True},
            "revocations": self._revoked,
        }
        events = {"name": "events", "type": "service"}
        fleet = {**common, "limits": {**limits, "wildcards": True, **storage}}
        accounts: list[tuple[Key, dict[str, Any]]] = [
            (self._account, {**fleet, "exports": [{**events, "subject": names.ALL_EVENTS}]}),
            (self._system, common),
        ]
        for subject, pool in self._pools.items():
            imported = {**events, "subject": subject, "local_subject": subject, "account": self._account.public}
            accounts.append((pool, {**common, "imports": [imported]}))
        preloaded = (f"  {each.public}: {self._operator.token(each.public, 'a', says)}\n" for each, says in accounts)
        return (
            f"operator: {self._operator_token}\nsystem_account: {self._system.public}\nresolver: MEMORY\n"
            f"resolver_preload {{\n{''.join(preloaded)}}}\n"
        )

    def issue(self, file: Path, permissions: Permissions | None = None, expires: float | None = None) -> str:
        """Write a user's credentials to a file, and return the user's key.

        Without permissions it may do anything in the fleet's account; with those of a pool it is of the pool's account.
        """
        user = Key(_USER)
        claims: dict[str, Any] = {"type": "user", **dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)}
        if permissions is not None:
            claims["pub"] = {"allow": list(permissions.publish)}
            claims["sub"] = {"allow": list(permissions.subscribe)}
        account = self._account if permissions is None else self._pools.get(permissions.publish[0], self._account)
        token = account.token(user.public, file.stem, claims, expires)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        file.chmod(0o600)
        return user.public

    def revoke(self, user: str) -> None:
        """Let servers that read `options` anew turn a user away, whatever was issued so far."""
        self._revoked[user] = int(time.time()) + 1


def _encoded(key: bytes) -> str:
    checksum = binascii.crc_hqx(key, 0).to_bytes(2, "little")
    return base64.b32encode(key + checksum).rstrip(b"=").decode()


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
