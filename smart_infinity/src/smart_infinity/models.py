"""Language models from Hugging Face configurations, with random weights, or from a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shorthaul.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Attributes:
        family: gpt2 (causal) or bert (masked).
        path: Folder of a model in Hugging Face's form, instead of the sizes below.
        dtype: float32 or bfloat16, of the weights on the host.
    """

    family: str = "gpt2"
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 256
    dropout: float = 0.0
    dtype: str = "float32"
    path: str = ""

    def __post_init__(self) -> None:
        if self.family not in ("gpt2", "bert"):
            raise UserError(f"model.family = {self.family!r}: use gpt2 or bert")
        for name in ("layers", "width", "heads", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} = {getattr(self, name)}: use 1 or more")
        if self.width % self.heads:
            raise UserError(f"model.width = {self.width}: use a multiple of heads = {self.heads}")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.dtype = {self.dtype!r}: use float32 or bfloat16")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout = {self.dropout}: use 0 or more, below 1")


def build(config: ModelConfig, vocabulary: int, seed: int) -> Any:
    """Make the model; the same seed makes the same weights."""
    import transformers

    torch.manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    if config.path:
        if not (Path(config.path) / "config.json").is_file():
            raise UserError(f"model.path = {config.path!r}: no config.json there")
        kind = (
            transformers.AutoModelForCausalLM
            if config.family == "gpt2"
            else transformers.AutoModelForMaskedLM
        )
        return kind.from_pretrained(config.path, local_files_only=True).to(dtype)
    if config.family == "gpt2":
        made = transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=config.context, n_embd=config.width,
            n_layer=config.layers, n_head=config.heads, resid_pdrop=config.dropout,
            embd_pdrop=config.dropout, attn_pdrop=config.dropout, bos_token_id=0, eos_token_id=0,
            use_cache=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(made).to(dtype)
    made = transformers.BertConfig(
        vocab_size=vocabulary + 1, max_position_embeddings=config.context,
        hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=4 * config.width,
        hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
    )  # fmt: skip
    return transformers.BertForMaskedLM(made).to(dtype)


def loss(model: Any, config: ModelConfig, windows: torch.Tensor, seed: int) -> torch.Tensor:
    """Give the mean loss of a batch [batch, context + 1] in nats a token."""
    if config.family == "gpt2":
        inputs = windows[:, :-1].contiguous()
        found = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(
            found.reshape(-1, found.shape[-1]).float(), windows[:, 1:].reshape(-1)
        )
    inputs = windows[:, :-1].contiguous()
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(inputs.shape, generator=generator) < 0.15
    masked[:, 0] = True  # a batch with nothing to find has no loss
    mask_token = model.config.vocab_size - 1
    found = model(input_ids=inputs.masked_fill(masked, mask_token)).logits
    return torch.nn.functional.cross_entropy(found[masked].float(), inputs[masked])
