"""The CUDA kernels on a real GPU: the bits of the CPU. Skipped, with its reason, where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aisec_fast import clipping, noise
from tests.conftest import bits

_cuda = pytest.importorskip("aisec_fast._cuda", reason="this build has no CUDA module (no nvcc)")
pytestmark = pytest.mark.skipif(_cuda.device_count() == 0, reason="no CUDA device: GPU results are owed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 127, 129, 1_000_003])
def test_noise_has_the_bits_of_the_cpu(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(size, dtype=dtype)
    for add in (noise.add_gaussian, noise.add_laplace):
        expected = add(x, 1.3, source=noise.SeededSource(1))
        assert bits(add(x.cuda(), 1.3, source=noise.SeededSource(1)).cpu()) == bits(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1025), (33, 70_000)])
def test_clipping_has_the_bits_of_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    grads = [torch.randn(shape).to(dtype), torch.randn(shape[0], 5).to(dtype)]
    on_gpu = [grad.cuda() for grad in grads]
    sums, norms = clipping.clip_and_sum(grads, 1.0)
    gpu_sums, gpu_norms = clipping.clip_and_sum(on_gpu, 1.0)
    assert bits(gpu_norms.cpu()) == bits(norms)
    assert [bits(s.cpu()) for s in gpu_sums] == [bits(s) for s in sums]
    private = clipping.private_sum(grads, 1.0, 1.0, source=noise.SeededSource(2))
    gpu_private = clipping.private_sum(on_gpu, 1.0, 1.0, source=noise.SeededSource(2))
    assert [bits(s.cpu()) for s in gpu_private] == [bits(s) for s in private]


def test_mixed_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one device"):
        noise.add_gaussian([torch.zeros(3), torch.zeros(3).cuda()], 1.0)


def test_unfit_values_are_found() -> None:
    x = torch.zeros(1000, device="cuda")
    x[77] = np.nan
    with pytest.raises(ValueError, match="flat index 77 is nan"):
        noise.add_gaussian(x, 1.0, check=True)
