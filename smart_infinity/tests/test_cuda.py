"""Top-k on a GPU: its kernels compile for the GPUs we name, and its lack is said.

What the kernels compute is tested by cpp/tests/test_topk.cpp, which runs them on the processor
beside topk.cpp; here on a GPU, where one is.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from shorthaul.errors import EnvironmentLack, UserError

from smart_infinity import _core

SOURCE = Path(__file__).parents[1] / "cpp" / "cuda" / "topk.cu"
NVCC = shutil.which("nvcc") or ""
REASON = _core.cuda_reason() or ("" if torch.cuda.is_available() else "torch has no CUDA")


def encode(room: int = 100, k: int = 2) -> int:
    out = np.zeros(room, np.uint8)
    return _core.cuda_topk_encode(0, 0, 0, 10, k, _core.Dtype.float32, out)


def test_counts_that_make_no_sense_are_refused_before_a_gpu_is_asked() -> None:
    with pytest.raises(UserError, match="k=11: use 1 to 10"):
        encode(k=11)
    with pytest.raises(UserError, match="no room"):
        encode(room=7)


if REASON:

    def test_without_a_gpu_the_lack_is_said_in_one_line() -> None:
        with pytest.raises(EnvironmentLack, match="CUDA") as caught:
            encode()
        assert "\n" not in str(caught.value)

else:

    @pytest.mark.parametrize("values", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("n", [1, 2049, 200_003])
    def test_a_gpu_gives_the_processors_bytes(n: int, values: str) -> None:
        dtype, k = _core.Dtype[values], _core.topk_kept(n, 0.01)
        left = np.zeros(n, np.float32)
        left_there = torch.zeros(n, device="cuda")
        for step in range(3):
            gradient = torch.randn(n, generator=torch.Generator().manual_seed(step))
            here, there = (np.zeros(_core.topk_bytes(n, k, dtype), np.uint8) for _ in range(2))
            _core.topk_encode(gradient.numpy(), k, dtype, here, left)
            sent = gradient.cuda()
            stream = torch.cuda.current_stream().cuda_stream
            _core.cuda_topk_encode(
                0, stream, sent.data_ptr(), n, k, dtype, there, left_there.data_ptr()
            )
            assert np.array_equal(here, there)
            assert np.array_equal(left, left_there.cpu().numpy())


if NVCC:

    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
    def test_its_kernels_compile(architecture: str, tmp_path: Path) -> None:
        cubin = tmp_path / "topk.cubin"
        subprocess.run(
            [NVCC, "-std=c++20", "--expt-relaxed-constexpr", f"-arch={architecture}", "-cubin",
             "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-o", str(cubin), str(SOURCE)],
            check=True, timeout=120,
        )  # fmt: skip
        compiled = cubin.read_bytes()
        assert compiled.startswith(b"\x7fELF")
        for kernel in (b"count_digits", b"choose_digit", b"place_chunks", b"write_chunks"):
            assert kernel in compiled
