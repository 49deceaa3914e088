"""Cut a CNN at named submodules, whatever its forward does in between.

Models in the style of torchvision and timm are not plain chains: ``forward`` flattens, pools and
adds between their children. The model is traced once with torch.fx and its graph is cut after the
named submodules; each piece is a block. A cut must be crossed by exactly one tensor, which is what
is relayed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from shorthaul.errors import UserError
from torch import fx, nn

from pipe_bd.adapters._modules import nearest, share
from pipe_bd.adapters.sequential import Replace, make_pairs
from pipe_bd.blocks import Task
from pipe_bd.source import as_source


class _Tracer(fx.Tracer):
    """Remembers after which node every submodule had finished, and how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, list[fx.Node]] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self.ends.setdefault(path, []).append(next(reversed(self.graph.nodes)))
        return out


def _trace(model: nn.Module) -> tuple[fx.Graph, _Tracer]:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{type(model).__name__} cannot be traced ({reason}): its forward depends on values; "
            "give a list of blocks instead"
        ) from error
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        raise UserError(
            f"{type(model).__name__} takes {len(inputs)} inputs: only models of one input can be "
            "cut by name"
        )
    return graph, tracer


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the model's input"
    return (
        f"the output of {node.target}" if node.op == "call_module" else f"the result of {node.name}"
    )


def _positions(
    model: nn.Module, graph: fx.Graph, tracer: _Tracer, cuts: Sequence[str]
) -> list[tuple[str, int]]:
    """Names of the cuts and the index of the last node before each, in order of execution."""
    known = {name for name, _ in model.named_modules() if name}
    index = {node: i for i, node in enumerate(graph.nodes)}
    found = []
    for cut in cuts:
        if cut not in known:
            raise UserError(
                f"the model has no submodule {cut!r} to cut after: "
                f"{nearest(cut, known, 'see model.named_modules()')}"
            )
        calls = tracer.ends.get(cut, [])
        if len(calls) != 1:
            raise UserError(
                f"submodule {cut!r} runs {len(calls)} times in a forward pass: cut after one that "
                "runs once"
            )
        found.append((cut, index[calls[0]]))
    found.sort(key=lambda item: item[1])
    for (a, i), (b, j) in pairwise(found):
        if i == j:
            raise UserError(f"cuts {a!r} and {b!r} are the same place: drop one")
    return found


def _crossing(nodes: list[fx.Node], end: int, cut: str) -> fx.Node:
    """The one tensor that nodes after ``end`` take from nodes up to it."""
    before = nodes[: end + 1]
    position = {node: i for i, node in enumerate(nodes)}
    # Parameters are fetched by whoever needs them; they do not travel.
    crossing = [n for n in before if n.op != "get_attr" and any(position[u] > end for u in n.users)]
    if len(crossing) != 1:
        what = ", ".join(_describe(n) for n in crossing) or "nothing"
        raise UserError(
            f"a cut after {cut!r} is crossed by {len(crossing)} values ({what}): cut where exactly "
            "one tensor passes, "
            "such as after a whole residual block"
        )
    return crossing[0]


def _piece(
    model: nn.Module,
    nodes: list[fx.Node],
    lo: int,
    hi: int,
    enters: fx.Node | None,
    leaves: fx.Node | None,
) -> nn.Module:
    """Nodes (lo, hi] as a module of one input and one output."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    if enters is not None:
        known[enters] = graph.placeholder("x")

    def bring(node: fx.Node) -> fx.Node:
        if node not in known:  # only parameters and buffers are used across a cut
            known[node] = graph.node_copy(node, bring)
        return known[node]

    for node in nodes[lo + 1 : hi + 1]:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], bring))
        elif node.op != "placeholder" or node.users:
            known[node] = graph.node_copy(node, bring)
    if leaves is not None:
        graph.output(known[leaves])
    graph.lint()
    return fx.GraphModule(model, graph, type(model).__name__ + "Block")


def split(model: nn.Module, cuts: Sequence[str]) -> dict[str, nn.Module]:
    """Blocks of a model, cut after the named submodules.

    The blocks share the model's parameters. Each is named after the submodule that ends it; what
    follows the last cut is ``"rest"``.

    Args:
        model: takes one tensor, returns one. Traced in eval mode.
        cuts: names as in ``model.named_modules()``, such as ``"features.4"`` or ``"layer2.0"``; in
            any order.

    Raises:
        UserError: an unknown name (with the nearest known), a cut that several tensors cross, a
            model that cannot be traced.
    """
    if not cuts:
        raise UserError("no cuts given: name at least one submodule to cut after")
    twin = share(model).eval()
    graph, tracer = _trace(twin)
    nodes = list(graph.nodes)
    blocks: dict[str, nn.Module] = {}
    lo, enters = -1, None
    for cut, end in _positions(twin, graph, tracer, cuts):
        leaves = _crossing(nodes, end, cut)
        blocks[cut] = _piece(twin, nodes, lo, end, enters, leaves)
        lo, enters = end, leaves
    if nodes[lo + 1].op == "output":
        raise UserError(
            f"nothing follows {next(reversed(blocks))!r}: drop this cut, the last block ends with "
            "the model"
        )
    blocks["rest"] = _piece(twin, nodes, lo, len(nodes) - 1, enters, None)
    return blocks


def from_named(
    teacher: nn.Module,
    cuts: Sequence[str],
    replace: Replace | Mapping[str, Any] | Sequence[Any],
    *,
    source: Any,
    batch_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    name: str | None = None,
    last_loss: Any = None,
    **pair_options: Any,
) -> Task:
    """A task from a CNN cut at named submodules.

    Args:
        teacher: the model.
        cuts: see :func:`split`.
        replace: ``f(block name, teacher block)`` giving the student of a block (None keeps the
            block), a mapping by block name, or one entry per block. :func:`separable` is a
            ready-made one.
        source: data, see :func:`~pipe_bd.source.as_source`.
        batch_size: for tensors and data sets.
        steps: batches to train on; None takes one epoch.
        seed: order of the batches.
        name: used in records.
        last_loss: loss of the last block, e.g. :class:`~pipe_bd.losses.SoftCrossEntropy` where it
            ends in logits.
        **pair_options: ``loss``, ``optimizer``, ``lr_schedule``, ``clip_norm`` of every block.
    """
    blocks = split(teacher, cuts)
    pairs = make_pairs(list(blocks), list(blocks.values()), replace, last_loss, **pair_options)
    data = as_source(source, batch_size=batch_size, steps=steps, seed=seed)
    return Task(pairs, data, name=name or type(teacher).__name__.lower())


def separable_conv(conv: nn.Conv2d, multiplier: int = 2) -> nn.Sequential:
    """Depthwise with ``multiplier`` filters per channel, then pointwise; the shapes of ``conv``."""
    wide = conv.in_channels * multiplier
    depthwise = nn.Conv2d(
        conv.in_channels,
        wide,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.in_channels,
        bias=False,
        padding_mode=conv.padding_mode,
    )
    pointwise = nn.Conv2d(wide, conv.out_channels, 1, bias=conv.bias is not None)
    if conv.bias is not None:
        assert pointwise.bias is not None
        with torch.no_grad():
            pointwise.bias.copy_(conv.bias)
    return nn.Sequential(depthwise, pointwise).to(conv.weight)


def separable(
    name: str, block: nn.Module, multiplier: int = 2, least_channels: int = 4
) -> nn.Module | None:
    """A copy of a block with depthwise-separable convolutions; None if it has no dense ones.

    A convolution of few input channels is kept: one filter per channel cannot stand for the first
    layer of a CNN (measured here: its relative error stays at 0.2 to 0.45 and ruins every block
    after it).

    Args:
        name: of the block, unused.
        block: the teacher's block.
        multiplier: depthwise filters per channel.
        least_channels: convolutions of fewer input channels are kept.
    """
    del name
    student = copy.deepcopy(block).requires_grad_(True)
    dense = [
        path
        for path, m in student.named_modules()
        if isinstance(m, nn.Conv2d)
        and m.groups == 1
        and max(m.kernel_size) > 1
        and m.in_channels >= least_channels
    ]
    for path in dense:
        parent, _, child = path.rpartition(".")
        conv = student.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        setattr(student.get_submodule(parent), child, separable_conv(conv, multiplier))
    return student if dense else None
