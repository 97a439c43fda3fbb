"""Serve the stand-in until interrupted: ``python -m examples.standin --port 8000``."""

import argparse
import socket
import sys
import threading

import uvicorn

from examples.standin.app import create_app
from examples.standin.behaviour import Behaviour


def main() -> None:
    """Print the base URL as the first line, then serve."""
    options = _options()
    behaviour = Behaviour(seed=options.seed, latency=tuple(options.latency), error_rate=options.error_rate)
    listener = socket.create_server(("127.0.0.1", options.port))
    server = uvicorn.Server(uvicorn.Config(create_app(behaviour), log_level="warning", access_log=False))
    if options.until_stdin_closes:
        threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    server.run(sockets=[listener])


def _options() -> argparse.Namespace:
    default = Behaviour()
    parser = argparse.ArgumentParser(
        prog="python -m examples.standin", description="An OpenAI-compatible stand-in."
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--latency", type=float, nargs=2, default=default.latency, metavar=("FROM", "TO"), help="seconds"
    )
    parser.add_argument("--error-rate", type=float, default=default.error_rate, help="share of 429 and 500")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end with the process that started this one"
    )
    return parser.parse_args()


def _stop_with_parent(server: uvicorn.Server) -> None:
    # The pipe closes however the parent ends, by SIGKILL too: nothing is left behind.
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
