"""Plain data, as it crosses the link, into the core's types."""

from __future__ import annotations

from typing import Any

import numpy as np
from shorthaul.errors import UserError

from smart_infinity import _core

DTYPES = (_core.Dtype.float32, _core.Dtype.bfloat16, _core.Dtype.float16)
"""By their numbers on the wire; the order is that of `layout.DTYPES`."""


def segments_of(columns: dict[str, list[Any]]) -> Any:
    """Turn columns of segments, as `Layout.segments` gives them, into the core's."""
    types = {"rest": np.bool_, "element": np.uint64}
    return _core.Segments(
        **{name: np.asarray(column, types.get(name, np.uint32)) for name, column in columns.items()}
    )


def updater_of(name: Any) -> Any:
    """Turn the name of what steps tiles into the core's; an unknown one is a UserError."""
    if name not in _core.Updater.__members__:
        raise UserError(f"update={name!r}: this device has {', '.join(_core.Updater.__members__)}")
    return _core.Updater[name]


def plan_of(kind: Any, step: int, body: dict[str, Any]) -> Any:
    """Turn STEP's body into the core's plan."""
    return _core.Plan(
        kind,
        step,
        [settings_of(one) for one in body["settings"]],
        [int(one) for one in body["steps"]],
        np.asarray(body["hyper_of"], np.uint16),
        unscale=float(body["unscale"]),
        clip=float(body["clip"]),
    )


def settings_of(values: dict[str, Any]) -> Any:
    """Turn a plain mapping into the core's settings; an unknown name is a UserError."""
    settings = _core.Settings()
    for name, value in values.items():
        if not hasattr(settings, name):
            raise UserError(f"unknown setting {name!r}")
        setattr(settings, name, value)
    return settings
