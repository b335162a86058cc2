"""How numbers are kept: float32, or bfloat16 or float16 inside the towers.

Weights, gradients, AdamW's moments and the teacher are float32 in all. With `bf16` the towers' matrix products,
convolutions and attention are computed in bfloat16 (torch.autocast); the sums between blocks stay float32, and so do
features, logits, softmaxes and every loss: at a scale of 100 a bfloat16 logit is off by a quarter, and fairness takes
the logarithm of a mean. bfloat16 has float32's range, so losses need no scaling.

`fp16` is the same in float16, for cards without bfloat16 (before Ampere). Its range ends at 65,504, and small gradients
vanish in it: the loss is scaled up before backward by a factor that is halved after each overflow, whose update is
skipped, and doubled after 2,000 updates without one (torch.amp.GradScaler).

On CUDA `fp32` means float32: TF32 is off, in matrix products (torch's default) and in cuDNN's convolutions (not torch's
default). Whoever wants speed takes bf16. (Released code: fp32, with cuDNN's TF32; its AMP option is fp16 and unused.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifests.errors import Refused
from training.settings.model import Precision

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def require_precision(precision: Precision, device: torch.device) -> None:
    """Raises Refused where the device would only imitate bfloat16."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Refused(f"precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use precision=fp16")


def settle(precision: Precision) -> None:
    """Sets up torch for the whole process: no TF32, and in 16 bits the same attention with gradients and without.

    (Without gradients nn.MultiheadAttention has a fast path, which ignores autocast on a CPU.)
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made when torch is imported
    torch.backends.mha.set_fastpath_enabled(precision == "fp32")


def inside_towers(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a tower runs."""
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "fp32")


def widened(values: Tensor) -> Tensor:
    """16 bits as float32; any other type as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def project(values: Tensor, matrix: Tensor) -> Tensor:
    """values @ matrix in the matrix's precision, also inside a tower, so that features are not rounded to 16 bits."""
    with torch.autocast(values.device.type, enabled=False):
        return widened(values) @ matrix
