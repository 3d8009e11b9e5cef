"""What the backends of the CTC losses have in common."""

import importlib
from typing import Any, Protocol, cast

from torch import Tensor

from kernels.ctc.checks import Labels


class Steps(Protocol):
    """The three steps of a backend; see the package's docstring."""

    def alphabet(self, labels: Labels, T: int, V: int) -> Any:
        """The symbols each utterance needs, in the backend's own form."""

    def emissions(self, logits: Tensor, alphabet: Any, first: int = 0) -> Tensor:
        """[T, B, K] from logits [T, B, V] that begin with frame `first`."""

    def occupy(
        self, emissions: Tensor, alphabet: Any, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Losses [B] and, for the backward pass, residuals [T, B, K]."""

    def gradient(
        self, logits: Tensor, residual: Tensor, alphabet: Any, weights: Tensor, first: int = 0
    ) -> Tensor:
        """Gradient for logits that begin with frame `first`, of losses weighted by [B]."""


def steps_of(backend: str) -> Steps:
    """The steps of `backend`, imported when first asked for."""
    return cast(Steps, importlib.import_module(f"kernels.ctc.loss_{backend}"))
