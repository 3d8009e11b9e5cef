"""The definition: one time step after another, in the dtype of the input, float64 included.

Slow and plain; the other backends are tested against it. Equations as in `torch.nn`:
a direction is h[t] = cell(x[t], h[t-1]), and past an utterance's end its state stays what it
was while its output is zero. Recurrent dropout (Gal & Ghahramani 2016) lets every product with U
see mask * h instead of h, the mask being the same at all steps.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.cells import Cell, Options, States, Weights


def lstm_step(x: Tensor, u: Tensor, states: States, weights: Weights) -> States:
    """Hochreiter & Schmidhuber 1997 with forget gate (Gers 1999); projection of Sak 2014.

    i, f = sigmoid(W_i x + b_i + U_i h + d_i + p_i * c), likewise f; p only with peepholes
    g    = tanh(W_g x + b_g + U_g h + d_g)
    c'   = f * c + i * g
    o    = sigmoid(W_o x + b_o + U_o h + d_o + p_o * c')
    h'   = W_hr (o * tanh(c')), without projection o * tanh(c')

    Peepholes: Gers & Schmidhuber 2000, "Recurrent nets that time and count".
    """
    i, f, g, o = (x + u).chunk(4, -1)
    if weights.peephole is not None:
        p_i, p_f, _ = weights.peephole.chunk(3)
        i, f = i + p_i * states[1], f + p_f * states[1]
    return _lstm_output(i.sigmoid(), f.sigmoid(), g, o, states[1], weights)


def cifg_step(x: Tensor, u: Tensor, states: States, weights: Weights) -> States:
    """The LSTM with coupled input and forget gate: as `lstm_step` with f = 1 - i.

    Greff et al. 2017, "LSTM: a search space odyssey". A quarter fewer weights.
    """
    i, g, o = (x + u).chunk(3, -1)
    if weights.peephole is not None:
        i = i + weights.peephole.chunk(2)[0] * states[1]
    i = i.sigmoid()
    return _lstm_output(i, 1 - i, g, o, states[1], weights)


def _lstm_output(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor, weights: Weights) -> States:
    """New states, from gates i and f and the arguments of g and o."""
    c = f * c + i * g.tanh()
    if weights.peephole is not None:
        o = o + weights.peephole[-c.shape[-1] :] * c
    h = o.sigmoid() * c.tanh()
    return (h if weights.hr is None else linear(h, weights.hr)), c


def gru_step(x: Tensor, u: Tensor, states: States, weights: Weights) -> States:
    """Cho 2014, with the reset gate after the product as in cuDNN.

    r, z = sigmoid(W_r x + b_r + U_r h + d_r), likewise z
    n    = tanh(W_n x + b_n + r * (U_n h + d_n))
    h'   = (1 - z) * n + z * h
    """
    x_r, x_z, x_n = x.chunk(3, -1)
    u_r, u_z, u_n = u.chunk(3, -1)
    r = (x_r + u_r).sigmoid()
    z = (x_z + u_z).sigmoid()
    n = (x_n + r * u_n).tanh()
    return ((1 - z) * n + z * states[0],)


def rnn_tanh_step(x: Tensor, u: Tensor, states: States, weights: Weights) -> States:
    """h' = tanh(W x + b + U h + d) (Elman 1990)."""
    return (torch.tanh(x + u),)


def rnn_relu_step(x: Tensor, u: Tensor, states: States, weights: Weights) -> States:
    """h' = max(0, W x + b + U h + d)."""
    return (torch.relu(x + u),)


#: (W x + b, U (mask * h) + d, states, weights) -> new states
STEPS = {
    "lstm": lstm_step,
    "cifg": cifg_step,
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
    mask: Tensor | None,
    options: Options,
) -> tuple[Tensor, States]:
    """See `kernels.backends.Layer`."""
    T, B, _ = x.shape
    ends = torch.full((B,), T, device=x.device) if lengths is None else lengths
    outputs, finals = [], []
    for direction, w in enumerate(weights):
        gates_x = linear(x, w.ih, w.bias_ih)  # [T, B, G*H]
        state = tuple(initial[direction] for initial in states)
        y: list[Tensor] = [x.new_empty(0)] * T
        for t in range(T) if direction == 0 else reversed(range(T)):
            inside = (t < ends).unsqueeze(-1)  # [B, 1]
            h = state[0] if mask is None else mask[direction] * state[0]
            new = STEPS[cell](gates_x[t], linear(h, w.hh, w.bias_hh), state, w)
            y[t] = new[0].masked_fill(~inside, 0)
            state = tuple(torch.where(inside, n, o) for n, o in zip(new, state, strict=True))
        outputs.append(torch.stack(y))
        finals.append(state)
    return torch.cat(outputs, -1), tuple(torch.stack(s) for s in zip(*finals, strict=True))
