"""Credentials of NATS: a token that says who one is, and the key that signs what the server asks to be signed.

nats-py reads such files by the package nkeys, of which there is no wheel: it would have to be built wherever it is installed.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

_TOKEN: Final = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-")
_SEED: Final = re.compile(r"BEGIN USER NKEY SEED-+\s+(SU[A-Z2-7]{56})\s+-+END USER NKEY SEED-")


@dataclass(frozen=True)
class Credentials:
    """A user's token, signed by its account, and the user's key."""

    token: bytes = field(repr=False)
    key: SigningKey = field(repr=False)

    def sign(self, nonce: str) -> bytes:
        """Return the signature (Ed25519) of what a server has said, in base64."""
        return base64.b64encode(self.key.sign(nonce.encode()).signature)


def read_credentials(file: Path) -> Credentials:
    """Return what is in a file of `nsc generate creds`. Raises OSError; ValueError, which says what is wrong with it."""
    text = file.read_bytes().decode("ascii", "replace")
    token, seed = _TOKEN.search(text), _SEED.search(text)
    if token is None or seed is None:
        raise ValueError("no credentials of NATS: a file as `nsc generate creds` makes it is wanted")
    key = base64.b32decode(seed[1] + "======")  # two bytes for its kind, 32 of the key, and a checksum of these
    if binascii.crc_hqx(key[:-2], 0) != int.from_bytes(key[-2:], "little"):
        raise ValueError("the key in these credentials of NATS is damaged: a copy of the file is wanted that is whole")
    return Credentials(token[1].encode(), SigningKey(key[2:-2]))
