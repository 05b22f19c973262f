"""The engine in a browser. This package is only imported inside Pyodide, in the leader's worker.

``worker/engine-worker.js`` calls ``start`` once the storage is mounted and the packages are installed.
"""

from .host import Host, start

__all__ = ["Host", "start"]
