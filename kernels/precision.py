"""The dtype a call computes in, which is its input's unless torch.autocast says otherwise."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """`x`'s dtype; under torch.autocast the one of autocast, as for torch.nn.LSTM.

    As everywhere under autocast, float64 stays float64. On a CPU without instructions for
    autocast's dtype it is float32: there torch.nn.LSTM under autocast raises, and emulation
    would only be slower.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and not _in_hardware(dtype):
        return torch.float32
    return dtype


def _in_hardware(dtype: torch.dtype) -> bool:
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())
