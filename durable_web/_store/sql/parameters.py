"""Parameters of statements."""

from __future__ import annotations

from typing import Any


def many(name: str, values: list[str]) -> tuple[str, dict[str, Any]]:
    parameters = {f"{name}_{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{key}" for key in parameters), parameters
