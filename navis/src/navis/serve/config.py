"""What a server may be asked for, and on whose behalf."""

from __future__ import annotations

from dataclasses import dataclass

from shorthaul.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for every request.

    Attributes:
        request_bytes: Of a body.
        rows: Of vectors or ids in one request.
        k: Of neighbours per query.
        list: Of the search list L.
        under_way: Requests at the same time; the next is answered 503.
        body_s: Seconds a body may take to arrive.
    """

    request_bytes: int = 16 * 2**20
    rows: int = 1000
    k: int = 1000
    list: int = 2000
    under_way: int = 256
    body_s: float = 30.0

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-request", self.request_bytes),
            ("--max-rows", self.rows),
            ("--max-k", self.k),
            ("--max-L", self.list),
            ("--max-under-way", self.under_way),
        ):
            if value < 1:
                raise UserError(f"{flag} {value}: use 1 or more")
        if self.list < self.k:
            raise UserError(f"--max-L {self.list}: use {self.k}, which is --max-k, or more")
        if self.body_s <= 0:
            raise UserError(f"body_s {self.body_s}: use more than 0")

    @property
    def held_bytes(self) -> int:
        """Bodies in memory at the same time; beyond them a request is answered 503."""
        return 4 * self.request_bytes

    def check_rows(self, n: int, what: str) -> None:
        """Refuse a request of too many rows."""
        if n > self.rows:
            raise UserError(f"{n} {what} in one request: send at most {self.rows}")

    def check_search(self, n: int, k: int, length: int | None) -> int:
        """Refuse a search that asks for too much; give its L."""
        self.check_rows(n, "queries")
        if k > self.k:
            raise UserError(f"k {k}: this server gives at most {self.k}")
        if length is None:
            return min(max(2 * k, 40), self.list)
        if length > self.list:
            raise UserError(f"L {length}: this server searches at most {self.list}")
        return length
