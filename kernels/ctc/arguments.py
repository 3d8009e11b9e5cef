"""Arguments of alignment and search: checked, and brought to the layout that is computed on.

Values of tensors on the CPU are checked. On a GPU they are clamped into their range, because
looking at them would make the host wait.
"""

import torch
from torch import Tensor


def check_log_probs(op: str, log_probs: Tensor, blank: int) -> None:
    """[T, B, V] floating point, with a blank among at least two units."""
    if not isinstance(log_probs, Tensor) or not log_probs.is_floating_point():
        got = log_probs.dtype if isinstance(log_probs, Tensor) else type(log_probs).__name__
        raise ValueError(f"{op}: log_probs must be a floating-point Tensor, got {got}")
    if log_probs.dim() != 3:
        raise ValueError(
            f"{op}: log_probs must be [T, B, V], got {list(log_probs.shape)}; "
            "for one utterance use log_probs[:, None]"
        )
    V = log_probs.shape[2]
    if V < 2:
        raise ValueError(f"{op}: log_probs must have at least 2 units, got V = {V}")
    if not 0 <= blank < V:
        raise ValueError(f"{op}: blank must be from 0 to V - 1 = {V - 1}, got {blank}")


def computable(log_probs: Tensor) -> Tensor:
    """The same in float32; float64 stays."""
    return log_probs if log_probs.dtype == torch.float64 else log_probs.float()


def frame_counts(op: str, name: str, lengths: Tensor, log_probs: Tensor) -> Tensor:
    """[B] int64 on the device of `log_probs`, from 0 to T."""
    T, B, _ = log_probs.shape
    return _counts(op, name, lengths, T, B, log_probs.device)


def _counts(op: str, name: str, values: Tensor, most: int, B: int, device: torch.device) -> Tensor:
    _expect_int64(op, name, values)
    if list(values.shape) != [B]:
        raise ValueError(f"{op}: {name} must be [B] = [{B}], got {list(values.shape)}")
    if values.device.type == "cpu":
        _expect_range(op, name, values, 0, most)
    return values.to(device, non_blocking=True).clamp(0, most)


def padded_targets(
    op: str, targets: Tensor, target_lengths: Tensor, log_probs: Tensor, blank: int
) -> tuple[Tensor, Tensor]:  # [B, L] and [B], int64, on the device of `log_probs`
    """Targets in rows, padded with units that exist, and their lengths."""
    _, B, V = log_probs.shape
    device = log_probs.device
    _expect_int64(op, "targets", targets)
    if targets.dim() not in (1, 2):
        raise ValueError(
            f"{op}: targets must be [B, L] or [sum of lengths], got {list(targets.shape)}"
        )
    packed = targets.dim() == 1
    if not packed and len(targets) != B:
        raise ValueError(f"{op}: targets must be [B, L] with B = {B}, got {list(targets.shape)}")
    lengths = _counts(op, "target_lengths", target_lengths, targets.shape[-1], B, device)
    if packed:
        targets = _rows(op, targets, target_lengths)
    targets = targets.to(device, non_blocking=True)
    inside = torch.arange(targets.shape[1], device=device) < lengths[:, None]
    if device.type == "cpu":
        used = targets[inside]
        _expect_range(op, "targets", used, 0, V - 1)
        if (used == blank).any():
            raise ValueError(f"{op}: targets must not hold the blank, {blank}; leave it out")
    return targets.where(inside, blank).clamp(0, V - 1), lengths


def _rows(op: str, packed: Tensor, lengths: Tensor) -> Tensor:
    """[sum of lengths] -> [B, L]; L is the longest, or on a GPU, unseen, all of `packed`."""
    total = len(packed)
    if lengths.device.type == "cpu":
        if int(lengths.sum()) != total:
            raise ValueError(
                f"{op}: target_lengths must sum to the {total} packed targets, "
                f"got {int(lengths.sum())}"
            )
        L = int(lengths.max()) if len(lengths) else 0
    else:
        L = total
    lengths = lengths.to(packed.device)
    index = (lengths.cumsum(0) - lengths)[:, None] + torch.arange(L, device=packed.device)
    return packed[index.clamp(0, max(0, total - 1))] if total else packed.new_zeros(len(lengths), 0)


def _expect_int64(op: str, name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.dtype != torch.int64:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{op}: {name} must be an int64 tensor, got {got}")


def _expect_range(op: str, name: str, values: Tensor, least: int, most: int) -> None:
    outside = (values < least) | (values > most)
    if outside.any():
        raise ValueError(
            f"{op}: {name} must be from {least} to {most}, got {int(values[outside][0])}"
        )
