"""Layers on layers: what all backends share above a single layer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import checks
from kernels.backends import available_backends, load_backend
from kernels.cells import GATES, Cell, States, Weights
from kernels.choice import choose_backend


@dataclass(frozen=True)
class Stack:
    """Recurrent layers with their weights, ready to run over padded batches."""

    cell: Cell
    weights: list[Weights]  # layers * directions, the forward direction of a layer first
    directions: int
    dropout: float  # between layers; 0 outside training
    backend: str | None

    @property
    def op(self) -> str:
        """The name errors begin with: lstm, gru or rnn."""
        return self.cell.split("_")[0]

    def __call__(
        self,
        x: Tensor,  # [T, B, D]
        hx: States | None,  # each [layers * directions, B, size]
        lengths: Tensor | None,  # [B] int64
    ) -> tuple[Tensor, States]:
        """Outputs of the last layer [T, B, directions * P] and the final states of all.

        Raises:
            ValueError: see `kernels.checks`.
        """
        T, B, _ = x.shape
        checks.check_frames(self.op, x)
        checks.check_weights(self.op, self.cell, x, self.weights, self.directions)
        states = self._initial_states(x, hx)
        if lengths is not None:
            lengths = self._unequal_lengths(lengths, T, B, x.device)
        if lengths is not None:
            past = torch.arange(T, device=x.device).unsqueeze(-1) >= lengths
            x = x.masked_fill(past.unsqueeze(-1), 0)  # 0 * NaN would be NaN

        layer = load_backend(choose_backend(self.backend, x.device.type, available_backends()))
        finals: list[States] = []
        for first in range(0, len(self.weights), self.directions):
            part = slice(first, first + self.directions)
            if first and self.dropout:
                x = F.dropout(x, self.dropout)
            initial = tuple(state[part] for state in states)
            x, final = layer(self.cell, x, initial, self.weights[part], lengths)
            finals.append(final)
        return x, tuple(torch.cat(state) for state in zip(*finals, strict=True))

    def _initial_states(self, x: Tensor, hx: States | None) -> States:
        first, rows, B = self.weights[0], len(self.weights), x.shape[1]
        H = first.ih.shape[0] // GATES[self.cell]
        P = H if first.hr is None else first.hr.shape[0]
        shapes = {"h_0": [rows, B, P], "c_0": [rows, B, H]}
        if self.cell != "lstm":
            del shapes["c_0"]
        if hx is None:
            return tuple(x.new_zeros(shape) for shape in shapes.values())
        checks.check_states(self.op, x, hx, shapes)
        return hx

    def _unequal_lengths(
        self, lengths: Tensor, T: int, B: int, device: torch.device
    ) -> Tensor | None:
        """Checked lengths on `device`; None where all are T."""
        values = checks.check_lengths(self.op, lengths, T, B)
        return None if min(values, default=T) == T else lengths.to(device)
