"""From the losses of a batch to the one that the caller asked for, and back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


@dataclass(frozen=True)
class Reducing:
    """torch's reductions: "mean" divides by target lengths and the size of the batch."""

    reduction: Reduction
    zero_infinity: bool
    divisors: Tensor | None  # [B], of each loss, for "mean"

    @classmethod
    def of(cls, reduction: Reduction, zero_infinity: bool, lengths: Tensor) -> "Reducing":
        """For targets of these lengths [B], which may change afterwards."""
        divisors = lengths.clamp(min=1) * lengths.shape[0] if reduction == "mean" else None
        return cls(reduction, zero_infinity, divisors)

    def reduce(self, losses: Tensor) -> Tensor:
        """Losses [B] as the caller wants them."""
        if self.zero_infinity:
            losses = losses.nan_to_num(nan=torch.nan, posinf=0.0)
        if self.divisors is not None:
            losses = losses / self.divisors
        return losses if self.reduction == "none" else losses.sum()

    def share(self, gradient: Tensor, losses: Tensor) -> Tensor:
        """The gradient of each finite one of losses [B], from that of what `reduce` gave."""
        return gradient.expand_as(losses) if self.divisors is None else gradient / self.divisors

    def weights(self, gradient: Tensor, losses: Tensor) -> Tensor:
        """What each utterance's gradient is multiplied by, [B].

        It is 0 for a loss of inf and NaN for one of NaN.
        """
        share = self.share(gradient, losses)
        finite = torch.where(losses.isnan(), torch.nan, share)
        return torch.where(losses == torch.inf, 0.0, finite)
