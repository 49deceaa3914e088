"""Hooks on parameters, that keep nobody alive and can be taken off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch.utils.hooks import RemovableHandle

OnGradient = Callable[[int, torch.Tensor], None]


class Hooks:
    """Has a method called with a parameter's number when its gradient has been accumulated.

    Args:
        tensors: The parameters. Those that are frozen are not hooked: see `watch`.
        method: A bound method; it is not called any more when its object is gone.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], method: OnGradient) -> None:
        self._tensors = tensors
        self._method = weakref.WeakMethod(method)
        self._handles: dict[int, RemovableHandle] = {}
        self.watch()

    def watch(self) -> list[int]:
        """Hook those that have been unfrozen; give their numbers."""
        found = [
            i for i, tensor in enumerate(self._tensors)
            if tensor.requires_grad and i not in self._handles
        ]  # fmt: skip
        for i in found:
            hook = _calling(self._method, i)
            self._handles[i] = self._tensors[i].register_post_accumulate_grad_hook(hook)
        return found

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def _calling(method: weakref.WeakMethod[OnGradient], i: int) -> Callable[[torch.Tensor], None]:
    def hook(param: torch.Tensor) -> None:
        call = method()
        if call is not None:
            call(i, param)

    return hook
