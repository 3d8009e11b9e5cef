"""Connectionist temporal classification, usable alone.

A loss has three steps, the same in each backend (`loss_torch`, `loss_triton`). `emissions` reduces
[T, B, V] logits to log-probabilities of the few symbols that an utterance needs, `occupy` runs
the recursions over these, and `gradient` comes back to [T, B, V]. Only the first and the last
see logits, and both work on any chunk of frames: that is all `linear_ctc_loss` needs.
"""

from kernels.ctc.linear import linear_ctc_loss
from kernels.ctc.loss import ctc_loss

__all__ = ["ctc_loss", "linear_ctc_loss"]
