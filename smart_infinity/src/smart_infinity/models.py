"""Language models from Hugging Face configurations, with random weights, or from a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shorthaul.errors import EnvironmentLack, UserError


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Attributes:
        family: gpt2 (causal) or bert (masked).
        path: Folder of a model in Hugging Face's form, in place of layers, width, heads and
            dropout; any causal or masked one, as `family` says.
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


def build(config: ModelConfig, vocabulary: int, seed: int, *, mask: int | None = None) -> Any:
    """Make the model; the same seed makes the same weights.

    Args:
        config: What model.
        vocabulary: Tokens are below it.
        seed: Of the weights.
        mask: Token that hides one (masked models); None: the one after all others.

    Raises:
        UserError: There is no such model at `config.path`, or the tokens do not fit it.
        EnvironmentLack: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentLack("transformers is not installed; pip install transformers") from error
    torch.manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    masked = config.family == "bert"
    if config.path:
        model = _loaded(config, transformers)
    elif masked:
        size = vocabulary if mask is not None else vocabulary + 1
        made = transformers.BertConfig(
            vocab_size=size, max_position_embeddings=config.context, hidden_size=config.width,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=4 * config.width, hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(made)
    else:
        made = transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=config.context, n_embd=config.width,
            n_layer=config.layers, n_head=config.heads, resid_pdrop=config.dropout,
            embd_pdrop=config.dropout, attn_pdrop=config.dropout, bos_token_id=0, eos_token_id=0,
            use_cache=False,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(made)
    if masked:
        if mask is None:
            mask = getattr(model.config, "mask_token_id", None)
        # Stored with an exported model: who loads it learns from it what hid a token.
        model.config.mask_token_id = vocabulary if mask is None else mask
        vocabulary = max(vocabulary, model.config.mask_token_id + 1)
    _check(model, config, vocabulary)
    return model.to(dtype).train()


def _loaded(config: ModelConfig, transformers: Any) -> Any:
    """Load `config.path`; what it lacks, or that it is of the other family, is a UserError."""
    where = f"model.path = {config.path!r}"
    if not (Path(config.path) / "config.json").is_file():
        raise UserError(f"{where}: no config.json there")
    try:
        found = transformers.AutoConfig.from_pretrained(config.path, local_files_only=True)
    except Exception as error:  # damaged JSON, unknown types: each has a class of its own
        raise UserError(f"{where}: {_first_line(error)}") from error
    is_masked = any("MaskedLM" in name for name in found.architectures or [])
    if is_masked != (config.family == "bert"):
        needed = "bert" if is_masked else "gpt2"
        raise UserError(
            f"{where} holds {', '.join(found.architectures or ['no architecture'])}: set "
            f"model.family = {needed!r}"
        )
    kind = transformers.AutoModelForMaskedLM if is_masked else transformers.AutoModelForCausalLM
    try:
        return kind.from_pretrained(config.path, local_files_only=True)
    except Exception as error:
        raise UserError(f"{where}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check(model: Any, config: ModelConfig, vocabulary: int) -> None:
    """Refuse windows longer than the model's, and tokens it has no row for (UserError)."""
    where = f"model.path = {config.path!r}" if config.path else "the model"
    rows = model.config.vocab_size
    if vocabulary > rows:
        raise UserError(
            f"{where} knows {rows:,} tokens, the text has {vocabulary:,}: set tokens to the "
            "tokenizer it was made with (file:PATH of its tokenizer.json), or to fewer"
        )
    longest = getattr(model.config, "max_position_embeddings", config.context)
    if config.context > longest:
        raise UserError(
            f"model.context = {config.context}: {where} has {longest} positions; use at most that"
        )


def loss(model: Any, config: ModelConfig, windows: torch.Tensor, seed: int) -> torch.Tensor:
    """Give the mean loss of a batch [batch, context + 1] in nats a token.

    Of a masked model, over the 15 % of tokens that `seed` chooses to hide.
    """
    inputs = windows[:, :-1].contiguous()
    if config.family == "gpt2":
        found = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(
            found.reshape(-1, found.shape[-1]).float(), windows[:, 1:].reshape(-1)
        )
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(inputs.shape, generator=generator) < 0.15
    masked[:, 0] = True  # a batch with nothing to find has no loss
    found = model(input_ids=inputs.masked_fill(masked, model.config.mask_token_id)).logits
    return torch.nn.functional.cross_entropy(found[masked].float(), inputs[masked])
