"""What every adapter does to modules: share their parameters, forbid in-place work, keep one."""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from shorthaul.errors import UserError
from torch import nn

from pipe_bd.blocks import Candidate

M = TypeVar("M", bound=nn.Module)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def share(module: M) -> M:
    """A second tree of modules over the *same* parameters and buffers, without hooks.

    The adapters take a user's model apart. With a tree of their own they may drop children, switch
    modes and be pickled (hooks installed by others often cannot be) while the user's model stays as
    it was. No weight is copied.
    """
    seen: dict[int, nn.Module] = {}

    def clone(m: nn.Module) -> nn.Module:
        if id(m) not in seen:
            twin = copy.copy(m)
            seen[id(m)] = twin
            twin.__dict__.update({name: OrderedDict() for name in _HOOKS if name in m.__dict__})
            for name in ("_parameters", "_buffers"):
                twin.__dict__[name] = type(m.__dict__[name])(m.__dict__[name])
            twin.__dict__["_modules"] = type(m._modules)(
                (name, None if child is None else clone(child))
                for name, child in m._modules.items()
            )
        return seen[id(m)]

    return clone(module)  # type: ignore[return-value]


def forbid_inplace(module: nn.Module) -> nn.Module:
    """Switch off ``inplace`` in every layer that has it, and return the module.

    A boundary tensor is the teacher's target, the student's input and the next teacher block's
    input at once. An in-place ReLU at the head of one block would silently change the target of the
    block before it.
    """
    for m in module.modules():
        if getattr(m, "inplace", False) is True:
            m.inplace = False  # type: ignore[assignment]
    return module


def unchanged(block: nn.Module) -> Candidate:
    """A student that is a copy of the teacher's block: finished before its first step."""
    twin = copy.deepcopy(block)
    twin.requires_grad_(
        True
    )  # the copy is not the frozen teacher; a user may train it after stitching
    return Candidate(twin, steps=0)


def as_students(block: nn.Module, made: Any) -> Mapping[str, Candidate]:
    """Candidates from what a ``replace`` function returned.

    Args:
        block: the teacher's block, copied when it is kept.
        made: None (the block stays as it is), a module, a candidate, or a mapping of those by name.
    """
    if made is None:
        return {"student": unchanged(block)}
    if not isinstance(made, Mapping):
        made = {"student": made}
    return {
        name: m if isinstance(m, Candidate) else unchanged(block) if m is None else Candidate(m)
        for name, m in made.items()
    }


def nearest(name: str, known: Iterable[str], hint: str) -> str:
    """The end of an error message: the nearest known name, or a hint where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else hint


def layer_numbers(text: str | int | Sequence[int] | None, total: int, what: str) -> tuple[int, ...]:
    """Layer numbers from ``"20-27"``, ``"0-3+7"``, a number or a sequence; None is no layer.

    Args:
        text: see above; negative numbers count from the end.
        total: number of layers.
        what: names the option in errors.

    Raises:
        UserError: not a number, or outside the model.
    """
    if text is None:
        return ()
    numbers: list[int] = []
    try:
        if isinstance(text, str):
            for part in text.split("+"):
                first, _, last = part.strip().partition("-")
                numbers.extend(range(int(first), int(last or first) + 1))
        else:
            numbers = [text] if isinstance(text, int) else [int(n) for n in text]
    except ValueError:
        raise UserError(
            f"{what} {text!r} is not a list of layers: write it like 20-27 or 0-3+7"
        ) from None
    numbers = [n + total if n < 0 else n for n in numbers]
    for n in numbers:
        if not 0 <= n < total:
            raise UserError(f"{what} names layer {n}, but the model has layers 0 to {total - 1}")
    return tuple(sorted(set(numbers)))
