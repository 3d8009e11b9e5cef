"""The ways torch.nn offers, three of them the baselines of every comparison on a GPU."""

import torch
from torch import Tensor, nn

from kernels.bench.job import Job
from kernels.bench.products import products
from kernels.bench.registry import Rival
from kernels.testing import float32_precision, packed_call


def torch_rivals(job: Job, device: torch.device) -> list[Rival]:
    """On a GPU three baselines and ATen without cuDNN; on a CPU the floor, packed and padded."""
    name = f"nn.{job.name}"
    if device.type == "cpu":
        return [
            products(job),
            packed(job, f"{name} packed", job.theirs),
            padded(job, torch.float32, "fp32"),
        ]
    rivals = [
        packed(job, f"{name} packed, bf16 autocast", job.theirs, torch.bfloat16),
        packed(job, f"{name} packed, fp32 (tf32)", job.theirs),
        padded(job, torch.float16, "fp16"),
        padded(job, torch.float16, "fp16", cudnn=False),
    ]
    if job.shape.layers == 1:  # a stack of one direction is not the same function
        rivals += [two_directions(job, streams=True), two_directions(job, streams=False)]
    return rivals


def packed(job: Job, name: str, module: nn.RNNBase, autocast: torch.dtype | None = None) -> Rival:
    """Baseline 1, what users run: exact on unequal lengths."""

    def forward(x: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            return [packed_call(module, x, None, job.lengths)[0]]

    return job.rival(name, [module], forward, lambda: float32_precision("tf32"))


def padded(job: Job, dtype: torch.dtype, label: str, cudnn: bool = True) -> Rival:
    """Baseline 2, the easy one: not exact, the reverse direction starts in the padding."""
    module = job.module(dtype)
    name = f"nn.{job.name} padded, {label}" + ("" if cudnn else ", no cuDNN")
    return job.rival(
        name + ", not exact",
        [module],
        lambda x: [module(x)[0]],
        lambda: torch.backends.cudnn.flags(enabled=cudnn),
    )


def two_directions(job: Job, streams: bool) -> Rival:
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

    how = "two streams" if streams else "back to back"
    return job.rival(f"2 x nn.{job.name} one direction, fp16, {how}, not exact", modules, forward)
