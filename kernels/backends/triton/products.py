"""What surrounds the recurrence: products over all time steps at once.

Frames of a direction n are shifted against each other by one step: step 0 is `starts(...)[n]`.
"""

import torch
from torch import Tensor


def past_end(lengths: Tensor, T: int) -> Tensor:
    """[T, B], whether an utterance has ended."""
    return torch.arange(T, device=lengths.device).unsqueeze(-1) >= lengths


def starts(lengths: Tensor, N: int) -> list[tuple[Tensor, Tensor, int]]:
    """Index into [T, B, N, ...] of step 0, for each direction: [B, ...]."""
    rows = torch.arange(len(lengths), device=lengths.device)
    first = (torch.zeros_like(lengths), lengths - 1)
    return [(first[n], rows, n) for n in range(N)]


def _shifted(n: int, later: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
    """[T-1, B, ...] of direction n: `later` at all steps but the first, `earlier` one before."""
    if n == 0:
        return later[1:, :, n], earlier[:-1, :, n]
    return later[:-1, :, n], earlier[1:, :, n]


def gate_arguments(
    x: Tensor,  # [T, B, D]
    w_ih: Tensor,  # [N*G*H, D]
    bias: Tensor | None,  # [N*G*H]
    first: Tensor | None,  # [N, B, G*H], added at step 0
    lengths: Tensor,
    N: int,
) -> Tensor:
    """W x + b of all frames and directions, [T, B, N, G*H]."""
    T, B, D = x.shape
    flat = x.reshape(T * B, D)
    product = flat @ w_ih.t() if bias is None else torch.addmm(bias, flat, w_ih.t())
    gates = product.view(T, B, N, -1)
    if first is not None:
        for start in starts(lengths, N):
            gates[start] += first[start[2]]
    return gates


def before(states: Tensor, initial: Tensor, lengths: Tensor) -> Tensor:
    """`states` [T, B, N, H] one step earlier; at step 0 `initial` [N, B, H]."""
    shifted = torch.zeros_like(states)
    for start in starts(lengths, states.shape[2]):
        n = start[2]
        later, earlier = _shifted(n, shifted, states)
        later.copy_(earlier)
        shifted[start] = initial[n].to(states.dtype)
    return shifted


def add_recurrent_arguments(
    arguments: Tensor,  # [T, B, N, G*H]
    seen: Tensor,  # [T, B, N, H], what W_hh sees of each step's h
    h_start: Tensor,  # [N, B, H], of the initial one
    w_hh: Tensor,  # [N, G*H, H]
    lengths: Tensor,
) -> None:
    """Add U h[t-1] to each frame of `arguments`, from all the h that are known by now."""
    for start in starts(lengths, len(w_hh)):
        n = start[2]
        later, earlier = _shifted(n, arguments, seen)
        later.flatten(0, 1).addmm_(earlier.flatten(0, 1), w_hh[n].t())
        arguments[start] += h_start[n] @ w_hh[n].t()


def through_w_hh(
    arguments: Tensor,  # [T, B, N, G*H], gradient of U h[t-1], zero past the ends
    seen: Tensor,
    h_start: Tensor,
    w_hh: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of `w_hh` and `h_start`."""
    dw_hh, dh_start = torch.empty_like(w_hh), torch.empty_like(h_start)
    for start in starts(lengths, len(w_hh)):
        n = start[2]
        later, earlier = _shifted(n, arguments, seen)
        begin = arguments[start]  # [B, G*H]
        dw_hh[n] = later.flatten(0, 1).t() @ earlier.flatten(0, 1) + begin.t() @ h_start[n]
        dh_start[n] = begin @ w_hh[n]
    return dw_hh, dh_start


def sum_rows(rows: Tensor) -> Tensor:
    """Over frames and utterances, the first two dimensions, in float32 whatever the dtype."""
    return rows.sum((0, 1), dtype=torch.float32).to(rows.dtype)
