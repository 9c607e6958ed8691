"""Quantities as people write them: "1.3B" <-> 1_300_000_000, bytes as GiB, seconds as days.

Counts are decimal (1k = 1000), sizes in memory are binary (1 GiB = 2**30).
"""

import re
from fractions import Fraction

from scaling.errors import InputError

KIB, MIB, GIB = 2**10, 2**20, 2**30
BITS_PER_BYTE = 8
SECONDS_PER_DAY = 86_400
HOURS_PER_DAY = 24

_COUNT = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]{1,3})?)\s*([kKmMbBgGtT]?)", re.ASCII)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_LARGEST_COUNT = 10**18
_LONGEST_COUNT = 64  # characters


def parse_count(text: str | int, field: str) -> int:
    """A positive whole number: "1.3B", "350M", "64k", "2e9", "512".

    Raises InputError naming `field` for anything else, a fraction such as "1.5" included.
    """
    hint = "write a positive number such as 512, 64k, 350M or 1.3B"
    text = str(text).strip()
    match = _COUNT.fullmatch(text) if len(text) <= _LONGEST_COUNT else None
    if not match:
        raise InputError(field, text, "is not a positive number", hint=hint)
    value = Fraction(match[1].replace("_", "")) * _SCALE[match[2].lower()]
    if value <= 0:
        raise InputError(field, text, "must be greater than zero", hint=hint)
    if value > _LARGEST_COUNT:
        raise InputError(field, text, "is beyond 10^18", hint=hint)
    if value.denominator != 1:
        raise InputError(field, text, "is not a whole number", hint=hint)
    return int(value)


def format_count(value: float) -> str:
    """1_315_575_808 -> "1.32B"; three significant digits."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if _three_digits(value / scale) >= 1:
            return f"{_three_digits(value / scale):.15g}{suffix}"
    return f"{_three_digits(value):.15g}"


def _three_digits(value: float) -> float:
    """`value` to three significant digits, so that 999,600 is 1M and not 1000k."""
    return float(f"{value:.3g}")


def format_bytes(value: float) -> str:
    """In GiB from one upwards, else MiB, else KiB."""
    if value >= GIB:
        return f"{value / GIB:.1f} GiB"
    if value >= MIB:
        return f"{value / MIB:.1f} MiB"
    return f"{value / KIB:.1f} KiB"


def format_duration(seconds: float) -> str:
    """The largest fitting unit of ms, s, minutes, hours, days, years."""
    for unit, size in (("years", 365.25 * 86_400), ("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if _three_digits(seconds / size) >= 1:
            return f"{_three_digits(seconds / size):.15g} {unit}"
    return f"{_three_digits(seconds * 1e3):.15g} ms"
