"""A memory limit that does not hold would make every run look frugal."""

from __future__ import annotations

import sys

import pytest
from shorthaul.errors import EnvironmentLack

from smart_infinity.experiments._cgroup import MemoryLimit

MIB = 1 << 20
TAKE = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = b'x' * len(held[::4096])"


@pytest.mark.system
def test_the_limit_holds() -> None:
    try:
        with MemoryLimit(64 * MIB) as group:
            assert group.run([sys.executable, "-c", TAKE, str(16 * MIB)]).returncode == 0
            counted = group.counted()
            assert counted["limit"] == 64 * MIB
            assert 16 * MIB < counted["peak"] < 64 * MIB
            assert counted["killed"] == 0
            assert group.run([sys.executable, "-c", TAKE, str(96 * MIB)]).returncode != 0
            assert group.counted()["killed"] == 1
    except EnvironmentLack as error:
        pytest.skip(str(error))
    assert not group.path.exists()
