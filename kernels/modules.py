"""`LSTM`, `GRU` and `RNN`: torch.nn's modules with exact lengths and a choice of backend.

They are torch.nn's own classes with another `forward`: the same constructor, parameters,
initial values and state_dict.
"""

from typing import Any, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kernels.backends import available_backends
from kernels.choice import choose_backend
from kernels.functional import gru, lstm, rnn


class _Recurrent(nn.RNNBase):
    """What the three share: the `backend` argument and the options of a call."""

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choose_backend(backend, "cpu", available_backends())
        self.backend = backend

    def _options(self) -> dict[str, Any]:
        return {
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "training": self.training,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return super().extra_repr() + backend


class LSTM(_Recurrent, nn.LSTM):
    """`torch.nn.LSTM`, faster on unequal lengths; see `kernels.lstm`.

    Args:
        backend: see `kernels.choose_backend`; all others are those of `torch.nn.LSTM`.
    """

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


class GRU(_Recurrent, nn.GRU):
    """`torch.nn.GRU`, faster on unequal lengths; see `kernels.gru`.

    Args:
        backend: see `kernels.choose_backend`; all others are those of `torch.nn.GRU`.
    """

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


class RNN(_Recurrent, nn.RNN):
    """`torch.nn.RNN`, faster on unequal lengths; see `kernels.rnn`.

    Args:
        backend: see `kernels.choose_backend`; all others are those of `torch.nn.RNN`.
    """

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
