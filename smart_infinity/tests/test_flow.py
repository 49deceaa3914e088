"""Every byte over the link and on the media is one of the formulas'."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from smart_infinity import bench, formulas
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import TopK

N = 300_001  # 19 tiles of 16,384, the last of 5,089


def report(tmp_path: Path, **options: Any) -> dict[str, Any]:
    config = bench.Config(**{"params": N, "tile": 16384, "devices": 2, **options})
    return bench.run(config, [tmp_path], 3)


@pytest.mark.parametrize(
    ("options", "per_param"),
    [
        ({}, 8),
        ({"param_dtype": "float16"}, 6),
        ({"param_dtype": "bfloat16", "grad_dtype": "bfloat16"}, 4),
        ({"ahead": True}, 8),
        ({"placement": "host"}, 32),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_link_bytes_are_the_formulas(
    options: dict[str, Any], per_param: int, shared: bool, tmp_path: Path
) -> None:
    found = report(tmp_path, options=DeviceOptions(shared=shared), **options)
    link, expected = found["link_bytes"], found["link_bytes_expected"]
    assert link["down"] == expected["down"]
    assert link["up"] == expected["up"]
    overhead = (link["down"] + link["up"]) / N - per_param
    assert 0 < overhead < 0.02
    assert link["control"] < 4000


@pytest.mark.parametrize(
    ("values", "param_dtype", "most"),
    [("float32", "float32", 4.09), ("bfloat16", "float16", 2.09)],
)
def test_compressed_link_bytes(values: str, param_dtype: str, most: float, tmp_path: Path) -> None:
    topk = TopK(0.01, values)
    found = report(tmp_path, compress=topk, param_dtype=param_dtype)
    assert found["link_bytes"]["down"] == found["link_bytes_expected"]["down"]
    assert found["link_bytes"]["up"] == found["link_bytes_expected"]["up"]
    assert found["link_bytes_per_param"] <= most


@pytest.mark.parametrize(
    ("moments", "each"), [("float32", 12), ("bfloat16", 8), ("blocks8", 6 + 2 / 64)]
)
def test_media_bytes_are_the_formulas(moments: str, each: float, tmp_path: Path) -> None:
    found = report(tmp_path, moments=moments, tile=1 << 18)["media_bytes_per_param"]
    read, written = formulas.media_bytes_per_param(2, formulas.MOMENT_BYTES[moments])
    assert read == pytest.approx(each)
    # Whole pages: a tile's arrays end at a multiple of 4 KiB.
    assert read <= found["read"] <= read * 1.02
    assert written <= found["write"] <= written * 1.02


def test_gradients_that_wait_on_disk_are_counted(tmp_path: Path) -> None:
    found = report(tmp_path, ahead=True, options=DeviceOptions(landing_bytes=0))
    media = found["media_bytes_per_param"]
    assert 16 <= media["read"] <= 16.3
    assert 16 <= media["write"] <= 16.3


def test_both_placements_and_all_ways_give_the_same_state(tmp_path: Path) -> None:
    """The state after three steps, whichever way the bytes went."""
    from smart_infinity import wire
    from smart_infinity.wire import Kind

    states = []
    for name, options in {
        "near": {}, "host": {"placement": "host"}, "ahead": {"ahead": True},
        "socket": {"options": DeviceOptions(shared=False)},
        "one slot": {"options": DeviceOptions(slots=1, window=1)},
        "disk": {"ahead": True, "options": DeviceOptions(landing_bytes=0)},
    }.items():  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        config = bench.Config(params=50_001, tile=4096, devices=2, **options)
        with bench.Bench(config, [folder]) as one:
            for _ in range(3):
                one.step()
            held = []
            for tile, array in itertools.product(one.array.layout.tiles, range(3)):
                device = one.array.devices[tile.device]
                device.on_answer = None
                slot = device.acquire()
                flags = wire.DECODED | 1 << array << wire.MASK_SHIFT
                device.submit(Kind.READ, slot, tile.index, flags=flags)
                device.wait_idle()
                assert device.failure is None
                assert device.slots is not None
                held.append(bytes(device.slots.up(slot)[: 4 * tile.elements]))
            states.append(b"".join(held))
    assert all(state == states[0] for state in states)


def test_a_shaped_link_says_that_it_is_emulated(tmp_path: Path) -> None:
    found = report(tmp_path, link_rate=50e6)
    assert "link shaped to 50 MB/s" in found["emulated"]
    assert found["seconds"]["total_s"] >= 0.9 * 4 * N / 50e6
