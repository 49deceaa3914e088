"""Hugging Face decoders: every layer is a block, and no family's forward is written down again.

The model's own forward prepares what layers need besides the hidden state (rotary embeddings,
causal and sliding-window masks, position numbers). We let it: its layers are replaced by recorders,
it is run once per batch, and each recorder tells what its layer would have been given. Embeddings
before the first layer and the head after the last one are found the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from shorthaul.errors import EnvironmentLack, UserError
from torch import Tensor, nn

from pipe_bd.adapters._modules import share, unchanged
from pipe_bd.adapters.hf_layers import LayerShape, student_config, student_layer
from pipe_bd.blocks import BlockPair, Candidate, Task
from pipe_bd.losses import NormalisedMSE
from pipe_bd.source import as_source

LAYER_LISTS = ("layers", "h")


class Recorder(nn.Module):
    """Stands where a decoder layer stood and keeps what it was called with."""

    def __init__(self, parameters: Sequence[str]) -> None:
        super().__init__()
        self.parameters_in_order = tuple(parameters)
        self.hidden: Tensor | None = None
        self.side: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The hidden state, unchanged."""
        # Some families pass side inputs by position (GPT-2); the layer's own signature names them.
        call = dict(zip(self.parameters_in_order, args, strict=False)) | kwargs
        hidden: Tensor = call.pop(self.parameters_in_order[0])
        self.hidden, self.side = hidden, call
        return hidden

    def take(self) -> tuple[Tensor, dict[str, Any]]:
        """What was recorded; forgotten afterwards."""
        assert self.hidden is not None
        result = self.hidden, self.side
        self.hidden, self.side = None, {}
        return result


class Inject(nn.Module):
    """Stands where the layers stood and puts a given hidden state in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The given hidden state."""
        assert self.value is not None
        return self.value


def layer_list(base: nn.Module) -> str:
    """Name of the child that holds the decoder layers.

    Raises:
        UserError: the model is not a stack of decoder layers we know.
    """
    for name in LAYER_LISTS:
        layers = getattr(base, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return name
    raise UserError(
        f"{type(base).__name__} has no list of decoder layers named {' or '.join(LAYER_LISTS)}: "
        "not a decoder we know"
    )


def _signature(layer: nn.Module) -> tuple[str, ...]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(
        n for n, p in inspect.signature(layer.forward).parameters.items() if p.kind not in kinds
    )


class Entry(nn.Module):
    """Token numbers → the hidden state given to the first layer, shape (rows, length, width)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        name = layer_list(base)
        recorder = Recorder(_signature(getattr(base, name)[0]))
        self.base = share(base)
        setattr(self.base, name, nn.ModuleList([recorder]))
        self.recorder = recorder

    def forward(self, input_ids: Tensor) -> Tensor:
        """(rows, length) int64 → (rows, length, width)."""
        self.base(input_ids=input_ids, use_cache=False)
        return self.recorder.take()[0]


class Tail(nn.Module):
    """The last hidden state → logits: final norm, head and what the family does to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = share(model)
        self.inject = Inject()
        base: Any = self.model.base_model
        setattr(base, layer_list(base), nn.ModuleList([self.inject]))
        self.model.set_input_embeddings(nn.Identity())  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length, width) → (rows, length, vocabulary)."""
        self.inject.value = x
        logits: Tensor = self.model(inputs_embeds=x, use_cache=False).logits
        self.inject.value = None
        return logits


class HFSideInputs:
    """Side inputs of every layer, taken from the model's own forward once per batch.

    Without a padding mask they depend on the shape alone and are kept until the shape changes.
    Holds the model without its layers and embeddings, so little is sent to the workers.

    Args:
        base: the decoder (e.g. LlamaModel).
    """

    def __init__(self, base: nn.Module) -> None:
        name = layer_list(base)
        layers: Any = getattr(base, name)
        self.recorders = [Recorder(_signature(layer)) for layer in layers]
        self.base: Any = share(base)
        setattr(self.base, name, nn.ModuleList(self.recorders))
        self.base.set_input_embeddings(nn.Identity())  # type: ignore[operator]
        self.base.eval()
        self._device = next(layers.parameters()).device
        self._kept: tuple[Any, list[dict[str, Any]]] | None = None

    def __call__(self, x: Tensor, carry: Mapping[str, Tensor]) -> Sequence[Mapping[str, Any]]:
        """Keyword arguments per layer; see :class:`~pipe_bd.blocks.SideInputs`."""
        extra = set(carry) - {"attention_mask"}
        if extra:
            raise UserError(
                f"a decoder cannot use {sorted(extra)} from the data: only attention_mask travels "
                "with the tokens"
            )
        mask = carry.get("attention_mask")
        key = (x.shape, x.dtype, x.device)
        if mask is None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        if x.device != self._device:
            self.base.to(x.device)
            self._device = x.device
        with torch.no_grad():
            # Only shape, type and device of the embeddings matter here: one zero, seen through
            # strides, is enough.
            zeros = x.new_zeros(()).expand(x.shape)
            self.base(inputs_embeds=zeros, attention_mask=mask, use_cache=False)
        side = [recorder.take()[1] for recorder in self.recorders]
        if mask is None:
            self._kept = (key, side)
        return side

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


@dataclass
class HFTask(Task):
    """A :class:`~pipe_bd.blocks.Task` that remembers what :func:`~pipe_bd.export.export_hf` needs.

    Args:
        shapes: shape of every candidate, by name.
        tail: final norm and head, for the stitched student.
        model: the teacher. Stays in the user's process: like the tail it is not sent to the
            workers.
        directory: where the teacher came from, None if from memory.
    """

    shapes: dict[str, LayerShape] = field(default_factory=dict)
    tail: nn.Module | None = None
    model: Any = None
    directory: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tail": None, "model": None}


def need_transformers() -> Any:
    """The transformers package.

    Raises:
        EnvironmentLack: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentLack("transformers is not installed; pip install transformers") from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal; they are as long as our output."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def load_teacher(model: Any) -> tuple[Any, Path | None]:
    """A causal language model from itself, a configuration (random weights) or a local folder.

    Args:
        model: a ``PreTrainedModel``, a ``PretrainedConfig``, or the path of a folder written by
            ``save_pretrained``.

    Returns:
        The model, and its folder if it came from one.
    """
    transformers = need_transformers()
    if isinstance(model, transformers.PreTrainedModel):
        return model, None
    if isinstance(model, transformers.PretrainedConfig):
        return transformers.AutoModelForCausalLM.from_config(model), None
    directory = Path(model)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} holds no config.json: give a local folder written by save_pretrained "
            "(nothing is downloaded)"
        )
    try:
        with quiet():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{directory} cannot be loaded as a causal language model: {lines[0][:200]}"
        ) from error
    return loaded, directory


def from_hf(
    model: Any,
    *,
    source: Any,
    ffn: float = 1.0,
    heads: int | None = None,
    kv_heads: int | None = None,
    no_attention: str | int | Sequence[int] | None = None,
    layers: str | int | Sequence[int] | None = None,
    library: Mapping[str, LayerShape] | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    name: str | None = None,
    **pair_options: Any,
) -> HFTask:
    """A distillation task for a decoder model: one block per layer.

    Args:
        model: a ``PreTrainedModel``, a configuration (random weights) or a local folder.
        source: token numbers, shape (n, length), or anything :func:`~pipe_bd.source.as_source`
            takes. A mask named ``attention_mask`` may travel with them.
        ffn: fraction of the feed-forward channels a student keeps.
        heads: query heads a student keeps.
        kv_heads: key-value heads of a student.
        no_attention: layers whose attention is removed, e.g. ``"20-27"``.
        layers: layers that are changed; None means all.
        library: several candidates per layer from one teacher pass, by name; replaces the five
            options above.
        batch_size: for tensors and data sets.
        steps: batches to train on; None takes one epoch.
        seed: order of the batches.
        name: used in records.
        **pair_options: ``loss`` (default: normalised MSE), ``optimizer``, ``lr_schedule`` and
            ``clip_norm`` of every :class:`~pipe_bd.blocks.BlockPair`.

    Raises:
        UserError: a folder or layer kind we cannot use, or sizes that do not fit the teacher.
    """
    teacher, directory = load_teacher(model)
    base = getattr(teacher, "base_model", None)
    if base is None or base is teacher or not hasattr(teacher, "get_output_embeddings"):
        raise UserError(
            f"{type(teacher).__name__} is not a causal language model with a head: give e.g. "
            "LlamaForCausalLM"
        )
    if library is None:
        listed = {"no_attention": no_attention, "layers": layers}
        tuples = {
            k: v if v is None or isinstance(v, str | int) else tuple(v) for k, v in listed.items()
        }
        library = {"student": LayerShape(ffn=ffn, heads=heads, kv_heads=kv_heads, **tuples)}
    config = teacher.config
    # A model fresh from its configuration is in train mode; a teacher must not drop anything.
    blocks = list(getattr(share(base).eval(), layer_list(base)))
    configs = {n: student_config(config, shape) for n, shape in library.items()}

    def candidate(i: int, n: str) -> Candidate:
        shape = library[n].at(i, len(blocks))
        if not shape.changes:
            return unchanged(blocks[i])
        new = configs[n] if shape.sizes() == library[n].sizes() else config
        return Candidate(student_layer(blocks[i], i, config, new, shape))

    pair_options.setdefault("loss", NormalisedMSE())
    pairs = [
        BlockPair(f"layer{i}", blocks[i], {n: candidate(i, n) for n in library}, **pair_options)
        for i in range(len(blocks))
    ]
    if not any(library[n].at(i, len(blocks)).changes for n in library for i in range(len(blocks))):
        raise UserError(
            "the student equals its teacher: give ffn below 1, heads, kv_heads or no_attention"
        )
    return HFTask(
        pairs,
        as_source(source, batch_size=batch_size, steps=steps, seed=seed),
        entry=Entry(base).eval(),
        side=HFSideInputs(base),
        name=name or config.model_type,
        shapes=dict(library),
        tail=Tail(teacher).eval(),
        model=teacher,
        directory=directory,
    )
