"""Every rule about arguments, and the one line that a caller reads who breaks it.

All of these raise ValueError: `lstm: weight_hh_l0 must be [4H, H] = [2048, 512], got [2048, 500]`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.cells import GATES, LSTMS, Cell, States, Weights
from kernels.precision import autocast_enabled

Lengths = Tensor | Sequence[int]


def _expect_shape(name: str, tensor: Tensor, symbols: str, expected: list[int]) -> None:
    if list(tensor.shape) != expected:
        raise ValueError(f"{name} must be {symbols} = {expected}, got {list(tensor.shape)}")


def _expect_tensors(name: str, values: object) -> None:
    if not isinstance(values, tuple | list):
        raise ValueError(f"{name} must be a tuple or list of tensors, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must hold tensors, got {type(value).__name__}")


def _expect_alike(op: str, x: Tensor, name: str, other: Tensor) -> None:
    if other.device != x.device:
        raise ValueError(
            f"{op}: {name} must be on the input's device {x.device}, got {other.device}"
        )
    autocast = autocast_enabled(x.device.type) and x.dtype != torch.float64
    if other.dtype != x.dtype and not autocast:
        raise ValueError(
            f"{op}: {name} must have the input's dtype {x.dtype}, got {other.dtype}; "
            "convert one of them, or use torch.autocast"
        )


def check_input(op: str, x: Tensor, dims: Sequence[int] = (2, 3)) -> None:
    """`x` is a floating-point tensor of 2 (one utterance) or 3 dimensions."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: input must be a Tensor or PackedSequence, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{op}: input must be floating point, got {x.dtype}; convert it")
    if x.dim() not in dims:
        wanted = " or ".join(f"{d}-D" for d in dims)
        raise ValueError(f"{op}: input must be {wanted}, got {x.dim()}-D {list(x.shape)}")


def check_frames(op: str, T: int) -> None:
    """There are frames; without, there is no output and no final state."""
    if T == 0:
        raise ValueError(f"{op}: input must have at least one frame, got T = 0")


def split_weights(
    op: str,
    cell: Cell,
    weights: Sequence[Sequence[Tensor]],
    peepholes: Sequence[Tensor] | None = None,
) -> list[Weights]:
    """The groups of `torch.nn.LSTM.all_weights` as `Weights`: 2 or 4 tensors, 3 or 5 with W_hr."""
    counts = (2, 3, 4, 5) if cell in LSTMS else (2, 4)
    if peepholes is not None:
        _expect_tensors(f"{op}: peepholes", peepholes)
        if len(peepholes) != len(weights):
            raise ValueError(
                f"{op}: peepholes must hold one tensor for each group of weights, "
                f"{len(weights)}, got {len(peepholes)}"
            )
    split = []
    for n, group in enumerate(weights):
        _expect_tensors(f"{op}: each group of weights", group)
        if len(group) not in counts:
            raise ValueError(
                f"{op}: each group of weights must have {' or '.join(map(str, counts))} tensors, "
                f"as in all_weights of torch.nn, got {len(group)}"
            )
        bias_ih, bias_hh = group[2:4] if len(group) > 3 else (None, None)
        hr = group[-1] if len(group) % 2 else None
        for matrix in group[:2] if hr is None else (*group[:2], hr):
            if matrix.dim() != 2:
                raise ValueError(f"{op}: weight matrices must be 2-D, got {list(matrix.shape)}")
        peephole = None if peepholes is None else peepholes[n]
        split.append(Weights(group[0], group[1], bias_ih, bias_hh, hr, peephole))
    return split


def check_weights(op: str, cell: Cell, x: Tensor, weights: list[Weights], directions: int) -> None:
    """Shapes, dtype and device of the weights of every layer and direction."""
    if not weights or len(weights) % directions:
        wanted = "two groups a layer (bidirectional)" if directions == 2 else "one group a layer"
        raise ValueError(f"{op}: weights must hold {wanted}, got {len(weights)} groups")
    G, first = GATES[cell], weights[0]
    H = first.ih.shape[0] // G
    P = H if first.hr is None else first.hr.shape[0]
    rows = "H" if G == 1 else f"{G}H"
    if x.shape[-1] != first.ih.shape[1]:
        raise ValueError(
            f"{op}: input must have D = {first.ih.shape[1]} features, as weight_ih_l0 has columns, "
            f"got {x.shape[-1]}"
        )
    for n, w in enumerate(weights):
        suffix = f"_l{n // directions}{'_reverse' if n % directions else ''}"
        D = x.shape[-1] if n < directions else directions * P
        shapes = {
            "ih": (f"[{rows}, D]", [G * H, D]),
            "hh": (f"[{rows}, {'H' if first.hr is None else 'P'}]", [G * H, P]),
            "bias_ih": (f"[{rows}]", [G * H]),
            "bias_hh": (f"[{rows}]", [G * H]),
            "hr": ("[P, H]", [P, H]),
            "peephole": (f"[{G - 1}H]", [(G - 1) * H]),
        }
        for field, (symbols, shape) in shapes.items():
            name = f"{field if 'bias' in field else f'weight_{field}'}{suffix}"
            tensor = getattr(w, field)
            if (tensor is None) != (getattr(first, field) is None):
                raise ValueError(f"{op}: {name} must be there in all layers or in none")
            if tensor is not None:
                _expect_shape(f"{op}: {name}", tensor, symbols, shape)
                _expect_alike(op, x, name, tensor)


def check_states(op: str, x: Tensor, states: States, shapes: Mapping[str, list[int]]) -> None:
    """Initial states, by name and shape."""
    _expect_tensors(f"{op}: hx", states)
    if len(states) != len(shapes):
        raise ValueError(f"{op}: hx must be ({', '.join(shapes)}), got {len(states)} tensors")
    for (name, shape), state in zip(shapes.items(), states, strict=True):
        batch = "B, " if len(shape) == 3 else ""
        _expect_shape(f"{op}: {name}", state, f"[layers * directions, {batch}size]", shape)
        _expect_alike(op, x, name, state)


def tensor_of(name: str, lengths: Lengths) -> Tensor:
    """Lengths as they are or, given as a sequence, in a tensor on the CPU, where they are known."""
    if isinstance(lengths, Tensor):
        return lengths
    try:
        tensor = torch.tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a tensor of integers, got {lengths!r}") from None
    return tensor if tensor.numel() else tensor.long()


def expect_integers(name: str, tensor: Tensor) -> None:
    """Of any width, but no booleans."""
    got: object = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
    if (
        not isinstance(got, torch.dtype)
        or got.is_floating_point
        or got.is_complex
        or got == torch.bool
    ):
        raise ValueError(f"{name} must be a tensor of integers, got {got}")


def lengths_of(op: str, lengths: Lengths, T: int, B: int, least: int = 1) -> Tensor:
    """[B] int64, each from `least` to T.

    Values on a GPU are not looked at, which would wait for it, see `Stack`; nor while compiling.
    """
    lengths = tensor_of(f"{op}: lengths", lengths)
    expect_integers(f"{op}: lengths", lengths)
    _expect_shape(f"{op}: lengths", lengths, "[B]", [B])
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        for n, length in enumerate(lengths.tolist()):
            if not least <= length <= T:
                raise ValueError(
                    f"{op}: lengths must be from {least} to T = {T}, got lengths[{n}] = {length}"
                )
    return lengths.long()


def check_dropout(op: str, name: str, dropout: float) -> None:
    """A probability."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"{op}: {name} must be from 0 to 1, got {dropout}")


def check_precision(op: str, precision: object) -> None:
    """Of float32 products."""
    if precision not in (None, "ieee", "tf32"):
        raise ValueError(f"{op}: precision must be None, 'ieee' or 'tf32', got {precision!r}")
