"""What `import-csv` should say about a CSV file, computed in another way, to check the job against.

Nothing is shared with the job: the whole file is read at once with `csv.DictReader`, every column is a list, and the
numbers come from the `statistics` module instead of from SQL. It is for files whose quoting is in order (of broken
quoting, where the job puts a row aside, the csv module makes something), and whose numbers have neither plus signs nor
bare exponents, which the job may take for codes.

    >>> expected = expected_statistics("birdstrikes.csv")
    >>> expected["rows"]
    10000
    >>> differences(expected, run["output"])
    []

From the command line it prints the statistics as JSON: `python build_scripts/expected_statistics.py FILE`.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

ENOUGH = 0.99
RELATIVE_TOLERANCE = 1e-9


def expected_statistics(path: str | Path, encoding: str = "utf-8", delimiter: str = ",") -> dict[str, Any]:
    """Returns {rows, bad_rows, columns} of a CSV file, in the form of the output of `import-csv`."""
    with open(path, encoding=encoding.replace("utf-8", "utf-8-sig"), newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        records = list(reader)
        names = list(reader.fieldnames or ())
    good = [{name: value or "" for name, value in record.items()} for record in records if None not in record]
    columns = [describe_column(name, [record[name] for record in good]) for name in names]
    return {"rows": len(good), "bad_rows": len(records) - len(good), "columns": columns}


# --- Types ------------------------------------------------------------------------------------------------------------


MISSING = {"na", "n/a", "#n/a", "null", "nan", "none", "-", "--", ".", "?"}


def is_missing(value: str) -> bool:
    return not value.strip() or value.strip().lower() in MISSING


def type_of(values: list[str]) -> str:
    """Returns the first type that at least 99 of 100 values fit; text where there are none, or digits begin with 0."""
    if values and not any(is_code(value.strip()) for value in values):
        for name in ("integer", "number", "date", "boolean"):
            fitting = sum(map(CHECKS[name], map(str.strip, values)))
            fractions = name == "integer" and any(
                is_number(value.strip()) and not is_integer(value) for value in values
            )
            if fitting >= ENOUGH * len(values) and not fractions:
                return name
    return "text"


def is_code(value: str) -> bool:
    return len(value) > 1 and value[0] == "0" and value.isascii() and value.isdigit()


def is_integer(value: str) -> bool:
    value = value.strip()
    digits = value[1:] if value[:1] in ("+", "-") else value
    return digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0") and abs(int(value)) < 2**63


def is_number(value: str) -> bool:
    if is_integer(value):
        return True
    unsigned = value[1:] if value[:1] in ("+", "-") else value
    if not unsigned.isascii() or not set(unsigned.lower()) <= set("0123456789.e+-") or unsigned.isdigit():
        return False
    if unsigned[:1] == "0" and unsigned[1:2].isdigit():
        return False
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def is_date(value: str) -> bool:
    """A date as 2026-01-31, or with a time as 2026-01-31T12:00 or 2026-01-31 12:00:00.5+01:00."""
    try:
        date.fromisoformat(value[:10])
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return value[4:5] == value[7:8] == "-" and (len(value) == 10 or (value[10] in "T " and value[13:14] == ":"))


def is_boolean(value: str) -> bool:
    return value.lower() in ("true", "false")


CHECKS: dict[str, Callable[[str], bool]] = {
    "integer": is_integer,
    "number": is_number,
    "date": is_date,
    "boolean": is_boolean,
}


# --- Statistics -------------------------------------------------------------------------------------------------------


def describe_column(name: str, texts: list[str]) -> dict[str, Any]:
    """Returns one entry of `columns`. A cell that is not of the column's type counts as odd and for nothing else."""
    type_name = type_of([text for text in texts if not is_missing(text)])
    present = [text for text in texts if (text if type_name == "text" else not is_missing(text))]
    values = [text for text in present if type_name == "text" or CHECKS[type_name](text.strip())]
    basis = {
        "name": name,
        "type": type_name,
        "count": len(values),
        "nulls": len(texts) - len(present),
        "odd": len(present) - len(values),
    }
    if type_name == "integer":
        return basis | describe_numbers([int(value) for value in values], 16, whole=True)
    if type_name == "number":
        return basis | describe_numbers([float(value) for value in values], 16, whole=False)
    if type_name == "date":
        return basis | describe_dates([value.strip() for value in values])
    if type_name == "boolean":
        return basis | describe_values([value.strip().lower() == "true" for value in values])
    return basis | describe_values(values)


def describe_numbers(values: list[float], bins: int, whole: bool) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "distinct": len(set(values)),
        "min": shown(min(values)) if values else None,
        "max": shown(max(values)) if values else None,
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if several else None,
        "histogram": histogram(values, bins, whole) if values else [],
    }


def shown(value: float) -> float | str:
    return str(value) if isinstance(value, int) and abs(value) >= 2**53 else value


def histogram(values: list[float], bins: int, whole: bool) -> list[dict[str, Any]]:
    """Counts values in equal bins from the least on; whole numbers in bins of a whole width, just enough of them."""
    low, high = min(values), max(values)
    if low == high:
        width, bins = 1, 1
    elif whole:
        width = math.ceil((high - low + 1) / bins)
        bins = math.ceil((high - low + 1) / width)
    else:
        width = (high - low) / bins
    counts = Counter(min(math.floor((value - low) / width), bins - 1) for value in values)
    return [{"from": low + width * bin, "to": low + width * (bin + 1), "count": counts[bin]} for bin in range(bins)]


def describe_dates(values: list[str]) -> dict[str, Any]:
    years = [date.fromisoformat(value[:10]).year for value in values]
    period = 1
    while values and (max(years) - min(years)) // period >= 40:
        period *= 10
    counts = Counter(year - year % period for year in years)
    return {
        "distinct": len(set(values)),
        "min": min(values, default=None),
        "max": max(values, default=None),
        "years": [{"year": year, "count": counts[year]} for year in sorted(counts)],
    }


def describe_values(values: list[Any]) -> dict[str, Any]:
    counts = Counter(values)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "distinct": len(counts),
        "top": [{"value": shortened(value), "count": count} for value, count in ranked[:10]],
    }


def shortened(value: Any) -> Any:
    return value[:80] + "…" if isinstance(value, str) and len(value) > 80 else value


# --- Comparing --------------------------------------------------------------------------------------------------------


def differences(expected: Any, found: Any, where: str = "output") -> list[str]:
    """Returns a sentence for everything in `expected` that is not the same in `found`, fractions up to a billionth.

    What `found` has beyond that, at the top, is not looked at: a job's output says more than its statistics.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{where} has no {key!r}" for key in expected if key not in found]
        common = [key for key in expected if key in found]
        return missing + [line for key in common for line in differences(expected[key], found[key], f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{where} has {len(found):,} entries instead of {len(expected):,}"]
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{where}[{index}]")]
    return [] if same(expected, found) else [f"{where} is {found!r} instead of {expected!r}"]


def same(expected: Any, found: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE)
    return expected == found


if __name__ == "__main__":
    print(json.dumps(expected_statistics(sys.argv[1]), indent=1, ensure_ascii=False))
