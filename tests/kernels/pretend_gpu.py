"""Launches every kernel of training on a pretend H200 and prints what reached its driver.

Triton's own path as far as the driver: arguments are bound and specialised, kernels compiled for
sm_90. Nothing runs, so that results mean nothing. Run by `test_pretend_gpu` in a process of its
own, where Triton does not interpret.
"""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import kernels
from kernels.backends.triton import layer, ops
from kernels.backends.triton.backward import backward_kernel
from kernels.backends.triton.forward import forward_kernel
from kernels.backends.triton.plan import DEVICES, Plan, Problem, make_plan
from kernels.cells import GATES, LSTMS, Cell, Options, Weights
from kernels.ctc import align_triton, beam_kernels, beam_triton, loss_kernels

H200 = DEVICES["h200"]
LAUNCHES: list[dict[str, object]] = []


class Utils:
    """What Triton asks of a card."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": H200.shared_bytes, "multiprocessor_count": H200.processors}

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, most threads

    def unload_module(self, module: int) -> None:
        pass


class Launcher:
    """Takes the place of the C code that hands a launch to the driver."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata

    def __call__(self, x: int, y: int, z: int, *_: object) -> None:
        LAUNCHES.append(
            {
                "kernel": self.metadata.name,
                "programs": x * y * z,
                "cooperative": self.metadata.launch_cooperative_grid,
            }
        )


class Driver:
    """Of one H200."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def planned(problem: Problem, device: torch.device) -> Plan:
    """As for the card, whose tensors are on the CPU here."""
    return make_plan(problem, H200)


@dataclass(frozen=True)
class Case:
    """A layer, both directions."""

    cell: Cell = "lstm"
    dtype: torch.dtype = torch.bfloat16
    B: int = 3
    T: int = 5
    D: int = 7
    H: int = 48
    recompute: bool = False
    peephole: bool = False
    drop: bool = False
    skewed: bool = False  # the states begin at an address like those of a stack's upper layers

    def run(self) -> None:
        """Forwards and backwards."""
        gates = GATES[self.cell] * self.H

        def tensor(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.dtype, requires_grad=True)

        weights = [
            Weights(tensor(gates, self.D), tensor(gates, self.H), tensor(gates), tensor(gates))
            for _ in range(2)
        ]
        if self.peephole:
            weights = [w._replace(peephole=tensor(gates - self.H)) for w in weights]
        size = 2 * self.B * self.H
        states = tuple(
            tensor(size + self.skewed)[int(self.skewed) :].view(2, self.B, self.H)
            for _ in range(1 + (self.cell in LSTMS))
        )
        y, final = layer(
            self.cell,
            tensor(self.T, self.B, self.D),
            states,
            weights,
            torch.full((self.B,), self.T),
            torch.ones(2, self.B, self.H, dtype=self.dtype) if self.drop else None,
            Options(recompute=self.recompute, precision=None),
        )
        sum(part.float().sum() for part in (y, *final)).backward()


CELLS = {
    "lstm bf16": Case(),
    "gru fp16": Case("gru", torch.float16),
    "rnn_relu fp32": Case("rnn_relu", torch.float32),
    "peepholes, recomputed": Case("cifg", peephole=True, recompute=True),
    "gru, recomputed, recurrent dropout": Case("gru", recompute=True, drop=True),
    "one of everything": Case(B=1, T=1, D=1, H=1),
    "two groups": Case(H=512, B=64),
}


def ctc(T: int = 40, B: int = 3, L: int = 50, *, batch_first: bool = False) -> None:
    """The loss and its gradient, V = 31."""
    shape = (B, T, 31) if batch_first else (T, B, 31)
    logits = torch.zeros(shape, requires_grad=True)
    scores = logits.transpose(0, 1) if batch_first else logits
    targets, frames, labels = torch.ones(B, L).long(), torch.full((B,), T), torch.full((B,), L)
    kernels.ctc_loss(scores, targets, frames, labels).backward()


def align(T: int, B: int, L: int) -> None:
    """A forced alignment, V = 31."""
    targets = torch.ones(B, L, dtype=torch.int64)
    align_triton.viterbi(
        torch.zeros(T, B, 31), targets, torch.full((B,), T), torch.full((B,), L), 0
    )


def search(T: int, B: int) -> None:
    """A beam search without scorers, V = 31: what they look up would be what nothing has made."""
    scores = torch.zeros(T, B, 31)
    kernels.ctc_beam_search(scores, torch.full((B,), T), beam=16, beam_tokens=8)


def compiled(*functions: Any) -> int:
    """How often these kernels have been compiled."""
    return sum(len(function.device_caches[0][0]) for function in functions)


def launches(call: Callable[[], None]) -> list[dict[str, object]]:
    """Those of `call`."""
    first = len(LAUNCHES)
    call()
    return LAUNCHES[first:]


def report() -> dict[str, object]:
    """Launches by what was called, and how often shapes that differ were compiled."""
    found: dict[str, object] = {name: launches(case.run) for name, case in CELLS.items()}

    recurrence = forward_kernel, backward_kernel
    before = compiled(*recurrence)
    for B, T, D in ((1, 1, 1), (16, 16, 16), (5, 33, 8), (2, 1000, 7)):
        Case(B=B, T=T, D=D).run()
    Case(skewed=True).run()
    found["lstm bf16 compiled again"] = compiled(*recurrence) - before
    Case(dtype=torch.float32).run()
    before = compiled(*recurrence)
    Case(dtype=torch.float32, skewed=True).run()
    found["lstm fp32 compiled again"] = compiled(*recurrence) - before

    found["ctc"] = launches(ctc)
    loss = [getattr(loss_kernels, f"{launch['kernel']}") for launch in found["ctc"]]
    before = compiled(*loss)
    for T, B, L in ((41, 1, 60), (64, 16, 48), (1000, 2, 33)):
        ctc(T, B, L)
    ctc(batch_first=True)
    found["ctc compiled again"] = compiled(*loss) - before

    found["align"] = launches(lambda: align(40, 3, 5))
    for T, B, L in ((1, 1, 4), (16, 16, 7)):
        align(T, B, L)
    found["align compiled again"] = compiled(align_triton._viterbi) - 1

    found["search"] = launches(lambda: search(40, 3))
    for T, B in ((1, 1), (16, 16)):
        search(T, B)
    searching = beam_kernels.search_kernel, beam_kernels.trace_kernel
    found["search compiled again"] = compiled(*searching) - 2
    return found


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    ops.plan_for = planned
    importlib.import_module("kernels.ctc.loss").backend_for = lambda *_: "triton"
    importlib.import_module("kernels.ctc.beam")._search_class = lambda *_: beam_triton.Search
    json.dump(report(), sys.stdout)
