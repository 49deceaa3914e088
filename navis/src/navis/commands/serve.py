"""``navis serve``: an index over HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import EnvironmentLack, UserError

from navis.commands.session import SessionFlags


@dataclass(kw_only=True)
class Serve(SessionFlags, Common):
    """Serve an index over HTTP: JSON and binary, OpenAPI page at /docs, Prometheus at /metrics.

    Without a token only this machine is answered. SIGTERM finishes what is under way and closes.
    """

    index: tyro.conf.Positional[Path]
    """Index folder."""
    host: str = "127.0.0.1"
    """Address to listen at; any but loopback needs a token."""
    port: int = 8080
    """Port; 0 takes a free one."""
    token_file: Path | None = None
    """File with the bearer token all clients must send; or set NAVIS_TOKEN."""
    readonly: bool = False
    """Refuse changes; another process may write."""
    threads: int = 8
    """Searches, and changes, the engine works on at the same time."""
    max_request: str = "16MiB"
    """Largest body."""
    max_rows: int = 1000
    """Most vectors or ids in a request."""
    max_k: int = 1000
    """Most neighbours."""
    max_L: int = 2000
    """Longest search list."""
    max_under_way: int = 256
    """Requests at the same time; more are answered 503."""
    grace: float = 30.0
    """Seconds that requests under way have when the server is to stop."""

    def run(self) -> None:
        """Open, listen, say where, and serve until a signal."""
        try:
            from navis.serve import auth
            from navis.serve.app import create_app
            from navis.serve.config import Limits
            from navis.serve.engine import Engine
            from navis.serve.server import listen, serve, url
        except ModuleNotFoundError as error:
            raise EnvironmentLack(
                f"the Python package {error.name!r} is not installed; "
                "pip install -c constraints.txt './navis[serve]'"
            ) from error

        from navis.checks import byte_count

        limits = Limits(
            request_bytes=byte_count(self.max_request, "--max-request") or 0,
            rows=self.max_rows,
            k=self.max_k,
            list=self.max_L,
            under_way=self.max_under_way,
        )
        if self.grace <= 0:
            raise UserError(f"--grace {self.grace}: use more than 0 seconds")
        token = auth.read_token(self.token_file, os.environ)
        auth.require_token(self.host, token)
        taken = listen(self.host, self.port)
        with taken, self.open(self.index, readonly=self.readonly) as index:
            engine = Engine(
                index,
                threads=self.threads,
                readonly=self.readonly,
                durability=self.durability,
            )
            app = create_app(engine, limits=limits, token=token)

            def ready() -> None:
                about = {
                    "url": url(taken),
                    "pid": os.getpid(),
                    "index": str(self.index),
                    "vectors": len(index),
                    "dim": index.dim,
                    "durability": self.durability,
                    "readonly": self.readonly,
                    "token": token is not None,
                }
                emit(
                    about,
                    self.json,
                    f"{self.index}: {about['vectors']} vectors of {index.dim} dimensions at "
                    f"{about['url']} (/docs describes it; Ctrl+C stops)",
                )

            serve(app, engine, taken, grace_s=self.grace, ready=ready)
