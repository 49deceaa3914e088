"""Files that other tools write and read: vectors, truth sets, runbooks, labels, disk indexes."""

from navis.formats.diskann import DiskIndex, open_disk_index
from navis.formats.diskann_pq import Pq, read_pq
from navis.formats.filters import Labels, read_labels, write_spmat
from navis.formats.runbook import Runbook, load_runbook
from navis.formats.truth import Truth, read_truth, recall, write_truth
from navis.formats.vectors import (
    check_finite,
    iter_chunks,
    read_vectors,
    shape_of,
    write_chunks,
    write_vectors,
)

__all__ = [
    "DiskIndex",
    "Labels",
    "Pq",
    "Runbook",
    "Truth",
    "check_finite",
    "iter_chunks",
    "load_runbook",
    "open_disk_index",
    "read_labels",
    "read_pq",
    "read_truth",
    "read_vectors",
    "recall",
    "shape_of",
    "write_chunks",
    "write_spmat",
    "write_truth",
    "write_vectors",
]
