from __future__ import annotations

from typing import Any

import pytest
from shorthaul.errors import UserError

from navis.serve.config import Limits


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"request_bytes": 0}, "--max-request"),
        ({"rows": 0}, "--max-rows"),
        ({"k": -1}, "--max-k"),
        ({"k": 10, "list": 9}, "--max-L"),
        ({"under_way": 0}, "--max-under-way"),
        ({"body_s": 0.0}, "body_s"),
    ],
)
def test_impossible_bounds_name_their_flag(given: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        Limits(**given)


def test_bounds_are_inclusive() -> None:
    limits = Limits(rows=3, k=5, list=8)
    limits.check_search(3, 5, 8)
    for n, k, length in ((4, 5, 8), (3, 6, 8), (3, 5, 9)):
        with pytest.raises(UserError, match="at most"):
            limits.check_search(n, k, length)
