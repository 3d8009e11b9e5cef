"""Which backend runs a call: a pure function, so it can be read, tested and predicted."""

from collections.abc import Collection

BACKENDS = ("triton", "torch", "reference")


def choose_backend(
    requested: str | None,  # the caller's `backend=`; None: the fastest that fits
    device: str,  # torch.device.type of the input
    available: Collection[str],  # the backends that are installed
) -> str:
    """Name of the backend that runs on `device`.

    A backend asked for by name is never replaced by another one.

    Raises:
        ValueError: `requested` is no backend, or is not available.
    """
    if requested is None:
        return "triton" if device == "cuda" and "triton" in available else "torch"
    if requested not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {requested!r}")
    if requested not in available:
        raise ValueError(
            f"backend {requested!r} is not part of this installation, "
            f"which has {sorted(available)}; use backend=None to get the fastest of them"
        )
    return requested
