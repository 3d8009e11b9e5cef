"""Which backend runs a call: a pure function, so it can be read, tested and predicted."""

from collections.abc import Collection

import torch

BACKENDS = ("triton", "torch", "reference")


def choose_backend(
    requested: str | None,  # the caller's `backend=`; None: the fastest that fits
    device: str,  # torch.device.type of the input
    available: Collection[str],  # the backends that are installed
    dtype: torch.dtype = torch.float32,  # of the computation
    interpreted: bool = False,  # TRITON_INTERPRET=1: Triton's kernels run on CPU tensors, slowly
) -> str:
    """Name of the backend that runs on `device`.

    A backend asked for by name is never replaced by another one.

    Raises:
        ValueError: `requested` is no backend, is not available, or cannot run there.
    """
    if requested is None:
        fits = device == "cuda" and dtype != torch.float64
        return "triton" if fits and "triton" in available else "torch"
    check_backend(requested, available)
    if requested == "triton" and dtype == torch.float64:
        raise ValueError("backend 'triton' has no float64; use backend='torch' or 'reference'")
    if requested == "triton" and device == "cpu" and not interpreted:
        raise ValueError(
            "backend 'triton' must have its tensors on a GPU, got the CPU; use backend=None there, "
            "or start Python with TRITON_INTERPRET=1 to run its kernels slowly"
        )
    return requested


def check_backend(requested: str | None, available: Collection[str]) -> None:
    """`requested` is None or the name of an installed backend.

    Raises:
        ValueError: it is not.
    """
    if requested is None:
        return
    if requested not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {requested!r}")
    if requested not in available:
        raise ValueError(
            f"backend {requested!r} is not part of this installation, "
            f"which has {sorted(available)}; use backend=None to get the fastest of them"
        )
