"""``smart-infinity device``: serve a folder as a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common
from shorthaul.errors import UserError


@dataclass(kw_only=True)
class DeviceCommand(Common):
    """Own a folder and serve it to hosts, one at a time, until stopped."""

    folder: tyro.conf.Positional[Path]
    """Folder of the state, on the disk that is to hold it."""
    listen: str = "unix:device.sock"
    """unix:PATH, or tcp:HOST:PORT (port 0: any)."""
    token_file: Path | None = None
    """File with the token hosts must prove, or SMART_INFINITY_TOKEN; needed beyond loopback."""
    tls_cert: Path | None = None
    """Certificate (PEM) for TLS."""
    tls_key: Path | None = None
    """Its key, when that is in a file of its own."""

    def run(self) -> None:
        """Serve."""
        from smart_infinity import serve

        tls = None
        if self.tls_cert is not None:
            tls = serve.tls_context(self.tls_cert, self.tls_key)
        elif self.tls_key is not None:
            raise UserError("--tls-key without --tls-cert")
        serve.serve(
            self.folder,
            self.listen,
            token=token(self.token_file),
            tls=tls,
            ready=lambda text: print(text, flush=True),
        )


def token(file: Path | None) -> str | None:
    """Read the token from a file or the environment; an empty one is a UserError."""
    if file is None:
        return os.environ.get("SMART_INFINITY_TOKEN") or None
    try:
        text = file.read_text().strip()
    except OSError as error:
        raise UserError(f"--token-file {file}: cannot be read ({error.strerror})") from error
    if not text:
        raise UserError(f"--token-file {file} is empty")
    return text
