"""Recurrent layers and CTC for padded batches of unequal lengths; usable alone, see README.md."""

from kernels.choice import choose_backend
from kernels.convert import convert
from kernels.ctc import ctc_loss, linear_ctc_loss
from kernels.ctc.align import Alignment, ctc_align
from kernels.ctc.beam import Hypotheses, ctc_beam_search
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram
from kernels.functional import gru, lstm, rnn
from kernels.modules import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Alignment",
    "Hotwords",
    "Hypotheses",
    "NGram",
    "WordNGram",
    "choose_backend",
    "convert",
    "ctc_align",
    "ctc_beam_search",
    "ctc_loss",
    "gru",
    "linear_ctc_loss",
    "lstm",
    "rnn",
]
