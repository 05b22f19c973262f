"""Build dist/ and serve it as any static host would: python3 build_scripts/serve.py [--port N] [--host ADDRESS]."""

import argparse
from pathlib import Path

from distribution import build
from environment import run_in_environment
from progress import SetupError
from static_server import StaticServer


def main() -> int:
    """Build, and serve until Ctrl-C; returns the exit code."""
    arguments = _parse_arguments()
    return serve(build(), arguments.host, arguments.port)


def serve(folder: Path, host: str, port: int) -> int:
    """Serve a folder until Ctrl-C; returns the exit code."""
    with _listen(folder, host, port) as server:
        print(f"\nServing dist/ at {server.url} (Ctrl-C ends it)", flush=True)
        server.wait()
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build dist/ and serve it with plain static headers.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    return parser.parse_args()


def _listen(folder: Path, host: str, port: int) -> StaticServer:
    try:
        return StaticServer(folder, host=host, port=port)
    except OSError as error:
        raise SetupError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error


if __name__ == "__main__":
    run_in_environment(main)
