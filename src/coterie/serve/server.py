"""The server of the application: a socket, and uvicorn on it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import uvicorn
from fastapi import FastAPI

from coterie.errors import ConfigError

# Connections at once; the application itself lets fewer requests wait.
MOST_CONNECTIONS = 128


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `port` 0 takes any that is free. ConfigError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"port {port} of {host} cannot be listened on: {reason}; name others with --host and --port"
        ) from None


def address(listening: socket.socket) -> str:
    """The URL of the page."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    config = uvicorn.Config(
        app, limit_concurrency=MOST_CONNECTIONS, server_header=False, log_level="warning", access_log=False
    )
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
