"""What the benchmarks ran on."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Processor, memory, operating system and Python, each as a line of text."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "operating system": platform.platform(),
        "load when it began": _load(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "SQLite of Python": sqlite3.sqlite_version,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "not known"
    return f"{size / 2**30:.1f} GiB"


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f} in the minute before"
    except (AttributeError, OSError):
        return "not known"
