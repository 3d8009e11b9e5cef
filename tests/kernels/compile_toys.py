"""Compiles kernels with planted faults and prints what `kernels.bench.compiled` says of them.

Run by `test_compiled` in a process of its own, where Triton does not interpret.
"""

import json
import sys
from dataclasses import asdict

import triton
import triton.language as tl

from kernels.bench.compiled import TARGETS, Specimen, faults, resources

B, H, SLICE = 16, 256, 16


@triton.jit
def peek(pointers, PAST_L1: tl.constexpr):
    if PAST_L1:
        return tl.load(pointers, volatile=True, cache_modifier=".cv")
    return tl.load(pointers, cache_modifier=".ca")


@triton.jit
def recurrence(
    weights,  # [H, H]
    gates,  # [T, B, H]
    y,  # [T + 1, B, H] int16, -1 where nothing was stored yet
    T,
    B: tl.constexpr,
    H: tl.constexpr,
    SLICE: tl.constexpr,
    RELOAD: tl.constexpr,  # weights from memory in each step
    STALE: tl.constexpr,  # what was handed over is loaded again, through the L1 cache
    PAST_L1: tl.constexpr,
    INNER: tl.constexpr,  # gates in a loop of their own
):
    k = tl.arange(0, H)
    units = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    rows = tl.arange(0, B)[:, None]
    mine = weights + units[None, :] * H + k[:, None]
    weight = tl.load(mine)
    for t in range(T):
        pointers = y + (t * B + rows).to(tl.int64) * H + k[None, :]
        h = peek(pointers, PAST_L1)
        polls = 0
        while (tl.max(tl.ravel((h == -1).to(tl.int32)), axis=0) != 0) & (polls < 1000):
            h = peek(pointers, PAST_L1)
            polls += 1
        if STALE:
            h |= tl.load(pointers)
        if RELOAD:
            weight = tl.load(mine)
        x = tl.load(gates + (t * B + rows) * H + units[None, :])
        if INNER:
            for n in range(t):
                x += tl.load(gates + (n * B + rows) * H + units[None, :])
        new = tl.dot(h.to(tl.bfloat16, bitcast=True), weight) + x
        after = y + ((t + 1) * B + rows).to(tl.int64) * H + units[None, :]
        tl.store(after, new.to(tl.bfloat16).to(tl.int16, bitcast=True))


@triton.jit
def spilling(x, y, T, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    state = tl.load(x + at)
    slope = tl.load(x + SIZE + at)
    offset = tl.load(x + 2 * SIZE + at)
    for _ in range(T):
        state = state * slope + offset
    tl.store(y + at, state)


def _recurrence(name: str, **planted: bool) -> Specimen:
    pointers = {"weights": "*bf16", "gates": "*bf16", "y": "*i16"}
    flags = {"RELOAD": False, "STALE": False, "PAST_L1": True, "INNER": False}
    constants = {"B": B, "H": H, "SLICE": SLICE} | flags | planted
    return Specimen(
        name,
        recurrence,
        pointers | {"T": "i32"} | dict.fromkeys(constants, "constexpr"),
        constants,
        {"num_warps": 4, "num_stages": 1, "launch_cooperative_grid": True},
        step_bytes=B * SLICE * 2,
        hands_over=True,
    )


def _spilling(target: str) -> Specimen:
    """Half as many numbers again as a lane has registers."""
    size = 16384 if target == "gfx942" else 4096
    return Specimen(
        "spill",
        spilling,
        {"x": "*fp32", "y": "*fp32", "T": "i32", "SIZE": "constexpr"},
        {"SIZE": size},
        {"num_warps": 1},
        targets=(target,),
    )


TOYS = [
    _recurrence("right"),
    _recurrence("reload", RELOAD=True),
    _recurrence("stale", STALE=True),
    _recurrence("l1", PAST_L1=False),
    _recurrence("inner", INNER=True),
    *(_spilling(target) for target in TARGETS),
]


def report() -> list[dict[str, object]]:
    """One entry a toy and target."""
    rows = []
    for toy in TOYS:
        for target in toy.targets:
            found = resources(toy, target)
            entry = {"toy": toy.name, "target": target, "faults": faults(toy, target, found)}
            rows.append(asdict(found) | entry)
    return rows


if __name__ == "__main__":
    json.dump(report(), sys.stdout)
