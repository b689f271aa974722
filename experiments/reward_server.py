"""The reward of a run as a service: its search engine, its M1 and its judge.

    python -m experiments.reward_server quickstart

Training processes then ask it instead of loading these themselves:

    python -m experiments.online_dpo quickstart --system.service.urls http://HOST:8765

The token that both have to know is in the environment variable JAXQR_TOKEN. SIGTERM
and ctrl-C end it once the requests under way are answered.
"""

import os
import signal
import socket
from pathlib import Path

from experiments.cli import launch
from experiments.config import RewardServer
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from experiments.system import POOLS, System

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DRAIN = 60
"""Seconds that requests under way get to end."""


def main(run: Path, config: RewardServer) -> None:
    """Serves until it is told to stop."""
    try:
        import uvicorn

        from jaxqr.rewards import service
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install 'jaxqr[serve]' (in a checkout "
            'pip install -e ".[serve]")'
        ) from None
    token = os.environ.get("JAXQR_TOKEN")
    if not token and config.host not in LOOPBACK:
        raise ValueError(
            f"without a token {config.host} would serve everybody: set JAXQR_TOKEN, or "
            "serve this machine alone with --host 127.0.0.1"
        )
    if config.system.service.urls:
        raise ValueError("a reward server does not ask another: leave out service.urls")
    system = System(run, Prepared(run), config.system)
    system.counts()  # warns if the judge's anchors have moved since the run began
    app = service.app(
        dict(zip(POOLS, (system.reward, system.guard), strict=True)),
        token=token,
        workers=config.workers,
        queue=config.queue,
        max_body=config.max_body,
    )
    try:
        listening = socket.create_server((config.host, config.port))
    except OSError as error:
        raise ValueError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror}): choose "
            "another --port, or 0 for any that is free"
        ) from None
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=DRAIN)
    host, port = listening.getsockname()[:2]
    server = uvicorn.Server(settings)
    # Before uvicorn listens to signals, and when it sends itself the one that it has
    # served, at its end.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    print(f"serving the reward of {run} at http://{host}:{port}", flush=True)
    server.run(sockets=[listening])
    print("stopped; all requests are answered")


SERVERS = {
    name: RewardServer(system=preset.online.system) for name, preset in PRESETS.items()
}

if __name__ == "__main__":
    launch(main, SERVERS, __doc__)
