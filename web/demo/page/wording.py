"""How the page says things: numbers and sizes."""

import math

MISSING = "\u2013"


def number(value):
    """A number with thousands separators and at most six significant digits after which none counts."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if value == int(value):
        return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.6g}"
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.6g}"
    digits = max(0, 5 - math.floor(math.log10(abs(value))))
    whole, _, fraction = f"{abs(value):.{min(digits, 6)}f}".partition(".")
    fraction = fraction.rstrip("0")
    return ("-" if value < 0 else "") + f"{int(whole):,}" + (f".{fraction}" if fraction else "")


def compact(value):
    """A number for the axis of a chart, such as 12k."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= abs(value) < limit * 1e5:
            return f"{value / (1000 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e4 else f"{value:.4g}"


def count(amount, one, many=None):
    """Such as "1 row" or "2,000 rows"."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def size(amount):
    """Bytes, for a person."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= limit:
            return f"{amount / limit:.1f} {unit}"
    return count(amount, "byte")
