"""Text for rich: the only way in which views make it, so that whatever is in it is escaped. Pure."""

from rich.text import Text

from agent.escaping import printable


def rendered(text: str, style: str = "") -> Text:
    """Return a text of one line, escaped, in a style of rich's."""
    return Text(printable(text), style)
