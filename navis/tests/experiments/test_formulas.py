"""The cost formulas against the table of the notes (section 1.4) and against our own pages."""

from __future__ import annotations

import pytest

from navis.formulas import Cost, bare_shape, reads, writes
from navis.layouts import shape

# d, S, records a page; KiB: search packed, selective at h 0, .4, .7; insert read packed, selective
# at the same; write packed, selective; packed over selective for a whole insert at the same.
# R = 64, fp32, E = 45, V = 20, E_i = 131, V_i = 42, n = 28.
TABLE = [
    (96, 4, 6, 180, (260, 188, 134), 524, (692, 482, 325), 20, 12, (0.77, 1.10, 1.61)),
    (128, 4, 5, 180, (260, 188, 134), 524, (692, 482, 325), 24, 12, (0.78, 1.11, 1.63)),
    (384, 4, 2, 180, (260, 188, 134), 524, (692, 482, 325), 60, 12, (0.83, 1.18, 1.73)),
    (768, 4, 1, 180, (260, 188, 134), 524, (692, 482, 325), 116, 12, (0.91, 1.29, 1.90)),
    (1024, 8, 1, 360, (260, 188, 134), 1048, (692, 482, 325), 232, 12, (1.82, 2.59, 3.80)),
    (1536, 8, 1, 360, (340, 268, 214), 1048, (860, 650, 493), 232, 16, (1.46, 1.92, 2.51)),
    (2048, 12, 1, 540, (340, 268, 214), 1572, (860, 650, 493), 348, 16, (2.19, 2.88, 3.77)),
    (3072, 16, 1, 720, (420, 348, 294), 2096, (1028, 818, 661), 464, 20, (2.44, 3.05, 3.76)),
]
H = (0.0, 0.4, 0.7)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"d{row[0]}")
def test_the_notes_table(row: tuple) -> None:  # type: ignore[type-arg]
    dim, unit, per_page, search, searches, read, insert_reads, write, wrote, ratios = row
    packed, selective = bare_shape(4 * dim, 64, True), bare_shape(4 * dim, 64, False)
    assert (packed.unit, packed.per_unit) == (unit * 1024, per_page)
    assert selective.per_unit == 15
    kib = 1024
    assert reads(packed, 45).bytes / kib == search
    assert reads(packed, 131).bytes / kib == read
    assert writes(packed, 28).bytes / kib == write
    assert writes(selective, 28).bytes / kib == wrote
    for h, expected, expected_insert, ratio in zip(H, searches, insert_reads, ratios, strict=True):
        assert reads(selective, 45, h, 20).bytes / kib == pytest.approx(expected, abs=0.5)
        insert = reads(selective, 131, h, 42)
        assert insert.bytes / kib == pytest.approx(expected_insert, abs=0.5)
        whole = (reads(packed, 131) + writes(packed, 28)).bytes
        assert whole / (insert + writes(selective, 28)).bytes == pytest.approx(ratio, abs=0.006)


def test_peer_counts_of_the_notes() -> None:
    # OdinANN, R 32, saturated lists: 128 dimensions 131 reads and 6 writes, 768 dimensions 33.
    assert reads(bare_shape(512, 32, True), 131).requests == 131
    assert writes(bare_shape(512, 32, True), 32).requests == 6
    assert writes(bare_shape(3072, 32, True), 32).requests == 33


def test_what_several_inserts_write_together_is_rounded_up_once() -> None:
    selective = shape(512, 32, False)
    alone, together = writes(selective, 24), writes(selective, 24, 100, vectors_a_page=8)
    assert alone == Cost(2, 2 * 4096)
    assert together.requests == pytest.approx(25 / selective.per_unit + 1 / 8, rel=0.02)


def test_our_pages_hold_a_header_and_nearly_as_much() -> None:
    for dim in (128, 768, 1536, 3072):
        for packed in (True, False):
            ours, bare = shape(4 * dim, 32, packed), bare_shape(4 * dim, 32, packed)
            assert ours.unit == bare.unit
            assert ours.vector == bare.vector
            assert 0 <= bare.per_unit - ours.per_unit <= 1
