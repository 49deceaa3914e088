"""What measures disks and devices: moves what it says, leaves nothing, and shares follow speeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import Fault, UserError
from smart_testing import Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity import SmartOptimizer, bench, rates
from smart_infinity.array import weights_by_speed
from smart_infinity.client import DeviceOptions
from smart_infinity.planner import Rates
from smart_infinity.rates import BLOCK, RawDisk


@pytest.mark.parametrize(
    ("reads", "writes", "share"), [(1, 0, 1.0), (0, 1, 0.0), (1, 1, 0.5), (3, 1, 0.75)]
)
def test_a_raw_test_moves_what_it_says(
    reads: int, writes: int, share: float, tmp_path: Path
) -> None:
    disk = RawDisk(tmp_path, 8, depth=4)
    try:
        before = disk.ring.counters
        found = disk.run(40 * BLOCK, reads=reads, writes=writes)
        after = disk.ring.counters
    finally:
        disk.close()
    assert found.read_bytes == 40 * BLOCK * share == after.read_bytes - before.read_bytes
    assert found.write_bytes == 40 * BLOCK * (1 - share) == after.write_bytes - before.write_bytes
    assert found.total == pytest.approx(40 * BLOCK / found.seconds)
    assert found.read == pytest.approx(found.total * share)
    assert list(tmp_path.iterdir()) == []


def test_a_raw_test_is_past_the_page_cache(tmp_path: Path) -> None:
    disk = RawDisk(tmp_path, 8, depth=4)
    before = bench.host_io()
    found = disk.run(32 * BLOCK)
    after = bench.host_io()
    disk.close()
    if not found.direct:
        pytest.skip("the file system under the tests refuses O_DIRECT")
    if not before:
        pytest.skip("the kernel does not tell /proc/self/io")
    for key in ("read_bytes", "write_bytes"):
        assert 0 <= after[key] - before[key] - 16 * BLOCK < BLOCK


def test_a_raw_test_needs_room_for_its_transfers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a disk test of 7 MiB: use 8 or more"):
        RawDisk(tmp_path, 7, depth=4)


def test_measuring_leaves_nothing(tmp_path: Path) -> None:
    found = rates.measure(tmp_path, 64)
    assert isinstance(found, Rates)
    for name in ("media_read", "media_write", "media_both", "media_all", "kernel", "commit_s"):
        assert getattr(found, name) > 0
    assert found.link_down == found.link_up == 0  # nobody has measured a link
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["adamw", "adam", "adagrad", "sgd"])
def test_kernels_are_measured(kind: str) -> None:
    assert 0 < rates.kernel_rate(kind, 1 << 12, 0.01) < math.inf


def test_a_slowed_device_is_as_slow_as_it_is_told(tmp_path: Path) -> None:
    """Of 12 bytes a parameter none is written sooner than the rate allows."""
    options = DeviceOptions(write_rate=24e6)
    found = rates.device_speed(tmp_path, options, params=1 << 19)
    assert 0 < found <= 2e6
    assert list(tmp_path.iterdir()) == []


def test_speeds_are_of_each_device_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def speed(address: Any, options: Any = None, *, params: int) -> float:
        asked.append((address, options, params))
        return float(len(asked))

    monkeypatch.setattr(rates, "device_speed", speed)
    slow = DeviceOptions(read_rate=1e6)
    assert rates.device_speeds(["a", "b"], [DeviceOptions(), slow], params=8) == [1.0, 2.0]
    assert asked == [("a", DeviceOptions(), 8), ("b", slow, 8)]


@pytest.mark.parametrize("address", ["tcp:nowhere:7000", "unix:/nowhere"])
def test_a_device_elsewhere_cannot_be_measured(address: str) -> None:
    with pytest.raises(UserError, match="give weights as numbers"):
        rates.device_speed(address)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be measured"):
        rates.device_speed(tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("speeds", "weights"),
    [
        ([100.0, 100.0], [1.0, 1.0]),
        ([100.0, 98.5], [1.0, 1.0]),  # noise
        ([50.0, 100.0], [0.5, 1.0]),
        ([26.0, 100.0], [0.25, 1.0]),
        ([1e-9, 100.0], [1 / 16, 1.0]),  # a device with nothing would be none
    ],
)
def test_shares_follow_speeds(speeds: list[float], weights: list[float]) -> None:
    assert weights_by_speed(speeds) == weights


@pytest.mark.parametrize("speeds", [[], [0.0, 1.0], [-1.0]])
def test_speeds_that_are_none(speeds: list[float]) -> None:
    with pytest.raises(Fault, match="all must be above 0"):
        weights_by_speed(speeds)


def test_a_new_state_is_striped_by_speed_and_the_bits_stay(
    smart: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[Any] = []

    def speeds(addresses: Any, options: Any = None, **_: Any) -> list[float]:
        measured.append([Path(address).name for address in addresses])
        return [300.0, 100.0]

    monkeypatch.setattr(rates, "device_speeds", speeds)
    sizes = (40_000,)
    ours, equal = tensors(sizes), tensors(sizes)
    torchs = tensors(sizes)
    striped = smart(ours, 2, weights="measured", lr=1e-3)
    shares = [int(striped.array.layout.tile_elements(d).sum()) for d in range(2)]
    assert sum(shares) == 40_000
    assert shares[0] / 40_000 == pytest.approx(0.75, abs=0.03)
    folders = [tmp_path / "equal-0", tmp_path / "equal-1"]
    other = SmartOptimizer(equal, devices=folders, tile=1024, lr=1e-3)
    reference = torch.optim.AdamW(torchs, lr=1e-3, fused=True)
    for step in range(3):
        for params, optimizer in ((ours, striped), (equal, other), (torchs, reference)):
            set_gradients(params, gradients(params, step))
            optimizer.step()
    assert differing_bits(ours, torchs) == differing_bits(equal, torchs) == 0
    other.close()
    striped.close()
    assert measured == [["device-0", "device-1"]]
    # A state keeps its shares: nothing is measured when it is resumed.
    again = smart(ours, 2, weights="measured", lr=1e-3)
    assert [int(again.array.layout.tile_elements(d).sum()) for d in range(2)] == shares
    assert again.array.step == 3
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("weights", "says"), [("fast", "use numbers, or 'measured'"), ([1.0, 0.0], "all above 0")]
)
def test_weights_that_cannot_be(smart: Make, weights: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        smart(tensors((5000,)), 2, weights=weights)


def test_a_bench_of_unlike_devices(tmp_path: Path) -> None:
    each = (DeviceOptions(), DeviceOptions(read_rate=50e6, write_rate=25e6))
    config = bench.Config(params=100_000, devices=2, tile=4096, each=each, weights=[3.0, 1.0])
    with bench.Bench(config, [tmp_path]) as one:
        one.step()
        shares = [int(one.array.layout.tile_elements(d).sum()) for d in range(2)]
    assert shares[0] / 100_000 == pytest.approx(0.75, abs=0.05)
    assert bench.emulated(config) == (
        "device 1's media slowed to 50 MB/s reads and 25 MB/s writes by token buckets"
    )
    assert bench.emulated(bench.Config(params=1)) is None
    with pytest.raises(UserError, match="2 options for 3 devices"):
        bench.Bench(bench.Config(params=1, devices=3, each=each), [tmp_path])
