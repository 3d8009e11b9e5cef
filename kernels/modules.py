"""`LSTM`, `GRU` and `RNN`: torch.nn's modules with exact lengths and a choice of backend.

They have torch.nn's constructors, parameters, initial values and state_dict, all from its base
class, but are no subclasses of nn.LSTM and so on: torch.compile breaks its graph at those.
"""

from typing import Any, Literal, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kernels.backends import available_backends
from kernels.choice import check_backend
from kernels.functional import gru, lstm, rnn


class _Recurrent(nn.RNNBase):
    """What the three share: the arguments of ours and the options of a call."""

    def __init__(
        self,
        mode: str,  # torch's name of the cell
        *args: Any,
        backend: str | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        if mode != "LSTM" and "proj_size" in kwargs:
            raise ValueError(f"proj_size must be left out for {mode}: only an LSTM has projections")
        super().__init__(mode, *args, **kwargs)
        check_backend(backend, available_backends())
        self.backend = backend
        self.recompute = recompute

    def _options(self) -> dict[str, Any]:
        return {
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "training": self.training,
            "backend": self.backend,
            "recompute": self.recompute,
        }

    def extra_repr(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return super().extra_repr() + backend


class LSTM(_Recurrent):
    """`torch.nn.LSTM`, faster on unequal lengths; see `kernels.lstm`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute: see `kernels.lstm`. All others are those of `torch.nn.LSTM`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    @overload
    def forward(
        self,
        x: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, x: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """As `torch.nn.LSTM`; `lengths` [B] int64 are the valid frames of a padded `x`."""
        return lstm(x, self.all_weights, hx, lengths, **self._options())


class GRU(_Recurrent):
    """`torch.nn.GRU`, faster on unequal lengths; see `kernels.gru`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute: see `kernels.lstm`. All others are those of `torch.nn.GRU`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("GRU", *args, **kwargs)

    @overload
    def forward(
        self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, x: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """As `torch.nn.GRU`; `lengths` [B] int64 are the valid frames of a padded `x`."""
        return gru(x, self.all_weights, hx, lengths, **self._options())


class RNN(_Recurrent):
    """`torch.nn.RNN`, faster on unequal lengths; see `kernels.rnn`.

    Args:
        backend: see `kernels.choose_backend`.
        recompute: see `kernels.lstm`. All others are those of `torch.nn.RNN`.
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
        self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, x: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """As `torch.nn.RNN`; `lengths` [B] int64 are the valid frames of a padded `x`."""
        options = self._options()
        return rnn(x, self.all_weights, hx, lengths, nonlinearity=self.nonlinearity, **options)
