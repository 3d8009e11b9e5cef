"""LSTM and GRU, both directions, against the ways torch.nn offers for utterances of T/2 to T."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import kernels
from kernels.bench.registry import Rival, Shape, benchmark
from kernels.testing import assert_as_accurate, errors, packed_call


@benchmark("lstm")
def lstm(shape: Shape, device: torch.device) -> list[Rival]:
    """`kernels.LSTM` against `torch.nn.LSTM`."""
    return _rivals(nn.LSTM, kernels.LSTM, shape, device)


@benchmark("gru")
def gru(shape: Shape, device: torch.device) -> list[Rival]:
    """`kernels.GRU` against `torch.nn.GRU`."""
    return _rivals(nn.GRU, kernels.GRU, shape, device)


def _rivals(
    torch_class: type[nn.Module], our_class: type[nn.Module], shape: Shape, device: torch.device
) -> list[Rival]:
    torch.manual_seed(0)
    sizes = {"num_layers": shape.layers, "bidirectional": True, "device": device}
    theirs = torch_class(shape.input, shape.hidden, **sizes)
    ours = our_class(shape.input, shape.hidden, **sizes)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape.frames, shape.batch, shape.input, device=device)
    shortest = (shape.frames + 1) // 2
    lengths = torch.linspace(shape.frames, shortest, shape.batch).round().long()  # [B]
    name = f"nn.{torch_class.__name__}"

    _assert_right(theirs, ours, x, lengths)
    return [
        _rival(f"{name} packed", theirs, x, lambda x: packed_call(theirs, x, None, lengths)[0]),
        _rival(f"{name} padded, not exact", theirs, x, lambda x: theirs(x)[0]),
        _rival(f"kernels.{our_class.__name__}", ours, x, lambda x: ours(x, None, lengths)[0]),
    ]


def _rival(name: str, module: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Rival:
    leaf = x.clone().requires_grad_()
    inputs = [leaf, *module.parameters()]
    cotangent = torch.randn_like(forward(x))

    def infer() -> object:
        with torch.inference_mode():
            return forward(x)

    def train() -> object:
        return torch.autograd.grad(forward(leaf), inputs, cotangent)

    return Rival(name, {"forward + backward": train, "inference": infer})


def _assert_right(theirs: nn.Module, ours: nn.Module, x: Tensor, lengths: Tensor) -> None:
    """A wrong result has no speed."""
    with torch.inference_mode():
        got = {"y": ours(x, None, lengths)[0]}
        rival = {"y": packed_call(theirs, x, None, lengths)[0]}
        theirs.double()
        exact = {"y": packed_call(theirs, x.double(), None, lengths)[0]}
    theirs.float()
    assert_as_accurate(got, exact, errors(rival, exact))
