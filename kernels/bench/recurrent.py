"""LSTM, GRU and RNN, both directions, against torch.nn and whoever else is installed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import kernels
from kernels.bench.job import Job
from kernels.bench.outside_rivals import outside_rivals
from kernels.bench.registry import Rival, Shape, benchmark, fault
from kernels.bench.torch_rivals import torch_rivals
from kernels.testing import TF32_EPS, assert_matches_torch, float32_precision

#: Microseconds a step on a GPU of today: the hand-over of h, or of its gates' gradients, through
#: the L2 cache, and a chain of matrix instructions. A model, not a measurement.
FLOOR_US = {
    "forward": 1.0,
    "forward + backward": 2.5,
    "recurrence forward": 1.0,
    "recurrence backward": 1.5,
}

#: Of each utterance's frames, that are compared with float64. No kernel is compiled for a T, and a
#: grid has no time for float64 over 1600 frames; long utterances have tests of their own.
CHECKED_FRAMES = 200

#: What is timed of the triton backend without its GEMMs: heading -> pass, kernel.
KERNELS = {
    "recurrence forward": ("forward", "forward_kernel"),
    "recurrence backward": ("forward + backward", "backward_kernel"),
}


@dataclass(frozen=True)
class Precision:
    """What ours computes in."""

    name: str
    dtype: torch.dtype  # of weights and input
    autocast: torch.dtype | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    eps: float | None = None  # where it is not the dtype's
    kernels: dict[str, tuple[str, str]] = field(default_factory=dict)  # timed alone


def precisions(device: torch.device) -> list[Precision]:
    """The last is the one that the rivals are compared with."""
    fp32 = Precision("fp32", torch.float32)
    if device.type == "cpu":
        in_hardware = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return [Precision("bf16", torch.bfloat16), fp32] if in_hardware else [fp32]
    f = torch.float32
    return [
        Precision("fp32 (ieee)", f, around=lambda: float32_precision("ieee")),
        Precision("fp32 (tf32)", f, around=lambda: float32_precision("tf32"), eps=TF32_EPS),
        Precision("fp16", torch.float16),
        Precision("bf16 autocast", f, autocast=torch.bfloat16),
        Precision("bf16", torch.bfloat16, kernels=KERNELS),
    ]


@benchmark("lstm", floor_us=FLOOR_US)
def lstm(shape: Shape, device: torch.device) -> list[Rival]:
    """`kernels.LSTM` against `torch.nn.LSTM`."""
    return _rivals("LSTM", shape, device)


@benchmark("gru", floor_us=FLOOR_US)
def gru(shape: Shape, device: torch.device) -> list[Rival]:
    """`kernels.GRU` against `torch.nn.GRU`."""
    return _rivals("GRU", shape, device)


@benchmark("rnn", floor_us=FLOOR_US)
def rnn(shape: Shape, device: torch.device) -> list[Rival]:
    """`kernels.RNN` against `torch.nn.RNN`."""
    return _rivals("RNN", shape, device)


def _rivals(name: str, shape: Shape, device: torch.device) -> list[Rival]:
    job = Job.of(name, shape, device)
    entrants = [ours(job, device, precision) for precision in precisions(device)]
    return [*torch_rivals(job, device), *outside_rivals(job, device), *entrants]


def ours(job: Job, device: torch.device, precision: Precision) -> Rival:
    """This package's module; with what is wrong with it instead of its passes, if anything is."""
    name = f"kernels.{job.name} {precision.name}"
    theirs = job.module(precision.dtype)
    sizes = (job.shape.input, job.shape.hidden, job.shape.layers)
    backend = "triton" if device.type == "cuda" else "torch"  # and no other, unnoticed
    module: nn.RNNBase = getattr(kernels, job.name)(
        *sizes, bidirectional=True, backend=backend, device=device, dtype=precision.dtype
    )
    module.load_state_dict(theirs.state_dict())
    lengths = job.lengths.to(device)

    def forward(x: Tensor) -> list[Tensor]:
        enabled = precision.autocast is not None
        with torch.autocast(device.type, precision.autocast, enabled=enabled):
            return [module(x, None, lengths)[0]]

    T = min(job.shape.frames, CHECKED_FRAMES)
    x = job.inputs[0][:T].to(precision.dtype)
    ends = (job.lengths * T // job.shape.frames).clamp(min=1)

    def check() -> None:
        with precision.around():
            eps, autocast = precision.eps, precision.autocast
            assert_matches_torch(module, theirs, x, ends, eps=eps, autocast=autocast)

    if wrong := fault(check):
        return Rival(name, {}, wrong=wrong)
    return job.rival(name, [module], forward, precision.around, precision.kernels)
