from __future__ import annotations

import hmac
import logging
from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import UserError

from navis.serve import auth
from navis.serve.auth import Guard, is_loopback, read_token, require_token
from navis.serve.errors import Refused

TOKEN = "correct-horse-battery"


def headers(**given: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in given.items()]


def test_a_token_is_read_from_a_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    environment = {auth.VARIABLE: "another-long-enough-one"}
    assert read_token(file, environment) == TOKEN
    assert not environment, "children would inherit it"
    assert read_token(None, {auth.VARIABLE: TOKEN}) == TOKEN
    assert read_token(None, {}) is None


@pytest.mark.parametrize("text", ["", "short", "two words of sixteen", "grüße-grüße-grüße"])
def test_weak_or_unsendable_tokens_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="--token-file"):
        read_token(file, {})
    with pytest.raises(UserError, match=auth.VARIABLE):
        read_token(None, {auth.VARIABLE: text})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file"):
        read_token(tmp_path / "none", {})


def test_a_file_open_to_others_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("shorthaul"), "propagate", True)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    read_token(file, {})
    assert "chmod 600" in caplog.text
    caplog.clear()
    file.chmod(0o600)
    read_token(file, {})
    assert not caplog.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"]
)
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    require_token(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "localhost.example", ""]
)
def test_everything_else_does(host: str) -> None:
    with pytest.raises(UserError, match="--token-file"):
        require_token(host, None)
    require_token(host, TOKEN)


def test_with_a_token_all_but_healthz_need_it() -> None:
    guard = Guard(TOKEN)
    guard.check("/healthz", [])
    for path in ("/v1/search", "/metrics", "/readyz", "/docs", "/openapi.json", "/healthz/", "/x"):
        with pytest.raises(Refused, match="token") as refused:
            guard.check(path, [])
        assert refused.value.status == 401
        assert refused.value.headers == {"www-authenticate": "Bearer"}
        guard.check(path, headers(authorization=f"Bearer {TOKEN}"))
        guard.check(path, headers(authorization=f"bearer  {TOKEN} "))


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_wrong_tokens(value: str) -> None:
    with pytest.raises(Refused):
        Guard(TOKEN).check("/v1/search", headers(authorization=value))


def test_two_tokens_are_none() -> None:
    twice = headers(authorization=f"Bearer {TOKEN}") * 2
    with pytest.raises(Refused):
        Guard(TOKEN).check("/v1/search", twice)


def test_the_comparison_is_of_equal_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    whole = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return whole(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for word in ("", "x", TOKEN[:-1], TOKEN * 3):
        with pytest.raises(Refused):
            Guard(TOKEN).check("/", headers(authorization=f"Bearer {word}"))
    assert {len(side) for pair in compared for side in pair} == {32}
    assert len(compared) == 4


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("host", "localhost:8080", True),
        ("host", "127.0.0.1", True),
        ("host", "[::1]:8080", True),
        ("host", "rebound.example:8080", False),
        ("host", "127.0.0.1.example", False),
        ("host", "[::1", False),
        ("origin", "http://localhost:3000", True),
        ("origin", "https://evil.example", False),
        ("origin", "null", False),
    ],
)
def test_without_a_token_pages_from_elsewhere_are_refused(
    name: str, value: str, good: bool
) -> None:
    if good:
        Guard(None).check("/v1/search", headers(**{name: value}))
        return
    with pytest.raises(Refused, match=name) as refused:
        Guard(None).check("/v1/search", headers(**{name: value}))
    assert refused.value.status == 403
