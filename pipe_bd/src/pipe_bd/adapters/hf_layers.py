"""Students of Hugging Face decoder layers: same class, another shape, the teacher's weights.

Legend of shape suffixes: H hidden width, F feed-forward channels, D width of one head, K key-value
heads, G query heads per key-value head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.adapters._modules import layer_numbers

State = dict[str, Tensor]

# Where each kind of layer keeps its parts: gated (Llama, Qwen, Mistral, Gemma) and fused (GPT-2;
# its weights are transposed).
ATTENTION_NAMES = ("self_attn", "attn")
_GATED = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
_FUSED = ("mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class LayerShape:
    """The shape of a student layer, relative to its teacher's.

    Args:
        ffn: fraction of the feed-forward channels kept, in (0, 1].
        heads: query heads kept; None keeps all.
        kv_heads: key-value heads; None keeps all.
        no_attention: layers whose attention is removed, like ``"20-27"`` or ``(20, 21)``.
        layers: layers that take this shape; None means all. The others stay as they are.
    """

    ffn: float = 1.0
    heads: int | None = None
    kv_heads: int | None = None
    no_attention: str | int | tuple[int, ...] | None = None
    layers: str | int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ffn <= 1:
            raise UserError(
                f"ffn {self.ffn} is not a fraction of the teacher's channels: use a number in (0, "
                "1]"
            )
        for name in ("heads", "kv_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value} leaves no head: use 1 or more")

    @classmethod
    def parse(cls, text: str) -> LayerShape:
        """A shape from ``"ffn=0.5,kv_heads=2,attn=none@20-27"``; or ``layers=0-3+7``."""
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = part.partition("=")
            try:
                if key == "ffn":
                    values[key] = float(value)
                elif key in ("heads", "kv_heads"):
                    values[key] = int(value)
                elif key == "attn" and value.startswith("none@"):
                    values["no_attention"] = value.removeprefix("none@")
                elif key == "layers":
                    values[key] = value
                else:
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"cannot read {part!r} in student {text!r}: use ffn=0.5, heads=4, kv_heads=2, "
                    "attn=none@20-27, layers=0-3"
                ) from None
        return cls(**values)

    def at(self, index: int, total: int) -> LayerShape:
        """The shape of one layer, free of layer lists: ``no_attention`` is () or (index,)."""
        listed = (
            range(total) if self.layers is None else layer_numbers(self.layers, total, "layers")
        )
        dropped = (
            (index,) if index in layer_numbers(self.no_attention, total, "no_attention") else ()
        )
        base = self if index in listed else LayerShape()
        return replace(base, layers=None, no_attention=dropped)

    @property
    def changes(self) -> bool:
        """Whether anything differs from the teacher."""
        return self.sizes() != (1.0, None, None) or bool(self.no_attention)

    def sizes(self) -> tuple[float, int | None, int | None]:
        """What a model's configuration states once for all layers."""
        return self.ffn, self.heads, self.kv_heads


class NoAttention(nn.Module):
    """Takes the place of a layer's attention and adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros, shape of ``hidden_states``."""
        return torch.zeros_like(hidden_states), None


def ffn_channels(config: Any) -> tuple[str, int]:
    """Name and value of the configuration entry that holds F."""
    if hasattr(config, "n_inner"):
        return "n_inner", config.n_inner or 4 * config.hidden_size
    value = getattr(config, "intermediate_size", None)
    if not isinstance(value, int):
        raise UserError(
            f"models of type {config.model_type!r} state no single feed-forward width: ffn must be "
            "1"
        )
    return "intermediate_size", value


def student_config(config: Any, shape: LayerShape) -> Any:
    """The teacher's configuration with the student's sizes.

    Raises:
        UserError: heads that cannot be grouped evenly, or a family whose heads cannot be changed.
    """
    new = copy.deepcopy(config)
    if shape.ffn != 1:
        name, channels = ffn_channels(config)
        setattr(new, name, max(1, round(channels * shape.ffn)))
    if shape.heads is None and shape.kv_heads is None:
        return new
    if not hasattr(config, "num_key_value_heads"):
        raise UserError(
            f"models of type {config.model_type!r} tie their heads to the hidden width: only ffn "
            "and no_attention can be changed"
        )
    heads = shape.heads or config.num_attention_heads
    kv_heads = shape.kv_heads or min(config.num_key_value_heads, heads)
    if heads > config.num_attention_heads or kv_heads > config.num_key_value_heads:
        raise UserError(
            f"heads {heads} and kv_heads {kv_heads} exceed the teacher's "
            f"{config.num_attention_heads} and "
            f"{config.num_key_value_heads}: use at most those"
        )
    for whole, part, what in (
        (heads, kv_heads, "heads"),
        (config.num_key_value_heads, kv_heads, "the teacher's kv_heads"),
    ):
        if whole % part:
            raise UserError(
                f"{what} {whole} cannot be shared evenly among kv_heads {part}: use a divisor"
            )
    # Fewer heads must not make each of them wider.
    new.head_dim = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    new.num_attention_heads, new.num_key_value_heads = heads, kv_heads
    return new


def _most_important(importance: Tensor, keep: int) -> Tensor:
    """Indices of the largest values, in their original order."""
    return importance.topk(keep).indices.sort().values


def narrow_ffn(state: State, keep: int, kind: str) -> None:
    """Keep the most important feed-forward channels of a layer; changes the dictionary.

    A channel adds ``down[:, f] · act(gate[f]·x) · (up[f]·x)`` to the output, so the product of the
    norms of its weights bounds its contribution. That needs no data and, unlike the first ``keep``
    channels, is never arbitrary in a trained model.

    Args:
        state: state dict of one layer.
        keep: channels kept.
        kind: name of the layer class, for errors.
    """
    rows: tuple[str, ...]
    if all(k in state for k in _GATED):
        gate_FH, up_FH, down_HF = (state[k].float() for k in _GATED)
        rows, columns = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
        importance_F = gate_FH.norm(dim=1) * up_FH.norm(dim=1) * down_HF.norm(dim=0)
        axis_in, axis_out = 0, 1
    elif all(k in state for k in _FUSED):
        fc_HF, proj_FH = (state[k].float() for k in _FUSED)
        rows, columns = ("mlp.c_fc",), "mlp.c_proj"
        importance_F = fc_HF.norm(dim=0) * proj_FH.norm(dim=1)
        axis_in, axis_out = 1, 0
    else:
        raise UserError(
            f"layers of kind {kind} have no plain feed-forward part to narrow (gate/up/down or "
            "c_fc/c_proj): use ffn=1"
        )
    kept = _most_important(importance_F, keep)
    for name in rows:
        state[f"{name}.weight"] = state[f"{name}.weight"].index_select(axis_in, kept)
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = state[f"{name}.bias"][kept]
    state[f"{columns}.weight"] = state[f"{columns}.weight"].index_select(axis_out, kept)


def pool_heads(state: State, old: Any, new: Any, kind: str) -> None:
    """Mean-pool neighbouring key-value heads and keep the strongest query heads of each new group.

    Args:
        state: state dict of one layer, changed in place.
        old: the teacher's configuration.
        new: the student's.
        kind: name of the layer class, for errors.
    """
    if "self_attn.q_proj.weight" not in state or "self_attn.k_proj.weight" not in state:
        raise UserError(
            f"layers of kind {kind} have no separate q, k and v projections: heads cannot be "
            "changed"
        )
    D, K = new.head_dim, new.num_key_value_heads
    for name in ("k_proj", "v_proj"):
        for part in ("weight", "bias"):
            key = f"self_attn.{name}.{part}"
            if key in state:
                t = state[key]
                grouped = t.view(K, old.num_key_value_heads // K, D, *t.shape[1:])
                state[key] = grouped.float().mean(dim=1).to(t.dtype).reshape(K * D, *t.shape[1:])
    if new.num_attention_heads == old.num_attention_heads:
        return
    G_old, G_new = old.num_attention_heads // K, new.num_attention_heads // K
    out = state["self_attn.o_proj.weight"]  # (H, K · G_old · D)
    strength_KG = out.float().view(out.shape[0], K, G_old, D).norm(dim=(0, 3))
    kept = torch.cat([k * G_old + _most_important(strength_KG[k], G_new) for k in range(K)])
    channels = (kept[:, None] * D + torch.arange(D)).flatten()
    state["self_attn.o_proj.weight"] = out[:, channels]
    for part in ("weight", "bias"):
        if f"self_attn.q_proj.{part}" in state:
            state[f"self_attn.q_proj.{part}"] = state[f"self_attn.q_proj.{part}"][channels]


def student_layer(layer: nn.Module, index: int, old: Any, new: Any, shape: LayerShape) -> nn.Module:
    """A student of one decoder layer: same class, configuration ``new``, the teacher's weights.

    Dropout is switched off: the teacher's output is a function of its input, and a student that
    drops at random would chase noise. The exported configuration keeps the teacher's dropout rates.

    Args:
        layer: the teacher's layer.
        index: its number.
        old: the teacher's configuration.
        new: the student's, from :func:`student_config`.
        shape: the layer's own shape, from :meth:`LayerShape.at`.
    """
    kind = type(layer).__name__
    state: State = {k: v.detach() for k, v in layer.state_dict().items()}
    if shape.ffn != 1:
        narrow_ffn(state, getattr(new, ffn_channels(new)[0]), kind)
    if shape.heads is not None or shape.kv_heads is not None:
        pool_heads(state, old, new, kind)
    first = next(iter(state.values()))
    try:
        with torch.random.fork_rng(devices=[]):  # its random initial weights are overwritten
            student = type(layer)(new, index).to(device=first.device, dtype=first.dtype)
        student.load_state_dict(state)
    except (TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:160]
        raise UserError(
            f"layer {index} of kind {kind} cannot take shape {shape.sizes()}: {reason}"
        ) from error
    if shape.no_attention:
        setattr(student, attention_name(student), NoAttention())
    for m in student.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        if hasattr(m, "attention_dropout"):
            setattr(m, "attention_dropout", 0.0)  # noqa: B010 (a module's plain attribute)
    return student


def attention_name(layer: nn.Module) -> str:
    """Name of the layer's attention child."""
    for name in ATTENTION_NAMES:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise UserError(
        f"layers of kind {type(layer).__name__} have no attention named "
        f"{' or '.join(ATTENTION_NAMES)}"
    )


def restore_attention(
    teacher: nn.Module, student: nn.Module, index: int, old: Any, new: Any, shape: LayerShape
) -> nn.Module:
    """A student without attention as a layer that has one, with a zero output projection.

    A plain ``from_pretrained`` knows no layer without attention. Adding an exact zero gives the
    same bits.
    """
    full = student_layer(teacher, index, old, new, replace(shape, no_attention=None))
    name = attention_name(full)
    own: Mapping[str, Tensor] = student.state_dict()
    full.load_state_dict({k: own.get(k, v) for k, v in full.state_dict().items()})
    attention = getattr(full, name)
    projection = getattr(attention, "o_proj", None) or attention.c_proj
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.zero_()
    return full
