"""The floor on a CPU: a layer's matrix products and nothing else, by torch's own."""

import torch
from torch import Tensor

from kernels.bench.job import Job
from kernels.bench.registry import Rival


def products(job: Job) -> Rival:
    """What nobody undercuts who calls torch's matrix products step by step, in float32.

    It gives no result. Of the valid frames alone, as of a PackedSequence. Forward: x W_ih of all
    frames and h W_hh of each. Backward: the gradients of x and of both weights, of all frames, and
    of h, of each.
    """
    alive = [int((job.lengths > t).sum()) for t in range(job.shape.frames)]  # utterances, by step
    rows = sum(alive)
    weights = [
        (w_ih.detach(), w_hh.detach())  # [G, D], [G, H]; G gates
        for names in job.theirs._all_weights
        for w_ih, w_hh in [[getattr(job.theirs, name) for name in names[:2]]]
    ]
    h = torch.randn(rows, job.shape.hidden)
    gates = torch.randn(rows, len(weights[0][0]))
    inputs = [torch.randn(rows, w_ih.shape[1]) for w_ih, _ in weights]

    def steps(left: Tensor, right: Tensor) -> None:
        for count in alive:
            left[:count] @ right

    def forward() -> None:
        for x, (w_ih, w_hh) in zip(inputs, weights, strict=True):
            x @ w_ih.T
            steps(h, w_hh.T)

    def both() -> None:
        forward()
        for x, (w_ih, w_hh) in zip(inputs, weights, strict=True):
            for left, right in ((gates, w_ih), (gates.T, x), (gates.T, h)):
                left @ right
            steps(gates, w_hh)

    return Rival("matrix products alone, fp32", {"forward": forward, "forward + backward": both})
