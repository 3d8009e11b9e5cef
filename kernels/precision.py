"""The dtype and the precision that a call computes in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from kernels.cells import Precision

_MKLDNN = torch.backends.mkldnn.is_available()
#: Whether the CPU has instructions for a dtype; asked here, where torch.compile does not trace it.
_IN_HARDWARE = {
    torch.bfloat16: _MKLDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: _MKLDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def compute_dtype(x: Tensor) -> torch.dtype:
    """`x`'s dtype; under torch.autocast the one of autocast.

    torch.nn.LSTM has float16 on cuDNN under any autocast. As everywhere under autocast, float64
    stays float64. On a CPU without instructions for autocast's dtype it is float32: there
    torch.nn.LSTM under autocast raises, and emulation would only be slower.
    """
    device = x.device.type
    if not autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and not _IN_HARDWARE.get(dtype):
        return torch.float32
    return dtype


def autocast_enabled(device: str) -> bool:
    """Whether torch.autocast is on; tensors without data, which have none, may ask, too."""
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Where tensors have the dtype that they are to be computed in."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def current_precision() -> Precision:
    """What torch is told for float32 products on a GPU.

    Asked of the newer switch: the older ones follow it, but raise once it was used.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@contextmanager
def float32_products(precision: str | None) -> Iterator[None]:
    """torch's own float32 products on a GPU in this precision, ieee or tf32, unless None.

    The switch is the process's: two threads that turn it at once leave it wrong.
    """
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if precision in (None, before):
        yield
        return
    products.fp32_precision = "none"
    inherited = products.fp32_precision == before  # of torch.backends' own switch, as it will be
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = "none" if inherited else before
