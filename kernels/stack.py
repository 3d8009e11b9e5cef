"""Layers on layers: what all backends share above a single layer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import available_backends, load_backend, triton_is_interpreted
from kernels.cells import GATES, LSTMS, Cell, Options, States, Weights, op_name
from kernels.choice import choose_backend
from kernels.context import moved
from kernels.precision import compute_dtype, without_autocast


@dataclass(frozen=True)
class Stack:
    """Recurrent layers with their weights, ready to run over padded batches."""

    cell: Cell
    weights: list[Weights]  # layers * directions, the forward direction of a layer first
    directions: int
    dropout: float  # between layers; 0 outside training
    recurrent_dropout: float  # of h on its way into W_hh; 0 outside training
    backend: str | None
    options: Options

    @property
    def op(self) -> str:
        """See `op_name`."""
        return op_name(self.cell)

    @property
    def hidden_size(self) -> int:
        """H, the size of c and of the gates."""
        return self.weights[0].ih.shape[0] // GATES[self.cell]

    @property
    def output_size(self) -> int:
        """P, the size of h: H unless projected."""
        projection = self.weights[0].hr
        return self.hidden_size if projection is None else projection.shape[0]

    def state_shapes(self, *batch: int) -> dict[str, list[int]]:
        """Shapes of the initial and final states; no `batch` for one utterance without one."""
        shapes = {"h_0": [len(self.weights), *batch, self.output_size]}
        if self.cell in LSTMS:
            shapes["c_0"] = [len(self.weights), *batch, self.hidden_size]
        return shapes

    def run(
        self,
        x: Tensor,  # [T, B, D]
        hx: States | None,  # as `state_shapes(B)`
        lengths: Tensor | None,  # [B] int64
    ) -> tuple[Tensor, States]:
        """Outputs of the last layer [T, B, directions * P] and the final states of all.

        Arguments are already checked.
        """
        T, B, _ = x.shape
        if hx is None:
            hx = tuple(x.new_zeros(shape) for shape in self.state_shapes(B).values())
        if lengths is not None and _all_full(lengths, T):
            lengths = None
        if lengths is not None:
            if lengths.device.type != "cpu" or torch.compiler.is_compiling():
                lengths, hx = _unchecked(lengths, hx, T)
            lengths = moved(lengths, x.device)
            past = torch.arange(T, device=x.device).unsqueeze(-1) >= lengths
            x = x.masked_fill(past.unsqueeze(-1), 0)  # 0 * NaN would be NaN

        dtype = compute_dtype(x)
        states = tuple(state.to(dtype) for state in hx)
        with without_autocast(x.device.type):
            return self._layers(x.to(dtype), states, [w.to(dtype) for w in self.weights], lengths)

    def _layers(
        self, x: Tensor, states: States, weights: list[Weights], lengths: Tensor | None
    ) -> tuple[Tensor, States]:
        available, interpreted = available_backends(), triton_is_interpreted()
        layer = load_backend(
            choose_backend(self.backend, x.device.type, available, x.dtype, interpreted)
        )
        finals: list[States] = []
        for first in range(0, len(weights), self.directions):
            part = slice(first, first + self.directions)
            if first and self.dropout:
                x = F.dropout(x, self.dropout)
            initial = tuple(state[part] for state in states)
            mask = self._mask(initial[0]) if self.recurrent_dropout else None
            x, final = layer(self.cell, x, initial, weights[part], lengths, mask, self.options)
            finals.append(final)
        return x, tuple(torch.cat(state) for state in zip(*finals, strict=True))

    def _mask(self, h: Tensor) -> Tensor:
        """For one layer: 0 or 1 / (1 - probability), drawn alike in every dtype."""
        kept = torch.rand(h.shape, device=h.device) >= self.recurrent_dropout
        scale = 1 / (1 - self.recurrent_dropout) if self.recurrent_dropout < 1 else 0.0
        return kept.to(h.dtype) * scale


def _all_full(lengths: Tensor, T: int) -> bool:
    """Whether no utterance ends before T, as far as that is known without a wait."""
    known = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and bool((lengths == T).all())


def _unchecked(lengths: Tensor, hx: States, T: int) -> tuple[Tensor, States]:
    """Lengths that no check has seen: an utterance with a wrong one starts, and ends, as NaN."""
    right = (lengths >= 1) & (lengths <= T)
    rows = moved(right, hx[0].device).unsqueeze(-1)  # [B, 1]
    return lengths.clamp(1, T), tuple(state.masked_fill(~rows, float("nan")) for state in hx)
