"""Decoders on text: a small Llama trained on Python's documentation, or a local folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shorthaul import data as shorthaul_data
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.adapters.hf_layers import LayerShape
from pipe_bd.adapters.huggingface import HFTask, from_hf, load_teacher, need_transformers
from pipe_bd.models._teachers import cached, cosine
from pipe_bd.rng import derive
from pipe_bd.source import IndexedSource, tensor_source
from pipe_bd.stitch import device_of

BYTES = 256
HELD_OUT = 10  # every tenth window


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cut a text into rows and hold every tenth out.

    Args:
        tokens: token numbers, shape (n,).
        length: tokens per row.

    Returns:
        Training rows and held-out rows, each (rows, length); they do not overlap.

    Raises:
        UserError: the text is too short.
    """
    count = len(tokens) // length
    if count < HELD_OUT:
        raise UserError(
            f"a text of {len(tokens)} tokens has {count} rows of {length}: give "
            f"{HELD_OUT * length} tokens or more"
        )
    rows = tokens[: count * length].view(count, length)
    held = torch.arange(count) % HELD_OUT == HELD_OUT - 1
    return rows[~held].contiguous(), rows[held].contiguous()


def byte_rows(length: int, text: str = "python-topics") -> tuple[Tensor, Tensor]:
    """Training and held-out rows of a text's bytes; by default of Python's documentation."""
    raw = shorthaul_data.text_corpus(text)
    return windows(torch.frombuffer(bytearray(raw), dtype=torch.uint8).long(), length)


def bits_per_byte(model: nn.Module, rows: Tensor, batch: int = 32) -> float:
    """Mean next-token cross-entropy in bits; per byte where a token is a byte.

    Args:
        model: token numbers (rows, length) → logits, or an object that holds them.
        rows: held-out rows.
        batch: rows per forward pass.
    """
    total, device = 0.0, device_of(model)
    with torch.no_grad():
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch].to(device)
            out = model(part)
            logits = out if isinstance(out, Tensor) else out.logits
            total += float(
                F.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
                )
            )
    return total / (rows.shape[0] * (rows.shape[1] - 1)) / math.log(2)


def llama_config(width: int, layers: int, tokens: int) -> Any:
    """A byte-level Llama: heads of 32, two per key-value head, feed-forward of 8/3 widths."""
    transformers = need_transformers()
    heads = max(2, width // 32)
    return transformers.LlamaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=tokens,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )


def train_teacher(
    rows: Tensor,
    *,
    width: int = 96,
    layers: int = 4,
    steps: int = 400,
    batch: int = 16,
    seed: int = 0,
    folder: Path | str | None = None,
) -> Any:
    """Train the byte-level Llama on rows of text, or take it from the cache.

    Args:
        rows: training rows (n, length).
        width: hidden size.
        layers: decoder layers.
        steps: batches.
        batch: rows per batch.
        seed: of weights and order.
        folder: where trained teachers are kept.
    """
    LlamaForCausalLM = need_transformers().LlamaForCausalLM
    config = llama_config(width, layers, rows.shape[1])
    recipe = {
        "rows": list(rows.shape), "sum": int(rows.sum()), "width": width, "layers": layers,
        "steps": steps, "batch": batch, "seed": seed, "version": 1,
    }  # fmt: skip

    def make() -> nn.Module:
        torch.manual_seed(derive(seed, "text-teacher"))
        model = LlamaForCausalLM(config)
        source = tensor_source(rows, batch, steps=steps, seed=derive(seed, "text-teacher", "order"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
        for step in range(steps):
            x = source.load(step, 0, batch).x
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * cosine(step, steps, warmup=20)
            logits = model(input_ids=x, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model

    state, _ = cached(folder, "llama", recipe, make)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    model.tie_weights()
    return model.eval()


def distillation(
    model: Any,
    rows: Tensor,
    *,
    batch: int = 16,
    steps: int = 200,
    lr: float = 2e-3,
    seed: int = 0,
    **shape: Any,
) -> HFTask:
    """The task of distilling a decoder on rows of token numbers with our usual optimizer.

    Args:
        model: see :func:`~pipe_bd.adapters.huggingface.from_hf`.
        rows: token numbers (n, length).
        batch: rows per batch.
        steps: batches.
        lr: peak learning rate of AdamW.
        seed: order of the batches.
        **shape: ``ffn``, ``heads``, ``kv_heads``, ``no_attention``, ``layers`` or ``library``.
    """
    source = IndexedSource(
        _Rows(rows),
        len(rows),
        batch,
        steps=steps,
        seed=seed,
        identity=f"text-{tuple(rows.shape)}-{int(rows.sum())}",
        threaded=True,
    )
    return from_hf(
        model,
        source=source,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        lr_schedule=partial(cosine, steps=steps),
        **shape,
    )


class _Rows:
    """Fetches rows of token numbers, kept in 32 bits on their way to the workers."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows.to(torch.int32)

    def __call__(self, numbers: Tensor) -> Any:
        from pipe_bd.source import Batch

        return Batch(self.rows[numbers].long())


def text_task(
    *,
    seed: int = 0,
    batch: int | None = None,
    steps: int = 200,
    tokens: int = 64,
    ffn: float = 0.5,
    width: int = 96,
    layers: int = 4,
    teacher_steps: int = 400,
    library: Mapping[str, LayerShape] | None = None,
    workdir: str | None = None,
) -> HFTask:
    """The Llama task by its options alone; trains the teacher if none is cached."""
    rows, _ = byte_rows(tokens)
    teacher = train_teacher(
        rows, width=width, layers=layers, steps=teacher_steps, seed=seed, folder=workdir
    )
    shape: dict[str, Any] = {"ffn": ffn} if library is None else {"library": library}
    return distillation(teacher, rows, batch=batch or 16, steps=steps, seed=seed, **shape)


def hf_task(
    directory: str | Path,
    *,
    text: str | None = None,
    student: str | None = None,
    ffn: float = 0.5,
    tokens: int = 64,
    seed: int = 0,
    batch: int | None = None,
    steps: int = 200,
    lr: float = 1e-3,
) -> HFTask:
    """A local Hugging Face folder and a text, for the registry.

    Args:
        directory: folder written by ``save_pretrained``.
        text: a text file; None takes Python's documentation.
        student: the student's shape, as :meth:`~pipe_bd.adapters.hf_layers.LayerShape.parse` reads
            it; overrides ``ffn``.
        ffn: fraction of the feed-forward channels kept.
        tokens: tokens per row.
        seed: order of the batches.
        batch: rows per batch.
        steps: batches.
        lr: peak learning rate.
    """
    model, folder = load_teacher(directory)
    longest = getattr(model.config, "max_position_embeddings", None) or tokens
    if tokens > longest:
        raise UserError(
            f"rows of {tokens} tokens exceed the model's {longest} positions: use fewer tokens"
        )
    raw = shorthaul_data.text_corpus(text or "python-topics")
    rows, _ = windows(_tokenise(raw, Path(directory), model.config.vocab_size), tokens)
    shape = LayerShape(ffn=ffn) if student is None else LayerShape.parse(student)
    task = distillation(
        model, rows, batch=batch or 16, steps=steps, lr=lr, seed=seed, library={"student": shape}
    )
    task.directory = folder
    return task


def _tokenise(raw: bytes, directory: Path, vocabulary: int) -> Tensor:
    """Token numbers of a text: by the folder's tokenizer, else bytes folded into the vocabulary."""
    if any(
        (directory / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"the tokenizer in {directory} cannot be loaded: {str(error).splitlines()[0][:200]}"
            ) from error
        ids = tokenizer(raw.decode(errors="replace"), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return torch.tensor(ids, dtype=torch.long)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long() % vocabulary
