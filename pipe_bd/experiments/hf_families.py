"""Tiny Llama, Qwen and GPT-2: exact replay, halved feed-forward layers, a loadable export."""

from __future__ import annotations

from typing import Any

import torch
from shorthaul.errors import Fault
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from torch import Tensor

from pipe_bd.adapters.huggingface import HFTask, need_transformers
from pipe_bd.api import distill
from pipe_bd.export import export_hf
from pipe_bd.losses import normalised_error
from pipe_bd.models import text
from pipe_bd.stitch import block_errors, teacher_of


def config(family: str, width: int, layers: int, tokens: int) -> Any:
    """A tiny configuration of a family, with random weights to come."""
    transformers = need_transformers()
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=text.BYTES, n_embd=width, n_layer=layers, n_head=4, n_inner=4 * width,
            n_positions=tokens, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    common: dict[str, Any] = {
        "vocab_size": text.BYTES, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": tokens, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if family == "qwen2-sliding":  # its layers are given different masks
        sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
        return transformers.Qwen2Config(**common, **sliding)
    if family == "qwen3":
        return transformers.Qwen3Config(**common, head_dim=width // 4)
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    return kinds[family](**common)


def replay_is_bitwise(task: HFTask, rows: Tensor) -> bool:
    """Whether blocks and side inputs give the model's own hidden states and logits, bit by bit."""
    mask = torch.ones_like(rows)
    mask[0, : rows.shape[1] // 3] = 0
    mask[1, -2:] = 0
    same = True
    for carry in ({}, {"attention_mask": mask}):
        with torch.no_grad():
            own = task.model(input_ids=rows, output_hidden_states=True, use_cache=False, **carry)
            x = task.entry(rows)  # type: ignore[misc]
            # The last hidden state that a model reports has passed its final norm.
            for hidden, pair, side in zip(
                own.hidden_states, task.pairs, task.side_inputs(x, carry), strict=False
            ):
                same = same and torch.equal(x, hidden)
                x = pair.teacher(x, **side)
            same = same and torch.equal(teacher_of(task)(rows, **carry), own.logits)
    return same


def run(context: Context) -> Summary:
    """Every family in turn."""
    torch.set_num_threads(1)
    s = context.settings
    rows, held = text.byte_rows(s["tokens"])
    held = held[: s["held_rows"]]
    metrics: dict[str, Any] = {}
    table_rows, falls_by_family = [], {}
    for family in s["families"]:
        torch.manual_seed(context.seed)
        task = text.distillation(
            config(family, s["width"], s["layers"], s["tokens"]),
            rows,
            steps=s["steps"],
            ffn=0.5,
            lr=s["lr"],
            seed=context.seed,
        )
        task.model.eval()
        bitwise = replay_is_bitwise(task, held[:8])
        before = block_errors(task, held, normalised_error)
        distill(task, schedule="sequential", seed=context.seed)
        after = block_errors(task, held, normalised_error)
        falls = {n: 1 - after[n]["student"] / before[n]["student"] for n in before}
        try:
            export_hf(task, context.workdir / family, overwrite=True)
            equal = True
        except Fault:
            equal = False
        metrics[family] = {
            "replay_bitwise": bitwise,
            "fall": falls,
            "least_fall": min(falls.values()),
            "export_equal": equal,
        }
        context.run.metric(family=family, **metrics[family])
        falls_by_family[family] = falls
        table_rows.append(
            [
                family,
                "yes" if bitwise else "no",
                *(f"{max(e[n]['student'] for n in e):.4f}" for e in (before, after)),
                round(100 * min(falls.values()), 1),
                "yes" if equal else "no",
            ]
        )
    families = list(falls_by_family)
    metrics["replays_not_bitwise"] = sum(not metrics[f]["replay_bitwise"] for f in families)
    metrics["exports_not_equal"] = sum(not metrics[f]["export_equal"] for f in families)
    metrics["least_fall"] = min(metrics[f]["least_fall"] for f in families)
    layers = list(falls_by_family[families[0]])
    figure = Figure(
        "fall",
        f"Normalised MSE falls by more than half in every layer within {s['steps']} steps",
        "bars",
        list(layers),
        "layer",
        "fall of the normalised MSE on held-out rows, %",
        [Series(f, [100 * falls_by_family[f][n] for n in layers]) for f in families],
        note=(
            "Random teachers, read on Python's documentation as bytes. On uniformly random tokens "
            "a random gated layer is close to incompressible; text is what models are used on."
        ),
    )
    columns = [
        "family",
        "replay bitwise",
        "worst normalised MSE before",
        "after",
        "least fall, %",
        "export reloads with equal logits",
    ]
    return Summary(metrics, [figure], [Table("families", "Decoder families", columns, table_rows)])


FAMILIES = ["llama", "qwen2", "qwen2-sliding", "qwen3", "gpt2"]

EXPERIMENT = Experiment(
    id="hf_families",
    title="Hugging Face decoders: exact replay, halved feed-forward layers, loadable export",
    source="ours",
    run=run,
    scales={
        "smoke": {
            "families": FAMILIES,
            "width": 32,
            "layers": 2,
            "tokens": 32,
            "steps": 60,
            "lr": 2e-3,
            "held_rows": 64,
        },
        "small": {
            "families": FAMILIES,
            "width": 64,
            "layers": 4,
            "tokens": 32,
            "steps": 200,
            "lr": 2e-3,
            "held_rows": 64,
        },
    },
    minutes={"smoke": 0.3, "small": 1},
)
