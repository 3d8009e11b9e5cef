"""The implementations of a recurrent layer, one module or package each.

A backend is a module of this package with a function `layer` of type `Layer`, `load_backend`
has the list.
"""

import os
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from kernels.cells import Cell, Options, States, Weights
from kernels.choice import BACKENDS


class Layer(Protocol):
    """One layer, one or both directions, over a padded batch. Arguments are already checked."""

    def __call__(
        self,
        cell: Cell,
        x: Tensor,  # [T, B, D]
        states: States,  # initial h [N, B, P] and, for an LSTM, c [N, B, H]; N directions
        weights: list[Weights],  # one a direction, the second runs backwards in time
        lengths: Tensor | None,  # [B] int64 on x's device; None: all are T
        mask: Tensor | None,  # [N, B, P] recurrent dropout: W_hh sees mask * h
        options: Options,
    ) -> tuple[Tensor, States]:
        """Outputs [T, B, N*P], zero past each end, and the states at each end, like `states`.

        The reverse direction of an utterance starts at its own last frame. What `x` holds past
        an end is finite, and changes nothing.
        """


_AVAILABLE = tuple(name for name in BACKENDS if name != "triton" or find_spec("triton"))


def available_backends() -> tuple[str, ...]:
    """Names of the backends that are part of this installation."""
    return _AVAILABLE


def triton_is_interpreted() -> bool:
    """Whether Triton, once imported, runs on the CPU; see `kernels.choose_backend`."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def load_backend(name: str) -> Layer:
    """The `layer` function of backend `name`, imported when first asked for.

    Written out, since torch.compile follows import statements only.
    """
    if name == "triton":
        from kernels.backends.triton import layer
    elif name == "torch":
        from kernels.backends.torch import layer
    else:
        from kernels.backends.reference import layer
    return layer
