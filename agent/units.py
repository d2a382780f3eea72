"""Durations and sizes as people write them. Quick to import: commands need it before anything else."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

_QUANTITY: Final = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?([A-Za-z]*)")
_SECONDS: Final = {"": "1", "ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}
_BYTES: Final = {"": "1", "b": "1"} | {
    f"{letter}{suffix}": str(step**power)
    for power, letter in enumerate("kmgt", start=1)
    for suffix, step in (("b", 1000), ("ib", 1024))
}


def parse_duration(value: object) -> float:
    """Seconds from `"250ms"`, `"1.5s"`, `"5m"`, `"1h"`, `"7d"` or a plain number of seconds; `ValueError` otherwise."""
    amount = _quantity(value, _SECONDS)
    if amount is None or amount > 36500 * 86400:
        raise ValueError('is not a duration: write it like "250ms", "2s", "5m", "1h" or "7d" (at most "36500d")')
    return float(amount)


def parse_size(value: object) -> int:
    """Bytes from `"8MiB"`, `"64KB"` or a plain number; `ValueError` otherwise.

    Not pydantic's `ByteSize`, which reads `"1,5GiB"` as one byte and ignores whatever follows the unit.
    """
    amount = _quantity(value.lower() if isinstance(value, str) else value, _BYTES)
    if amount is None or amount != int(amount) or amount >= 2**63:
        raise ValueError('is not a size: write it like "512KiB", "8MiB", "64KB" or as a whole number of bytes')
    return int(amount)


def _quantity(value: object, units: Mapping[str, str]) -> Decimal | None:
    """The amount in the base unit; None for anything that is not a number, or a number with a unit of the table."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number if (number := Decimal(value if isinstance(value, int) else str(value))).is_finite() else None
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    return Decimal(match[1]) * Decimal(units[match[2]]) if match and match[2] in units else None
