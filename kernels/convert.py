"""Bring an existing model to these layers."""

from typing import TypeVar

from torch import nn

from kernels.backends import available_backends
from kernels.choice import check_backend
from kernels.modules import GRU, LSTM, RNN

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}

Model = TypeVar("Model", bound=nn.Module)


def convert(module: Model, backend: str | None = None, recompute: bool = False) -> Model:
    """Make every torch.nn.LSTM, GRU and RNN in `module`, itself included, one of this package.

    In place: a layer stays the same object with the same parameters, hooks and names, only its
    class changes, so optimisers and tied layers keep working. Subclasses of torch.nn's layers
    are left alone, since they changed something that would be lost; so are layers with
    `torch.nn.utils.parametrize`, which makes subclasses: convert first.

    `recompute`: see `kernels.lstm`.

    Raises:
        ValueError: `backend` is none, see `kernels.choose_backend`.
    """
    check_backend(backend, available_backends())
    for layer in module.modules():
        ours = _OURS.get(type(layer))
        if ours is not None:
            layer.__class__ = ours
            layer.backend = backend  # type: ignore[assignment]
            layer.recompute = recompute  # type: ignore[assignment]
    return module
