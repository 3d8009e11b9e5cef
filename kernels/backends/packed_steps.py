"""One step of each cell, forwards and backwards, in place on the rows that still run.

Forwards, `gates` [R, G, H] come as W x + b of all rows and become the activated gates. Backwards,
all that does not depend on the later steps is computed for all rows at once: the slopes, which
a step turns into gradients by multiplying them with those of h and c.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.cells import Cell

Sizes = Sequence[int]  # rows of each frame


class Forward(Protocol):
    """The steps of one direction; `kept` [R, H] is filled for the way back."""

    def __init__(
        self, gates: Tensor, w_hh: Tensor, bias_n: Tensor, kept: Tensor, sizes: Sizes
    ) -> None: ...

    def step(self, t: int, h: Tensor, c: Tensor) -> None:
        """New states [b, H] in the place of the old ones; without c that is [b, 0]."""


class Backward(Protocol):
    """The gradients of one direction, final once all steps are done."""

    @property
    def inner(self) -> Tensor:
        """[R, G*H] of U h + d."""

    @property
    def outer(self) -> Tensor:
        """[R, G*H] of W x + b."""

    def __init__(self, gates: Tensor, before: Tensor, kept: Tensor, sizes: Sizes) -> None: ...

    def step(self, t: int, dh: Tensor, dc: Tensor, w_hh: Tensor) -> None:
        """Gradients of the states before the step in the place of those after it."""


class LstmForward:
    """Keeps c before the step."""

    def __init__(
        self, gates: Tensor, w_hh: Tensor, bias_n: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        self.w = w_hh.t().contiguous()
        self.arguments = gates.flatten(1).split(sizes)
        self.i_f = gates[:, :2].split(sizes)
        self.i, self.f, self.g, self.o = (gate.split(sizes) for gate in gates.unbind(1))
        self.kept = kept.split(sizes)

    def step(self, t: int, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        self.kept[t].copy_(c)
        self.arguments[t].addmm_(h, self.w)
        self.i_f[t].sigmoid_()
        g, o = self.g[t].tanh_(), self.o[t].sigmoid_()
        c.mul_(self.f[t]).addcmul_(self.i[t], g)
        torch.tanh(c, out=h).mul_(o)


class LstmBackward:
    """c' = f c + i g and h' = o tanh(c'): dc' takes dh' in, and i, f and g get their part of it."""

    def __init__(self, gates: Tensor, before: Tensor, kept: Tensor, sizes: Sizes) -> None:
        i, f, g, o = gates.unbind(1)
        tanh_c = torch.mul(f, kept).addcmul_(i, g).tanh_()
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        slopes[:, 0] *= g
        slopes[:, 1] *= kept
        slopes[:, 2] = i.addcmul(i * g, g, value=-1)
        slopes[:, 3] *= tanh_c
        self.inner = self.outer = slopes.flatten(1)
        self.through_c = slopes[:, :3].split(sizes)
        self.through_o = slopes[:, 3].split(sizes)
        self.rows = self.inner.split(sizes)
        self.h_to_c = o.addcmul(o * tanh_c, tanh_c, value=-1).split(sizes)
        self.f = f.split(sizes)

    def step(self, t: int, dh: Tensor, dc: Tensor, w_hh: Tensor) -> None:
        """See `Backward`."""
        dc.addcmul_(dh, self.h_to_c[t])
        self.through_c[t].mul_(dc.unsqueeze(1))
        self.through_o[t].mul_(dh)
        dc.mul_(self.f[t])
        torch.mm(self.rows[t], w_hh, out=dh)


class GruForward:
    """Keeps U_n h + d_n."""

    def __init__(
        self, gates: Tensor, w_hh: Tensor, bias_n: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        H = w_hh.shape[1]
        self.w_rz, self.w_n = (w.t().contiguous() for w in w_hh.split((2 * H, H)))
        self.bias_n = bias_n
        self.r_z = gates.flatten(1)[:, : 2 * H].split(sizes)
        self.r, self.z, self.n = (gate.split(sizes) for gate in gates.unbind(1))
        self.inner_n = kept.split(sizes)

    def step(self, t: int, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        torch.addmm(self.bias_n, h, self.w_n, out=self.inner_n[t])
        self.r_z[t].addmm_(h, self.w_rz).sigmoid_()
        n = self.n[t].addcmul_(self.r[t], self.inner_n[t]).tanh_()
        h.sub_(n).mul_(self.z[t]).add_(n)


class GruBackward:
    """h' = n + z (h - n): each gate's gradient is dh' times a slope."""

    def __init__(self, gates: Tensor, before: Tensor, kept: Tensor, sizes: Sizes) -> None:
        r, z, n = gates.unbind(1)
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        slope_n = (1 - z).mul_(1 - n * n)
        slopes[:, 0] *= kept * slope_n
        slopes[:, 1] *= before - n
        slopes[:, 2] = slope_n * r
        self.inner = slopes.flatten(1)
        self.n = slope_n
        self.gates = slopes.split(sizes)
        self.rows = self.inner.split(sizes)
        self.rows_n = slope_n.split(sizes)
        self.z = z.split(sizes)

    def step(self, t: int, dh: Tensor, dc: Tensor, w_hh: Tensor) -> None:
        """See `Backward`."""
        self.gates[t].mul_(dh.unsqueeze(1))
        self.rows_n[t].mul_(dh)
        dh.mul_(self.z[t]).addmm_(self.rows[t], w_hh)

    @property
    def outer(self) -> Tensor:
        """As `inner`, but n's without the reset gate."""
        H = self.n.shape[1]
        return torch.cat([self.inner[:, : 2 * H], self.n], 1)


class RnnForward:
    """Elman's; keeps nothing."""

    activate = staticmethod(torch.tanh_)

    def __init__(
        self, gates: Tensor, w_hh: Tensor, bias_n: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        self.w = w_hh.t().contiguous()
        self.arguments = gates.flatten(1).split(sizes)

    def step(self, t: int, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        h.copy_(self.activate(self.arguments[t].addmm_(h, self.w)))


class RnnBackward:
    """h' = tanh(...)."""

    def __init__(self, gates: Tensor, before: Tensor, kept: Tensor, sizes: Sizes) -> None:
        self.inner = self.outer = self.slopes(gates.flatten(1))
        self.rows = self.inner.split(sizes)

    @staticmethod
    def slopes(h: Tensor) -> Tensor:
        """Of the activation, in terms of its value."""
        return 1 - h * h

    def step(self, t: int, dh: Tensor, dc: Tensor, w_hh: Tensor) -> None:
        """See `Backward`."""
        torch.mm(self.rows[t].mul_(dh), w_hh, out=dh)


class ReluForward(RnnForward):
    """With a relu in the place of the tanh."""

    activate = staticmethod(torch.relu_)


class ReluBackward(RnnBackward):
    """h' = max(0, ...)."""

    @staticmethod
    def slopes(h: Tensor) -> Tensor:
        """Of the activation, in terms of its value."""
        return (h > 0).to(h.dtype)


FORWARD: dict[Cell, type[Forward]] = {
    "lstm": LstmForward,
    "gru": GruForward,
    "rnn_tanh": RnnForward,
    "rnn_relu": ReluForward,
}
BACKWARD: dict[Cell, type[Backward]] = {
    "lstm": LstmBackward,
    "gru": GruBackward,
    "rnn_tanh": RnnBackward,
    "rnn_relu": ReluBackward,
}
#: Those that keep something beside gates and h.
KEEP: tuple[Cell, ...] = ("lstm", "gru")
