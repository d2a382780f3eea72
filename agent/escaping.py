"""What came from outside, as text that commands no terminal: the one place for it. Pure, and quick to import.

What has no glyph is escaped: C0 and C1 control characters and DEL, which a terminal obeys; controls of direction and other
invisible characters, which make a text look like another one; separators of lines and paragraphs; lone surrogates, which stand
for bytes of another encoding. https://docs.python.org/3/library/stdtypes.html#str.isprintable is the rule.
"""


def printable(text: str) -> str:
    r"""Return text on one line, in which what has no glyph is an escape as Python writes it: \n, \x9b, \u202e."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_json(text: str) -> str:
    r"""Return JSON with the same values in which what has no glyph is an escape as JSON has it: \u009b, \u202e.

    Control characters stand between values only (RFC 8259, 7): line ends stay, others become spaces.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _in_json(c) for c in text)


def _in_json(character: str) -> str:
    if character < " ":
        return character if character == "\n" else " "
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
