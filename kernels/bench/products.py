"""The floor on a CPU: a layer's matrix products and nothing else, by torch's own."""

import torch
from torch import Tensor

from kernels.bench.job import Job
from kernels.bench.registry import Rival


def products(job: Job, name: str) -> Rival:
    """What nobody undercuts who calls torch's matrix products step by step, in float32.

    It gives no result. Of the valid frames alone, as of a PackedSequence. Forward: x W_ih of all
    frames and h W_hh of each. Backward: the gradients of x and of both weights, of all frames, and
    of h, of each. The two directions' products of a step are one call, which takes a thread each.
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
    layers = [  # W_hh of both directions
        torch.stack([w_hh for _, w_hh in pair])
        for pair in zip(weights[::2], weights[1::2], strict=True)
    ]

    def steps(left: Tensor, right: Tensor) -> None:
        lefts = left[: alive[0]].expand(2, -1, -1).contiguous()
        for count in alive:
            torch.bmm(lefts[:, :count], right)

    def forward() -> None:
        for x, (w_ih, _) in zip(inputs, weights, strict=True):
            x @ w_ih.T
        for w_hh in layers:
            steps(h, w_hh.transpose(1, 2).contiguous())

    def both() -> None:
        forward()
        for x, (w_ih, _) in zip(inputs, weights, strict=True):
            for left, right in ((gates, w_ih), (gates.T, x), (gates.T, h)):
                left @ right
        for w_hh in layers:
            steps(gates, w_hh)

    return Rival(name, {"forward": forward, "forward + backward": both})
