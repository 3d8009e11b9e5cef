"""What all rivals of a recurrent layer work on, and how a way of doing it becomes a rival."""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.bench.registry import Rival, Shape

#: What one set of inputs shares with the others: together they are larger than the L2 cache of
#: any card of today, in 16 bits, too, so that no run finds its input there; of small inputs there
#: are eight, between whose turns those of the other rivals are read.
SETS_BYTES = 2**27
MOST_SETS = 8

Forward = Callable[[Tensor], Sequence[Tensor]]  # x [T, B, D] -> all outputs


@dataclass(frozen=True)
class Job:
    """One torch.nn module, inputs and lengths: spread evenly from T down to T/2."""

    name: str  # "LSTM", "GRU" or "RNN"
    shape: Shape
    theirs: nn.RNNBase  # float32, both directions
    inputs: list[Tensor]  # of [T, B, D], float32
    lengths: Tensor  # [B] int64, on the CPU

    @classmethod
    def of(cls, name: str, shape: Shape, device: torch.device) -> "Job":
        """Weights and inputs are random, the same for every call."""
        torch.manual_seed(0)
        theirs: nn.RNNBase = getattr(nn, name)(
            shape.input, shape.hidden, shape.layers, bidirectional=True, device=device
        )
        size = (shape.frames, shape.batch, shape.input)
        sets = max(1, min(MOST_SETS, SETS_BYTES // (2 * size[0] * size[1] * size[2])))
        inputs = [torch.randn(size, device=device) for _ in range(sets)]
        shortest = (shape.frames + 1) // 2
        lengths = torch.linspace(shape.frames, shortest, shape.batch).round().long()
        return cls(name, shape, theirs, inputs, lengths)

    def module(self, dtype: torch.dtype) -> nn.RNNBase:
        """torch.nn's, in `dtype`."""
        module = copy.deepcopy(self.theirs).to(dtype)
        module.flatten_parameters()
        return module

    def rival(
        self,
        name: str,
        modules: Sequence[nn.Module],
        forward: Forward,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        kernels: dict[str, tuple[str, str]] | None = None,
    ) -> Rival:
        """`forward` in inference mode, and with the gradients of x and all parameters.

        `around` is entered for both passes. Runs take the next set of inputs each.
        """
        parameters = [parameter for module in modules for parameter in module.parameters()]
        dtype = parameters[0].dtype
        leaves = [x.detach().to(dtype).requires_grad_() for x in self.inputs]
        turn = itertools.cycle(leaves)
        with around():
            cotangents = [torch.randn_like(y) for y in forward(leaves[0])]

        def mode(training: bool) -> None:  # by which cuDNN knows what to keep
            for module in modules:
                module.train(training)

        def infer() -> object:
            mode(training=False)
            with around(), torch.inference_mode():
                return forward(next(turn))

        def train() -> object:
            mode(training=True)
            with around():
                leaf = next(turn)
                return torch.autograd.grad(forward(leaf), [leaf, *parameters], cotangents)

        return Rival(name, {"forward": infer, "forward + backward": train}, kernels or {})
