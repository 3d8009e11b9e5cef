"""One step of each cell, forwards and backwards, on the rows that still run.

Forwards, `gates` [N, R, G, H] come as W x + b of all rows and become the activated gates.
Backwards, all that does not depend on the later steps is computed for all rows at once: the slopes,
which a step turns into gradients by multiplying them with those of h and c.

N directions take their steps together; of one alone, no tensor has the first dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kernels.cells import LSTMS, Cell, Weights

Sizes = Sequence[int]  # rows of each step


class Recurrent(NamedTuple):
    """What the steps of N directions need of their weights; of one alone, without N."""

    hh: Tensor  # [N, G*H, H]
    bias_hh: Tensor | None  # [N, G*H]
    peephole: Tensor | None  # [N, 3H], of CIFG [N, 2H]

    @classmethod
    def of(cls, directions: Sequence[Weights]) -> Self:
        """Of one direction as they are, of several stacked."""
        if len(directions) == 1:
            return cls(directions[0].hh, directions[0].bias_hh, directions[0].peephole)
        parts = zip(*((w.hh, w.bias_hh, w.peephole) for w in directions), strict=True)
        hh, *others = ([part for part in one if part is not None] for one in parts)
        return cls(torch.stack(hh), *(torch.stack(one) if one else None for one in others))


class Forward(Protocol):
    """The steps of some directions; `kept` [N, R, H] is filled for the way back."""

    def __init__(
        self, gates: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None: ...

    def step(self, t: int, seen: Tensor, h: Tensor, out: Tensor) -> None:
        """From h [N, b, H] before the step to `out`, h after it.

        U sees `seen`, which is h or, with recurrent dropout, mask * h.
        """


class Backward(Protocol):
    """The gradients of some directions, final once all steps are done."""

    @property
    def inner(self) -> Tensor:
        """[N, R, G*H] of U h + d."""

    @property
    def outer(self) -> Tensor:
        """[N, R, G*H] of W x + b."""

    def __init__(
        self, gates: Tensor, h: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None: ...  # h [N, R, H] before each step

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """Gradients of the states before the step in the place of those after it.

        Of h that is the part that does not come through U. Without c, dc is [N, b, 0].
        """


def before(initial: Tensor, rows: Tensor, sizes: Sizes) -> list[Tensor]:
    """Views of the state [N, b, H] before each step: the initial one, then those of `rows`.

    `rows` [N, R, H] holds the state after each step.
    """
    after = rows.split(list(sizes), -2)
    return [initial, *(state[..., :b, :] for state, b in zip(after, sizes[1:], strict=False))]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`total` += left right, of each direction."""
    if total.dim() == 2:
        return total.addmm_(left, right)
    return total.add_(torch.bmm(left, right))  # baddbmm_ is slow where the directions lie apart


def _tanh_(x: Tensor) -> Tensor:
    """In place. Two threads took 22 us where rows lie apart, [2, 24, 256], and 14 with copies."""
    return x.tanh_() if torch.get_num_threads() == 1 else x.copy_(x.contiguous().tanh_())


class LstmForward:
    """Keeps c after the step."""

    def __init__(
        self, gates: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        self.w = w.hh.transpose(-2, -1).contiguous()
        self.arguments = gates.flatten(-2).split(sizes, -2)
        self.inlets = gates[..., :-2, :].split(sizes, -3)  # i and f, without f in CIFG
        self.i, self.f, self.g, self.o = (gates[..., n, :].split(sizes, -2) for n in (0, 1, -2, -1))
        self.peepholes = _peepholes(w, gates.shape[-1])
        self.c, self.c_before = kept.split(sizes, -2), before(c_0, kept, sizes)

    def step(self, t: int, seen: Tensor, h: Tensor, out: Tensor) -> None:
        """See `Forward`."""
        _add_product(self.arguments[t], seen, self.w)
        if self.peepholes is not None:
            self.inlets[t].addcmul_(self.peepholes[..., :-1, :], self.c_before[t].unsqueeze(-2))
        self.inlets[t].sigmoid_()
        _tanh_(self.g[t])
        self.update(t)
        if self.peepholes is not None:
            self.o[t].addcmul_(self.peepholes[..., -1, :], self.c[t])
        torch.tanh(self.c[t], out=out).mul_(self.o[t].sigmoid_())

    def update(self, t: int) -> None:
        """c' = f c + i g."""
        torch.mul(self.f[t], self.c_before[t], out=self.c[t]).addcmul_(self.i[t], self.g[t])


class CifgForward(LstmForward):
    """Has no f."""

    def update(self, t: int) -> None:
        """c' = (1 - i) c + i g."""
        torch.lerp(self.c_before[t], self.g[t], self.i[t], out=self.c[t])


class LstmBackward:
    """c' = f c + i g and h' = o tanh(c'): dc' takes dh' in, and i, f and g get their part of it.

    Peepholes are further ways from h' to c' and from c' to c.
    """

    def __init__(
        self, gates: Tensor, h: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        i, g, o = (gates[..., n, :] for n in (0, -2, -1))
        self.c, self.c_before = kept, torch.cat(before(c_0, kept, sizes), -2)
        f, inlets = self.inlets(gates, self.c_before)
        tanh_c = self.c.tanh()
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        for n, slope in enumerate(inlets):
            slopes[..., n, :] *= slope
        slopes[..., -2, :] = i.addcmul(i * g, g, value=-1)
        slopes[..., -1, :] *= tanh_c
        h_to_c, c_to_c = o.addcmul(o * tanh_c, tanh_c, value=-1), f
        peepholes = _peepholes(w, gates.shape[-1])
        if peepholes is not None:
            h_to_c.addcmul_(slopes[..., -1, :], peepholes[..., -1, :])
            c_to_c = f + (slopes[..., :-2, :] * peepholes[..., :-1, :]).sum(-2)
        self.gates = slopes
        self.inner = self.outer = slopes.flatten(-2)
        self.through_c = slopes[..., :-1, :].split(sizes, -3)
        self.through_o = slopes[..., -1, :].split(sizes, -2)
        self.h_to_c, self.c_to_c = h_to_c.split(sizes, -2), c_to_c.split(sizes, -2)

    @staticmethod
    def inlets(gates: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f, and the derivatives of c' with respect to i and f."""
        _, f, g, _ = gates.unbind(-2)
        return f, [g, c]

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """See `Backward`."""
        dc.addcmul_(dh, self.h_to_c[t])
        self.through_c[t].mul_(dc.unsqueeze(-2))
        self.through_o[t].mul_(dh)
        dc.mul_(self.c_to_c[t])
        dh.zero_()

    def peepholes(self) -> Tensor:
        """Their gradients, [N, 3H] or of CIFG [N, 2H]."""
        inlets, o = self.gates[..., :-2, :], self.gates[..., -1, :]
        parts = (inlets * self.c_before.unsqueeze(-2)).sum(-3), (o * self.c).sum(-2).unsqueeze(-2)
        return torch.cat(parts, -2).flatten(-2)


class CifgBackward(LstmBackward):
    """With f = 1 - i."""

    @staticmethod
    def inlets(gates: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f, and the derivative of c' with respect to i."""
        i, g, _ = gates.unbind(-2)
        return 1 - i, [g - c]


def _peepholes(w: Recurrent, H: int) -> Tensor | None:
    """[N, 1, 3 of i f o, H], of CIFG 2 of i o."""
    return None if w.peephole is None else w.peephole.unflatten(-1, (-1, H)).unsqueeze(-3)


class GruForward:
    """Keeps U_n h + d_n."""

    def __init__(
        self, gates: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        H = gates.shape[-1]
        self.w = w.hh.transpose(-2, -1).contiguous()
        self.split = (2 * H, H)
        bias = w.hh.new_zeros(3 * H) if w.bias_hh is None else w.bias_hh
        self.bias_n = bias[..., None, 2 * H :]
        self.r_z = gates.flatten(-2)[..., : 2 * H].split(sizes, -2)
        self.r, self.z, self.n = (gate.split(sizes, -2) for gate in gates.unbind(-2))
        self.inner_n = kept.split(sizes, -2)

    def step(self, t: int, seen: Tensor, h: Tensor, out: Tensor) -> None:
        """See `Forward`."""
        inner_r_z, inner_n = (seen @ self.w).split(self.split, -1)
        torch.add(inner_n, self.bias_n, out=self.inner_n[t])
        self.r_z[t].add_(inner_r_z).sigmoid_()
        n = _tanh_(self.n[t].addcmul_(self.r[t], self.inner_n[t]))
        torch.sub(h, n, out=out).mul_(self.z[t]).add_(n)


class GruBackward:
    """h' = n + z (h - n): each gate's gradient is dh' times a slope."""

    def __init__(
        self, gates: Tensor, h: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        r, z, n = gates.unbind(-2)
        slopes = gates.addcmul(gates, gates, value=-1)  # of a sigmoid
        slope_n = (1 - z).mul_(1 - n * n)
        slopes[..., 0, :] *= kept * slope_n
        slopes[..., 1, :] *= h - n
        slopes[..., 2, :] = slope_n * r
        self.inner = slopes.flatten(-2)
        self.n = slope_n
        self.gates = slopes.split(sizes, -3)
        self.rows_n = slope_n.split(sizes, -2)
        self.z = z.split(sizes, -2)

    def step(self, t: int, dh: Tensor, dc: Tensor) -> None:
        """See `Backward`."""
        self.gates[t].mul_(dh.unsqueeze(-2))
        self.rows_n[t].mul_(dh)
        dh.mul_(self.z[t])

    @property
    def outer(self) -> Tensor:
        """As `inner`, but n's without the reset gate."""
        H = self.n.shape[-1]
        return torch.cat([self.inner[..., : 2 * H], self.n], -1)


class RnnForward:
    """Elman's; keeps nothing."""

    activate = staticmethod(torch.tanh_)

    def __init__(
        self, gates: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        self.w = w.hh.transpose(-2, -1).contiguous()
        self.arguments = gates.flatten(-2).split(sizes, -2)

    def step(self, t: int, seen: Tensor, h: Tensor, out: Tensor) -> None:
        """See `Forward`."""
        out.copy_(self.activate(_add_product(self.arguments[t], seen, self.w)))


class RnnBackward:
    """h' = tanh(...)."""

    def __init__(
        self, gates: Tensor, h: Tensor, c_0: Tensor, kept: Tensor, w: Recurrent, sizes: Sizes
    ) -> None:
        self.inner = self.outer = self.slopes(gates.flatten(-2))
        self.rows = self.inner.split(sizes, -2)

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
