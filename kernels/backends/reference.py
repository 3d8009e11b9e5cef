"""The definition: one time step after another, in the dtype of the input, float64 included.

Slow and plain; the other backends are tested against it. Equations as in `torch.nn`:
a direction is h[t] = cell(x[t], h[t-1]), and past an utterance's end its state stays what it
was while its output is zero.
"""

import torch
from torch import Tensor

from kernels.cells import Cell, Options, States, Weights


def lstm_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """Hochreiter & Schmidhuber 1997 with forget gate (Gers 1999); projection of Sak 2014.

    i, f, o = sigmoid(W_i x + b_i + U_i h + d_i), likewise f and o
    g       = tanh(W_g x + b_g + U_g h + d_g)
    c'      = f * c + i * g
    h'      = W_hr (o * tanh(c')), without projection o * tanh(c')
    """
    h, c = states
    i, f, g, o = (gates_x + torch.nn.functional.linear(h, weights.hh, weights.bias_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if weights.hr is not None:
        h = torch.nn.functional.linear(h, weights.hr)
    return h, c


def gru_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """Cho 2014, with the reset gate after the product as in cuDNN.

    r, z = sigmoid(W_r x + b_r + U_r h + d_r), likewise z
    n    = tanh(W_n x + b_n + r * (U_n h + d_n))
    h'   = (1 - z) * n + z * h
    """
    (h,) = states
    r_x, z_x, n_x = gates_x.chunk(3, -1)
    r_h, z_h, n_h = torch.nn.functional.linear(h, weights.hh, weights.bias_hh).chunk(3, -1)
    r = (r_x + r_h).sigmoid()
    z = (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return ((1 - z) * n + z * h,)


def rnn_tanh_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """h' = tanh(W x + b + U h + d) (Elman 1990)."""
    (h,) = states
    return (torch.tanh(gates_x + torch.nn.functional.linear(h, weights.hh, weights.bias_hh)),)


def rnn_relu_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """h' = max(0, W x + b + U h + d)."""
    (h,) = states
    return (torch.relu(gates_x + torch.nn.functional.linear(h, weights.hh, weights.bias_hh)),)


STEPS = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
}


def layer(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: list[Weights],
    lengths: Tensor | None,
    options: Options,
) -> tuple[Tensor, States]:
    """See `kernels.backends.Layer`."""
    T, B, _ = x.shape
    ends = torch.full((B,), T, device=x.device) if lengths is None else lengths
    outputs, finals = [], []
    for direction, w in enumerate(weights):
        gates_x = torch.nn.functional.linear(x, w.ih, w.bias_ih)  # [T, B, G*H]
        state = tuple(initial[direction] for initial in states)
        y: list[Tensor] = [x.new_empty(0)] * T
        for t in range(T) if direction == 0 else reversed(range(T)):
            inside = (t < ends).unsqueeze(-1)  # [B, 1]
            new = STEPS[cell](gates_x[t], state, w)
            y[t] = new[0].masked_fill(~inside, 0)
            state = tuple(torch.where(inside, n, o) for n, o in zip(new, state, strict=True))
        outputs.append(torch.stack(y))
        finals.append(state)
    return torch.cat(outputs, -1), tuple(torch.stack(s) for s in zip(*finals, strict=True))
