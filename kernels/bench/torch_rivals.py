"""The ways torch.nn offers, three of them the baselines of every comparison on a GPU."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kernels.bench.job import Job
from kernels.bench.products import products
from kernels.bench.registry import Rival, entrant
from kernels.testing import float32_precision, packed_call


def torch_rivals(job: Job, device: torch.device) -> list[Rival]:
    """On a GPU three baselines and ATen without cuDNN; on a CPU the floor, packed and padded."""
    theirs = f"nn.{job.name}"
    if device.type == "cpu":
        ways: dict[str, Callable[[str], Rival]] = {
            "matrix products alone, fp32": partial(products, job),
            f"{theirs} packed": partial(packed, job),
            f"{theirs} padded, fp32, not exact": partial(padded, job, torch.float32),
        }
    else:
        half = torch.float16
        ways = {
            f"{theirs} packed, bf16 autocast": partial(packed, job, autocast=torch.bfloat16),
            f"{theirs} packed, fp32 (tf32)": partial(packed, job),
            f"{theirs} padded, fp16, not exact": partial(padded, job, half),
            f"{theirs} padded, fp16, no cuDNN, not exact": partial(padded, job, half, cudnn=False),
        }
        if job.shape.layers == 1:  # a stack of one direction is not the same function
            one = f"2 x {theirs} one direction, fp16"
            ways |= {
                f"{one}, two streams, not exact": partial(two_directions, job, streams=True),
                f"{one}, back to back, not exact": partial(two_directions, job, streams=False),
            }
    return [entrant(name, make) for name, make in ways.items()]


def packed(job: Job, name: str, autocast: torch.dtype | None = None) -> Rival:
    """Baseline 1, what users run: exact on unequal lengths.

    The lengths fall, and torch may rely on that: sorting them, it would wait for the GPU. Under
    autocast cuDNN's layers compute in float16, whichever dtype autocast has (AutocastRNN.cpp).
    """
    module = job.theirs

    def forward(x: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            return [packed_call(module, x, None, job.lengths, enforce_sorted=True)[0]]

    return job.rival(name, [module], forward, lambda: float32_precision("tf32"))


def padded(job: Job, dtype: torch.dtype, name: str, cudnn: bool = True) -> Rival:
    """Baseline 2, the easy one: not exact, the reverse direction starts in the padding."""
    module = job.module(dtype)
    return job.rival(
        name,
        [module],
        lambda x: [module(x)[0]],
        lambda: torch.backends.cudnn.flags(enabled=cudnn),
    )


def two_directions(job: Job, name: str, streams: bool) -> Rival:
    """Baseline 3, the hard one: a module a direction, which is what cuDNN is fastest at.

    Not exact. Flips and concatenation, without which it is no bidirectional layer, are left out.
    """
    sizes = (job.shape.input, job.shape.hidden)
    cls: type[nn.Module] = getattr(nn, job.name)
    modules = [cls(*sizes, dtype=torch.float16, device=job.inputs[0].device) for _ in range(2)]
    side = torch.cuda.Stream() if streams else None

    def forward(x: Tensor) -> list[Tensor]:
        if side is None:
            return [module(x)[0] for module in modules]
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            reverse = modules[1](x)[0]
        y = modules[0](x)[0]
        current.wait_stream(side)
        return [y, reverse]

    return job.rival(name, modules, forward)
