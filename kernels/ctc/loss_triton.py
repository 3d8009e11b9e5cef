"""The loss in Triton: what is launched, in which sizes. The host never waits.

How it works: `loss_kernels`.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from kernels.ctc import loss_kernels
from kernels.ctc.checks import Labels

if TYPE_CHECKING:
    from kernels.bench.compiled import Specimen

_LARGEST_BLOCK = 1024  # elements of a tile of logits
_MOST_LABELS = 2**15 - 1  # of which scores of a frame fit in shared memory


@dataclass(frozen=True)
class Alphabet:
    """What `prepare_kernel` finds out; its parameters say what the fields hold."""

    symbols: Tensor
    places: Tensor
    following: Tensor
    extent: Tensor
    verdict: Tensor
    blank: int


def alphabet(labels: Labels, T: int, V: int) -> Alphabet:
    """Symbols of each utterance, in one launch; more labels than frames are never looked at.

    Raises:
        ValueError: there may be more labels than a program can hold.
    """
    targets = labels.targets[:, :T].contiguous()
    B, L = targets.shape
    if L > _MOST_LABELS:
        raise ValueError(
            f"ctc_loss: backend 'triton' takes up to {_MOST_LABELS} labels an utterance, "
            f"got {L}; use backend='torch'"
        )
    integers = partial(targets.new_empty, dtype=torch.int32)
    found = Alphabet(
        symbols=integers(B, L + 1),
        places=integers(B, L),
        following=integers(B, L),
        extent=integers(B, 2),
        verdict=targets.new_empty(B, dtype=torch.float32),
        blank=labels.blank,
    )
    loss_kernels.prepare_kernel[(B,)](
        *(targets, labels.lengths, labels.frames),
        *(found.extent, found.verdict, found.symbols, found.places, found.following),
        *(T, L, V, labels.blank, labels.limit, targets.stride(0)),
        BLOCK=_power_of_two(L, most=64),
    )
    return found


def emissions(logits: Tensor, alphabet: Alphabet, first: int = 0) -> Tensor:
    """Base-2 log-probabilities [T, B, K] of the symbols, in float32; undefined past an end."""
    T, B, V = logits.shape
    K = alphabet.symbols.shape[1]
    emitted = torch.empty(T, B, K, dtype=torch.float32, device=logits.device)
    tile = _tile(V, K)
    loss_kernels.emit_kernel[(triton.cdiv(T, tile["BLOCK_T"]), B)](
        *(logits, alphabet.symbols, alphabet.extent, emitted),
        *(first, T, K, V, *logits.stride()),
        **tile,
    )
    return emitted


def occupy(
    emissions: Tensor, alphabet: Alphabet, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses [B] in nats, and probability minus occupancy [T, B, K] of the symbols."""
    T, B, K = emissions.shape
    L = K - 1
    # With one direction nothing is stored, and any tensor does as the address.
    scores = emissions.new_empty(2, T, B, 2, K) if with_gradient else emissions
    losses = emissions.new_empty(B)
    lanes = _power_of_two(K)
    loss_kernels.recur_kernel[(B, 2 if with_gradient else 1)](
        *(emissions, alphabet.places, alphabet.extent, alphabet.verdict, losses, scores),
        *(T, B, L),
        KEEP=with_gradient,
        BLOCK=lanes,
        **_recurrence_plan(lanes),
    )
    if not with_gradient:
        return losses, None
    residual = torch.empty_like(emissions)
    block = _power_of_two(K, most=256)
    frames = max(1, 1024 // block)
    loss_kernels.occupy_kernel[(triton.cdiv(T, frames), B)](
        *(emissions, scores, alphabet.places, alphabet.following, alphabet.extent, residual),
        *(T, B, L),
        BLOCK_T=frames,
        BLOCK_L=block,
    )
    return losses, residual


def gradient(
    logits: Tensor, residual: Tensor, alphabet: Alphabet, weights: Tensor, first: int = 0
) -> Tensor:
    """Of the weighted sum of losses for logits that begin with frame `first`; their dtype."""
    T, B, V = logits.shape
    K = alphabet.symbols.shape[1]
    result = torch.empty_like(logits)
    tile = _tile(V, K)
    loss_kernels.gradient_kernel[(triton.cdiv(T, tile["BLOCK_T"]), B)](
        *(logits, residual.contiguous(), alphabet.symbols, alphabet.extent),
        *(weights.float().contiguous(), result, first, T, K, V, alphabet.blank),
        *(*logits.stride(), *result.stride()),
        **tile,
    )
    return result


def _power_of_two(size: int, most: int | None = None) -> int:
    least = int(triton.next_power_of_2(max(1, size)))
    return least if most is None else min(least, most)


def _tile(V: int, K: int) -> dict[str, int]:
    """Frames by symbols, of about as many elements whatever V is."""
    columns = _power_of_two(V, _LARGEST_BLOCK)
    frames = min(32, _LARGEST_BLOCK // columns)
    return {
        "BLOCK_T": frames,
        "BLOCK_V": columns,
        "BLOCK_K": _power_of_two(K, _LARGEST_BLOCK // frames),
    }


def _recurrence_plan(lanes: int) -> dict[str, int]:
    """As few warps as hold the lanes in registers: one exchanges labels without shared memory.

    Up to 2048 lanes, shared memory has room for the emissions of some frames ahead.
    """
    return {"num_warps": max(1, min(16, lanes // 128)), "STAGES": 4 if lanes <= 2048 else 1}


def specimens() -> "list[Specimen]":
    """What `python -m kernels.bench compile` compiles: every kernel, as common sizes launch it."""
    from kernels.bench.compiled import Specimen

    found = [_specimen(Specimen, "prepare", loss_kernels.prepare_kernel, {"BLOCK": 64})]
    for K in (64, 256, 1024, 2048, 4096):
        plan = _recurrence_plan(K)
        warps = {"num_warps": plan.pop("num_warps")}
        for keep in (True, False):
            constants = {"KEEP": keep, "BLOCK": K, **plan}
            name = f"recur {K} lanes{'' if keep else ', loss only'}"
            found.append(_specimen(Specimen, name, loss_kernels.recur_kernel, constants, warps))
    for K in (64, 1024):
        block = min(K, 256)
        constants = {"BLOCK_T": max(1, 1024 // block), "BLOCK_L": block}
        found.append(_specimen(Specimen, f"occupy K={K}", loss_kernels.occupy_kernel, constants))
    for V in (32, 500, 5000):
        for dtype in ("fp32", "bf16", "fp16"):
            tile = {**_tile(V, 61), "stride_v": 1}
            name = f"emit {dtype} V={V}"
            found.append(_specimen(Specimen, name, loss_kernels.emit_kernel, tile, dtype=dtype))
            tile = tile | {"stride_out_v": 1}
            name = f"gradient {dtype} V={V}"
            found.append(_specimen(Specimen, name, loss_kernels.gradient_kernel, tile, dtype=dtype))
    return found


_POINTERS = {
    **dict.fromkeys(("targets", "lengths", "frames"), "*i64"),
    **dict.fromkeys(("extent", "symbols", "places", "following"), "*i32"),
    **dict.fromkeys(("verdict", "emitted", "losses", "scores", "residual", "weights"), "*fp32"),
}


def _specimen(
    make: "type[Specimen]",
    name: str,
    kernel: Any,
    constants: dict[str, int],
    options: dict[str, int] | None = None,
    dtype: str = "fp32",
) -> "Specimen":
    pointers = _POINTERS | {"logits": f"*{dtype}", "out": f"*{dtype}"}
    signature = {
        argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
        for argument in kernel.arg_names
    }
    return make(f"ctc_loss {name}", kernel, signature, constants, options or {})
