"""Lays a profile out as the tables that the C++ planner and simulator read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipe_bd import _core
from pipe_bd.profile import Profile


def native(profile: Profile) -> _core.Profile:
    """The profile as C++ tables: rows are blocks, columns group sizes.

    NaN marks what a block cannot run on: sizes that were not measured, that ``max_group``
    forbids, or that exceed the batch. Memory that was not measured is NaN as well.
    """
    groups = profile.sizes()
    shape = (len(profile.blocks), len(groups))
    teacher, student, allreduce, memory = (np.full(shape, np.nan) for _ in range(4))
    teacher_rows: list[Sequence[float]] = []
    student_rows: list[Sequence[float]] = []
    for row, block in enumerate(profile.blocks):
        usable = set(block.sizes())
        for column, g in enumerate(groups):
            teacher_rows.append(block.samples.teacher_s.get(g, ()))
            student_rows.append(block.samples.student_s.get(g, ()))
            if g in usable:
                teacher[row, column] = block.teacher_s[g]
                student[row, column] = block.student_s[g]
                allreduce[row, column] = block.allreduce_s.get(g, 0.0)
                memory[row, column] = block.memory_bytes.get(g, np.nan)
    return _core.Profile(
        groups=groups,
        teacher_s=teacher,
        student_s=student,
        allreduce_s=allreduce,
        memory_bytes=memory,
        update_s=np.array([block.update_s for block in profile.blocks]),
        activation_bytes=np.array([block.activation_bytes for block in profile.blocks]),
        latency_s=profile.link.latency_s,
        bytes_per_s=profile.link.bytes_per_s,
        loader_s=profile.loader_s,
        teacher_samples=_ragged(teacher_rows),
        student_samples=_ragged(student_rows),
        update_samples=_ragged([block.samples.update_s for block in profile.blocks]),
    )


def _ragged(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets, np.array([value for row in rows for value in row], dtype=np.float64)
