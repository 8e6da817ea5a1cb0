"""The server as a process: where it listens, what it says, and when it refuses to start."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from tuneworthy.errors import ProjectError
from tuneworthy.server.app import create_app
from tuneworthy.server.guard import LOOPBACK
from tuneworthy.server.house import House

DRAIN_SECONDS = 20


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def run(house: House, host: str, port: int, *, work: bool = True) -> None:
    """Listen until Ctrl-C or SIGTERM; answers under way are finished first.

    Raises ProjectError for an address that others can reach while there is no key, or one that
    cannot be listened on.
    """
    local = is_loopback(host)
    if not local and not house.keys.every():
        raise ProjectError(
            f"others can reach {host}, and there is no key yet",
            where="--host",
            hint="tuneworthy keys add NAME --scope infer",
        )
    listening = _listen(host, port)
    address = f"http://{host}:{listening.getsockname()[1]}"
    hosts = (*LOOPBACK, host) if local else None
    app = create_app(house, hosts=hosts, work=work)
    print(f"page  {address}/", flush=True)
    print(f"API   {address}/v1   ({'a key is needed' if house.keys.every() else 'no key'})")
    for name in house.models():
        print(f"model {name}")
    print("Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # prompts are nobody's business, and neither are keys
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise ProjectError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            where="--port",
            hint="another port: tuneworthy serve --port 8766",
        ) from None
    listening.listen(2048)
    return listening
