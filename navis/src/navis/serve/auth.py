"""Who may ask: a bearer token, or, without one, this machine alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from shorthaul import logs
from shorthaul.errors import UserError

from navis.serve.errors import Refused

VARIABLE = "NAVIS_TOKEN"
_SHORTEST = 16
_LOG = logs.get(__name__)


def read_token(file: Path | None, environment: MutableMapping[str, str]) -> str | None:
    """Take the token from a file, else out of the environment; None where neither names one.

    It is removed from the environment, so that no child process inherits it.

    Raises:
        UserError: The file cannot be read, or the token is too short or not printable ASCII.
    """
    inherited = environment.pop(VARIABLE, None)
    if file is None:
        return None if inherited is None else _checked(inherited, VARIABLE)
    try:
        text = file.read_text(encoding="ascii")
        open_to_others = file.stat().st_mode & 0o077
    except OSError as error:
        raise UserError(f"--token-file {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise UserError(f"--token-file {file}: use printable ASCII") from None
    if open_to_others:
        _LOG.warning("%s can be read by others than its owner: chmod 600 it", file)
    return _checked(text, f"--token-file {file}")


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError(f"{where}: use one word of printable ASCII")
    if len(token) < _SHORTEST:
        raise UserError(f"{where}: {len(token)} characters; use {_SHORTEST} or more, random ones")
    return token


def is_loopback(host: str) -> bool:
    """Whether a name or address can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_token(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token."""
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from elsewhere, which needs a token: name a file with "
            f"--token-file or set {VARIABLE}"
        )


class Guard:
    """Decides by a request's headers whether it is answered at all.

    With a token every path but `/healthz` needs it. Without one the server is on loopback, and
    what a browser sends on behalf of a page from elsewhere is refused: a page may name this machine
    as `Origin`, or, by DNS that changes its mind, its own name as `Host`.
    """

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token.encode("ascii"))

    @property
    def has_token(self) -> bool:
        """Whether a token is needed."""
        return self._digest is not None

    def check(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise `Refused` for a request that is not to be answered."""
        if self._digest is None:
            for name, value in headers:
                if name in (b"host", b"origin") and not _local(name, value):
                    raise Refused(403, f"{name.decode()} is not this machine's: use localhost")
            return
        if path == "/healthz":
            return
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, word = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Digests are compared: of equal length, and in constant time.
        same = hmac.compare_digest(_digest(word.strip()), self._digest)
        if not same or scheme.lower() != b"bearer":
            says = "this server needs its token: Authorization: Bearer ..."
            raise Refused(401, says, {"www-authenticate": "Bearer"})


def _digest(word: bytes) -> bytes:
    return hashlib.sha256(word).digest()


def _local(name: bytes, value: bytes) -> bool:
    text = value.decode("latin-1")
    try:
        host = urlsplit(text if name == b"origin" else f"//{text}").hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)
