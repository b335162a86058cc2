"""How numbers are kept: float32, or bfloat16 inside the towers.

Weights, gradients, AdamW's moments and the teacher are float32 in both. With `bf16` the towers' matrix products,
convolutions and attention are computed in bfloat16 (torch.autocast); the sums between blocks stay float32, and so do
features, logits, softmaxes and every loss: at a scale of 100 a bfloat16 logit is off by a quarter, and fairness takes
the logarithm of a mean. bfloat16 has float32's range, so losses need no scaling.

On CUDA `fp32` means float32: TF32 is off, in matrix products (torch's default) and in cuDNN's convolutions (not torch's
default). Whoever wants speed takes bf16. (Released code: fp32, with cuDNN's TF32; its AMP option is fp16 and unused.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.settings.model import Precision


def settle(precision: Precision) -> None:
    """Sets up torch for the whole process: no TF32, and in bfloat16 the same attention with gradients and without.

    (Without gradients nn.MultiheadAttention has a fast path, which ignores autocast on a CPU.)
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made when torch is imported
    torch.backends.mha.set_fastpath_enabled(precision == "fp32")


def inside_towers(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a tower runs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def widened(values: Tensor) -> Tensor:
    """bfloat16 as float32; any other type as it is."""
    return values.float() if values.dtype == torch.bfloat16 else values


def project(values: Tensor, matrix: Tensor) -> Tensor:
    """values @ matrix in the matrix's precision, also inside a tower, so that features are not rounded to bfloat16."""
    with torch.autocast(values.device.type, enabled=False):
        return widened(values) @ matrix
