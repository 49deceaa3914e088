"""Tiny decoders of every family that the adapter promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = ["llama", "qwen2", "qwen2-sliding", "qwen3", "gpt2", "mistral", "gemma2", "gemma3"]


def tiny_config(family: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    kinds = {
        "llama": (transformers.LlamaConfig, {}),
        "qwen2": (transformers.Qwen2Config, {}),
        "qwen2-sliding": (
            transformers.Qwen2Config,
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ),
        "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
        "mistral": (transformers.MistralConfig, {"sliding_window": 4}),
        "gemma2": (transformers.Gemma2Config, {"head_dim": 8, "sliding_window": 4}),
        "gemma3": (
            transformers.Gemma3TextConfig,
            {
                "head_dim": 8,
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    }
    kind, extra = kinds[family]
    return kind(**TINY, **extra)


def tiny_model(family: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    config = tiny_config(family)
    options = {"attn_implementation": "eager"} if family == "gemma2" else {}
    return transformers.AutoModelForCausalLM.from_config(config, **options).eval()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model():
    return tiny_model


@pytest.fixture
def tokens():
    return torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(1))
