"""Recurrent layers for padded batches of unequal lengths; usable alone, see README.md."""

from kernels.choice import choose_backend
from kernels.convert import convert
from kernels.ctc.align import Alignment, ctc_align
from kernels.functional import gru, lstm, rnn
from kernels.modules import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Alignment",
    "choose_backend",
    "convert",
    "ctc_align",
    "gru",
    "lstm",
    "rnn",
]
