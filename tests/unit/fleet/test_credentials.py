"""Files of credentials, as nsc makes them; the key is the one that the documents of NATS show."""

from pathlib import Path

import pytest

from agent.fleet.nats_credentials import read_credentials

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
TOKEN = "eyJ0eXAiOiJKV1QifQ.eyJuYW1lIjoiY2kifQ.c2ln"
FILE = f"""-----BEGIN NATS USER JWT-----
{TOKEN}
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.
NKEYs are sensitive and should be treated as secrets.

-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------

*************************************************************
"""


@pytest.mark.parametrize("text", [FILE, FILE.replace("\n", "\r\n")], ids=["LF", "CRLF"])
def test_the_token_is_sent_and_the_key_signs_as_nats_own_library_does(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ci.creds"
    file.write_bytes(text.encode())
    found = read_credentials(file)
    assert found.token == TOKEN.encode()
    assert found.sign("PXoWU7zWAMt75FY") == (
        b"zHsjAXoXbo2tbVRLf6/3+aHC2CGLiez1yMSLOyF4Z2wmzmO4ppyieii5IZsQSBgfdppsi6wMHWzYYXUv6A+8DQ=="
    )
    assert repr(found) == "Credentials()"  # nothing of it gets into a log


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no credentials of NATS"),
        ("ü", "no credentials of NATS"),
        (FILE.partition("*")[0], "no credentials of NATS"),
        (FILE.replace(SEED, SEED[:-1]), "no credentials of NATS"),
        (FILE.replace(SEED, f"SA{SEED[2:]}"), "no credentials of NATS"),
        (FILE.replace(TOKEN, ""), "no credentials of NATS"),
        (FILE.replace("XKF", "XKG"), "the key in these credentials of NATS is damaged"),
    ],
    ids=["empty", "not ASCII", "no key", "a short key", "an account's key", "no token", "a key with a wrong letter"],
)
def test_it_is_said_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "ci.creds"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_credentials(file)
