"""What a recurrent layer of each kind is made of."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]

#: Blocks of H rows in weight_ih and weight_hh; their order is i f g o (LSTM), r z n (GRU).
GATES: dict[Cell, int] = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

#: (h,) or, for an LSTM, (h, c).
States = tuple[Tensor, ...]


class Weights(NamedTuple):
    """Parameters of one direction of one layer, in the order of `torch.nn.LSTM.all_weights`."""

    ih: Tensor  # [G*H, D]
    hh: Tensor  # [G*H, P], P = H without projection
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    hr: Tensor | None = None  # [P, H], LSTM only: h = W_hr (o * tanh(c))

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
