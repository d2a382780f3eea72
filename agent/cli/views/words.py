"""The program's name, and numbers as people read them. Pure, and quick to import."""

PROGRAM = "artifacts-agent"
_LENGTHS = {"h": 3600, "m": 60, "s": 1}
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def amount(count: int, noun: str) -> str:
    """Return such as "1 event" or "1,204 events"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def delivered(count: int, forwarded: int) -> str:
    """Return such as "3 events delivered", "3 events forwarded", or both."""
    if forwarded and count:
        return f"{amount(count, 'event')} delivered, {forwarded:,} forwarded"
    return f"{amount(forwarded, 'event')} forwarded" if forwarded else f"{amount(count, 'event')} delivered"


def duration(seconds: float) -> str:
    """Return such as "0 s", "45 s", "3 min 20 s" or "2 d 4 h": the two largest units."""
    rest, parts = int(seconds), []
    for unit, length in _UNITS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def size(count: float) -> str:
    """Return such as "512 B" or "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def clock(seconds: float) -> str:
    """Return such as "45s", "11m02s", "2h05m" or "3d04h", which fits into a table."""
    rest = round(seconds)
    for unit, length, smaller in (("d", 86_400, "h"), ("h", 3600, "m"), ("m", 60, "s")):
        if rest >= length:
            return f"{rest // length}{unit}{rest % length // _LENGTHS[smaller]:02d}{smaller}"
    return f"{rest}s" if rest or not seconds else "<1s"


def percent(share: float | None) -> str:
    """Return such as "92 %": never all or nothing unless it is; "none" for what has no share."""
    if share is None:
        return "none"
    rounded = round(100 * share)
    if 0 < share < 1:
        rounded = min(max(rounded, 1), 99)
    return f"{rounded} %"
