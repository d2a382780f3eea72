"""The pictures of the documents: each shows what the code draws today, and needs nothing from another server."""

import re
from xml.etree import ElementTree as ET

import pytest

from tests.pictures import PICTURES, ROOT


@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_shows_what_the_code_draws(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == PICTURES[path](), "to draw it anew: python -m tests.pictures"


@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_refers_to_no_other_server(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - it is our own
    assert set(re.findall(r"https?://[^\"\s]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "@font-face" not in text
