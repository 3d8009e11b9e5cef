"""One step of each cell, forwards and backwards, in place on the rows that still run.

Forwards, `gates` [R, G, H] come as W x + b of all rows and become the activated gates. Backwards,
all that does not depend on the later steps is computed for all rows at once: the slopes, which
a step turns into gradients by multiplying them with those of h and c.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.cells import LSTMS, Cell, Weights

Sizes = Sequence[int]  # rows of each frame


class Forward(Protocol):
    """The steps of one direction; `kept` [R, H] is filled for the way back."""

    def __init__(self, gates: Tensor, w: Weights, kept: Tensor, sizes: Sizes) -> None: ...

    def step(self, t: int, seen: Tensor, h: Tensor, c: Tensor) -> None:
        """New states [b, H] in the place of the old ones; without c that is [b, 0].

        U sees `seen`, which is h or, with recurrent dropout, mask * h.
        """


class Backward(Protocol):
    """The gradients of one direction, final once all steps are done."""

    @property
    def inner(self) -> Tensor:
        """[R, G*H] of U h + d."""

    @property
    def outer(self) -> Tensor:
        """[R, G*H] of W x + b."""

    def __init__(
        self, gates: Tensor, w: Weights, before: Tensor, kept: Tensor, sizes: Sizes
    ) -> None: ...

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """Gradients of the states before the step in the place of those after it.

        Of h that is the part that does not come through U.
        """


class LstmForward:
    """Keeps c before the step."""

    def __init__(self, gates: Tensor, w: Weights, kept: Tensor, sizes: Sizes) -> None:
        self.w = w.hh.t().contiguous()
        self.arguments = gates.flatten(1).split(sizes)
        self.inlets = gates[:, :-2].split(sizes)  # i and f, without f in CIFG
        self.i, self.f, self.g, self.o = (gates[:, n].split(sizes) for n in (0, 1, -2, -1))
        self.peepholes = None if w.peephole is None else w.peephole.view(-1, gates.shape[2])
        self.kept = kept.split(sizes)

    def step(self, t: int, seen: Tensor, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        self.kept[t].copy_(c)
        self.arguments[t].addmm_(seen, self.w)
        if self.peepholes is not None:
            self.inlets[t].addcmul_(self.peepholes[:-1], c.unsqueeze(1))
        self.inlets[t].sigmoid_()
        self.g[t].tanh_()
        self.update(t, c)
        if self.peepholes is not None:
            self.o[t].addcmul_(self.peepholes[-1], c)
        torch.tanh(c, out=h).mul_(self.o[t].sigmoid_())

    def update(self, t: int, c: Tensor) -> None:
        """c' = f c + i g."""
        c.mul_(self.f[t]).addcmul_(self.i[t], self.g[t])


class CifgForward(LstmForward):
    """Has no f."""

    def update(self, t: int, c: Tensor) -> None:
        """c' = (1 - i) c + i g."""
        c.lerp_(self.g[t], self.i[t])


class LstmBackward:
    """c' = f c + i g and h' = o tanh(c'): dc' takes dh' in, and i, f and g get their part of it.

    Peepholes are further ways from h' to c' and from c' to c.
    """

    def __init__(
        self, gates: Tensor, w: Weights, before: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        i, g, o = (gates[:, n] for n in (0, -2, -1))
        f, inlets = self.inlets(gates, kept)
        self.c, self.kept = torch.mul(f, kept).addcmul_(i, g), kept
        tanh_c = self.c.tanh()
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        for n, slope in enumerate(inlets):
            slopes[:, n] *= slope
        slopes[:, -2] = i.addcmul(i * g, g, value=-1)
        slopes[:, -1] *= tanh_c
        h_to_c, c_to_c = o.addcmul(o * tanh_c, tanh_c, value=-1), f
        if w.peephole is not None:
            peepholes = w.peephole.view(-1, gates.shape[2])
            h_to_c.addcmul_(slopes[:, -1], peepholes[-1])
            c_to_c = f + (slopes[:, :-2] * peepholes[:-1]).sum(1)
        self.gates = slopes
        self.inner = self.outer = slopes.flatten(1)
        self.through_c = slopes[:, :-1].split(sizes)
        self.through_o = slopes[:, -1].split(sizes)
        self.h_to_c, self.c_to_c = h_to_c.split(sizes), c_to_c.split(sizes)

    @staticmethod
    def inlets(gates: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f, and the derivatives of c' with respect to i and f."""
        _, f, g, _ = gates.unbind(1)
        return f, [g, c]

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """See `Backward`."""
        dc.addcmul_(dh, self.h_to_c[t])
        self.through_c[t].mul_(dc.unsqueeze(1))
        self.through_o[t].mul_(dh)
        dc.mul_(self.c_to_c[t])
        dh.zero_()

    def peepholes(self) -> Tensor:
        """Their gradient, [3H] or of CIFG [2H]."""
        before, after = self.gates[:, :-2], self.gates[:, -1]
        parts = (before * self.kept.unsqueeze(1)).sum(0), (after * self.c).sum(0, keepdim=True)
        return torch.cat(parts).flatten()


class CifgBackward(LstmBackward):
    """With f = 1 - i."""

    @staticmethod
    def inlets(gates: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f, and the derivative of c' with respect to i."""
        i, g, _ = gates.unbind(1)
        return 1 - i, [g - c]


class GruForward:
    """Keeps U_n h + d_n."""

    def __init__(self, gates: Tensor, w: Weights, kept: Tensor, sizes: Sizes) -> None:
        H = w.hh.shape[1]
        self.w_rz, self.w_n = (part.t().contiguous() for part in w.hh.split((2 * H, H)))
        self.bias_n = w.hh.new_zeros(H) if w.bias_hh is None else w.bias_hh[2 * H :]
        self.r_z = gates.flatten(1)[:, : 2 * H].split(sizes)
        self.r, self.z, self.n = (gate.split(sizes) for gate in gates.unbind(1))
        self.inner_n = kept.split(sizes)

    def step(self, t: int, seen: Tensor, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        torch.addmm(self.bias_n, seen, self.w_n, out=self.inner_n[t])
        self.r_z[t].addmm_(seen, self.w_rz).sigmoid_()
        n = self.n[t].addcmul_(self.r[t], self.inner_n[t]).tanh_()
        h.sub_(n).mul_(self.z[t]).add_(n)


class GruBackward:
    """h' = n + z (h - n): each gate's gradient is dh' times a slope."""

    def __init__(
        self, gates: Tensor, w: Weights, before: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        r, z, n = gates.unbind(1)
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        slope_n = (1 - z).mul_(1 - n * n)
        slopes[:, 0] *= kept * slope_n
        slopes[:, 1] *= before - n
        slopes[:, 2] = slope_n * r
        self.inner = slopes.flatten(1)
        self.n = slope_n
        self.gates = slopes.split(sizes)
        self.rows_n = slope_n.split(sizes)
        self.z = z.split(sizes)

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """See `Backward`."""
        self.gates[t].mul_(dh.unsqueeze(1))
        self.rows_n[t].mul_(dh)
        dh.mul_(self.z[t])

    @property
    def outer(self) -> Tensor:
        """As `inner`, but n's without the reset gate."""
        H = self.n.shape[1]
        return torch.cat([self.inner[:, : 2 * H], self.n], 1)


class RnnForward:
    """Elman's; keeps nothing."""

    activate = staticmethod(torch.tanh_)

    def __init__(self, gates: Tensor, w: Weights, kept: Tensor, sizes: Sizes) -> None:
        self.w = w.hh.t().contiguous()
        self.arguments = gates.flatten(1).split(sizes)

    def step(self, t: int, seen: Tensor, h: Tensor, c: Tensor) -> None:
        """See `Forward`."""
        h.copy_(self.activate(self.arguments[t].addmm_(seen, self.w)))


class RnnBackward:
    """h' = tanh(...)."""

    def __init__(
        self, gates: Tensor, w: Weights, before: Tensor, kept: Tensor, sizes: Sizes
    ) -> None:
        self.inner = self.outer = self.slopes(gates.flatten(1))
        self.rows = self.inner.split(sizes)

    @staticmethod
    def slopes(h: Tensor) -> Tensor:
        """Of the activation, in terms of its value."""
        return 1 - h * h

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """See `Backward`."""
        self.rows[t].mul_(dh)
        dh.zero_()


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
    "cifg": CifgForward,
    "gru": GruForward,
    "rnn_tanh": RnnForward,
    "rnn_relu": ReluForward,
}
BACKWARD: dict[Cell, type[Backward]] = {
    "lstm": LstmBackward,
    "cifg": CifgBackward,
    "gru": GruBackward,
    "rnn_tanh": RnnBackward,
    "rnn_relu": ReluBackward,
}
#: Those that keep something beside gates and h.
KEEP: tuple[Cell, ...] = (*LSTMS, "gru")
