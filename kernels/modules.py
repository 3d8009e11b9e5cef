"""`LSTM`, `GRU` and `RNN`: torch.nn's modules with exact lengths and a choice of backend.

They have torch.nn's constructors, parameters, initial values and state_dict, all from its base
class, but are no subclasses of nn.LSTM and so on: torch.compile breaks its graph at those.
"""

from typing import Any, Literal, overload

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kernels.backends import available_backends
from kernels.cells import Precision
from kernels.checks import Lengths, check_dropout, check_precision
from kernels.choice import check_backend
from kernels.functional import gru, lstm, rnn

# To torch.fx each is one step: it cannot look inside. Training or not stays as it was traced.
for _function in ("lstm", "gru", "rnn"):
    torch.fx.wrap(_function)


class _Recurrent(nn.RNNBase):
    """What the three share: the arguments of ours and the options of a call."""

    backend: str | None = None
    recompute = False
    precision: Precision | None = None
    recurrent_dropout = 0.0

    def __init__(
        self,
        mode: str,  # torch's name of the cell
        *args: Any,
        backend: str | None = None,
        recompute: bool = False,
        precision: Precision | None = None,
        recurrent_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if mode != "LSTM" and "proj_size" in kwargs:
            raise ValueError(f"proj_size must be left out for {mode}: only an LSTM has projections")
        super().__init__(mode, *args, **kwargs)
        check_backend(backend, available_backends())
        check_precision(mode, precision)
        check_dropout(mode, "recurrent_dropout", recurrent_dropout)
        self.backend = backend
        self.recompute = recompute
        self.precision = precision
        self.recurrent_dropout = recurrent_dropout

    def _options(self) -> dict[str, Any]:
        return {
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "training": self.training,
            "backend": self.backend,
            "recompute": self.recompute,
            "precision": self.precision,
            "recurrent_dropout": self.recurrent_dropout,
        }

    def extra_repr(self) -> str:
        ours = {
            name: getattr(self, name)
            for name in _OURS
            if getattr(self, name, False) not in (None, False, 0.0)
        }
        return ", ".join([super().extra_repr(), *(f"{k}={v!r}" for k, v in ours.items())])


#: Arguments of the modules that torch.nn's lack.
_OURS = ("backend", "recompute", "precision", "recurrent_dropout", "cifg", "peephole")


class LSTM(_Recurrent):
    """`torch.nn.LSTM`, faster on unequal lengths, and its variants; see `kernels.lstm`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute, precision, recurrent_dropout: see `kernels.lstm`.
        cifg: f = 1 - i; weights and biases have the rows of i g o alone, [3H, ...].
        peephole: parameters `weight_peephole_l0` and so on, [3H] of i f o, with `cifg` [2H] of i o.
            All others are those of `torch.nn.LSTM`.
    """

    cifg = False
    peephole = False
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self, *args: Any, cifg: bool = False, peephole: bool = False, **kwargs: Any
    ) -> None:
        super().__init__("LSTM", *args, **kwargs)
        if self.recurrent_dropout and self.proj_size:
            raise ValueError("LSTM: recurrent_dropout must be 0 with proj_size")
        self.cifg = cifg
        self.peephole = peephole
        H = self.hidden_size
        if cifg:
            for name, parameter in list(self.named_parameters()):
                if not name.startswith("weight_hr"):
                    setattr(self, name, nn.Parameter(parameter.detach()[: 3 * H].clone()))
        if peephole:
            for name, parameter in list(self.named_parameters()):
                if name.startswith("weight_hh"):
                    vector = nn.Parameter(parameter.new_empty((2 if cifg else 3) * H))
                    nn.init.uniform_(vector, -(H**-0.5), H**-0.5)
                    setattr(self, name.replace("hh", "peephole"), vector)

    def flatten_parameters(self) -> None:
        """For cuDNN, which knows no CIFG."""
        if not self.cifg:
            super().flatten_parameters()

    def _peepholes(self) -> list[Tensor] | None:
        if not self.peephole:
            return None
        names = [names[1].replace("hh", "peephole") for names in self._all_weights]
        return [getattr(self, name) for name in names]

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """As `torch.nn.LSTM`; `lengths` [B] are the valid frames of a padded `input`."""
        options = self._options()
        return lstm(
            input,
            self.all_weights,
            hx,
            lengths,
            cifg=self.cifg,
            peepholes=self._peepholes(),
            **options,
        )


class GRU(_Recurrent):
    """`torch.nn.GRU`, faster on unequal lengths; see `kernels.gru`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute, precision, recurrent_dropout: see `kernels.lstm`. All others are those of
            `torch.nn.GRU`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("GRU", *args, **kwargs)

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """As `torch.nn.GRU`; `lengths` [B] are the valid frames of a padded `input`."""
        return gru(input, self.all_weights, hx, lengths, **self._options())


class RNN(_Recurrent):
    """`torch.nn.RNN`, faster on unequal lengths; see `kernels.rnn`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute, precision, recurrent_dropout: see `kernels.lstm`. All others are those of
            `torch.nn.RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        super().__init__(mode, input_size, hidden_size, num_layers, *args, **kwargs)

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """As `torch.nn.RNN`; `lengths` [B] are the valid frames of a padded `input`."""
        options = self._options()
        return rnn(input, self.all_weights, hx, lengths, nonlinearity=self.nonlinearity, **options)
