"""What a recurrent layer of each kind is made of."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Cell = Literal["lstm", "cifg", "gru", "rnn_tanh", "rnn_relu"]

#: Blocks of H rows in weight_ih and weight_hh; their order is i f g o (LSTM), i g o (CIFG, the LSTM
#: with f = 1 - i), r z n (GRU).
GATES: dict[Cell, int] = {"lstm": 4, "cifg": 3, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

#: Those with a state c beside h.
LSTMS: tuple[Cell, ...] = ("lstm", "cifg")

#: (h,) or, for an LSTM, (h, c).
States = tuple[Tensor, ...]

#: Of the factors of a float32 product.
Precision = Literal["ieee", "tf32"]


class Weights(NamedTuple):
    """Parameters of one direction of one layer, in the order of `torch.nn.LSTM.all_weights`."""

    ih: Tensor  # [G*H, D]
    hh: Tensor  # [G*H, P], P = H without projection
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    hr: Tensor | None = None  # [P, H], LSTM only: h = W_hr (o * tanh(c))
    peephole: Tensor | None = (
        None  # [3H] of i f o, CIFG [2H] of i o: what c adds to their arguments
    )

    @property
    def present(self) -> list[Tensor]:
        """The tensors that are there, in ATen's order."""
        return [tensor for tensor in self if tensor is not None]

    def to(self, dtype: torch.dtype) -> "Weights":
        """The same weights in `dtype`."""
        fields = self._asdict().items()
        return self._replace(**{name: t.to(dtype) for name, t in fields if t is not None})


class Options(NamedTuple):
    """How a layer is computed; none of these changes what it computes."""

    recompute: bool  # triton: compute the gates again in the backward pass, rather than keep them
    precision: Precision | None  # triton: of float32 products; None: as torch's own


def op_name(cell: Cell) -> str:
    """The name that errors begin with: lstm, gru or rnn."""
    return "lstm" if cell in LSTMS else cell.split("_")[0]
