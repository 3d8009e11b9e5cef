"""`python -m kernels.bench layouts`: every layout of a recurrence that fits, timed on the card.

What it prints last are lines for the table `MEASURED` of `kernels.backends.triton.plan`.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from kernels.backends.triton.launch import INSTEAD, check_waits, device_properties
from kernels.backends.triton.plan import (
    DeviceProperties,
    Pass,
    Plan,
    Problem,
    make_plan,
    microseconds,
    persistent_plans,
)
from kernels.bench.job import Job
from kernels.bench.precompile import in_processes
from kernels.bench.profile import measure_kernels
from kernels.bench.recurrent import ours, precisions
from kernels.bench.registry import Shape
from kernels.cells import Cell

#: torch.nn's name of each cell that it has.
MODULES: dict[Cell, str] = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}


@dataclass(frozen=True)
class Trial:
    """One plan of a problem, over T frames."""

    problem: Problem
    plan: Plan
    frames: int


@dataclass(frozen=True)
class Outcome:
    """Microseconds a step, of the recurrence alone."""

    trial: Trial
    waiting: float
    not_waiting: float  # nothing waits for h[t]: what is left when the hand-over is free
    wrong: str = ""

    def line(self, chosen: bool) -> str:
        """For people; `chosen` by the model."""
        layout = self.trial.plan.layout
        sizes = f"{layout.block_b} x {layout.block_h}, k {layout.block_k}, ahead {layout.ahead}"
        if self.wrong:
            return f"  WRONG, not timed: {sizes}, {layout.num_warps} warps: {self.wrong}"
        model = self.trial.plan.launches * microseconds(self.trial.problem, layout)
        return (
            f"  {self.waiting:6.2f} us a step, {self.not_waiting:6.2f} without waits, model "
            f"{model:6.2f}: {sizes}, {layout.num_warps} warps, {self.trial.plan.launches} launches"
            f"{' <- the model chooses this' if chosen else ''}"
        )


def problems(cell: Cell, hidden: Iterable[int], batch: Iterable[int]) -> list[Problem]:
    """Both passes, both directions, in bfloat16."""
    sizes = itertools.product(get_args(Pass), hidden, batch)
    return [Problem(pass_, cell, B, H, 2, "bfloat16") for pass_, H, B in sizes]


def trials(problems: Sequence[Problem], device: DeviceProperties, frames: int) -> list[Trial]:
    """Every plan that fits, problem after problem."""
    return [Trial(p, plan, frames) for p in problems for plan in persistent_plans(p, device)]


def report(outcomes: Sequence[Outcome], device: DeviceProperties) -> str:
    """Outcomes by problem, fastest first; then an entry of `MEASURED` for each problem."""
    lines, entries = [], []
    for problem in dict.fromkeys(outcome.trial.problem for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.trial.problem == problem]
        mine.sort(key=lambda outcome: (bool(outcome.wrong), outcome.waiting))
        model = make_plan(problem, device).layout
        lines += [str(problem), *(o.line(o.trial.plan.layout == model) for o in mine)]
        if not mine[0].wrong:
            best = mine[0].trial.plan.layout
            entries.append(f"    ({device.name!r}, {problem}): {best},")
    return "\n".join([*lines, "MEASURED:", *entries])


def run_layouts(
    problems: Sequence[Problem], frames: int, repeats: int, jobs: int, path: Path
) -> int:
    """Time all trials, each saved to `path` before the next; exit status 1 if one was wrong.

    `jobs` processes compile beforehand: that takes most of the time, and needs no quiet card.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    properties = device_properties(device)
    todo = trials(problems, properties, frames)
    kernels = {(t.problem.pass_, t.problem.cell, t.problem.hidden, t.plan.layout): t for t in todo}
    in_processes(_compile, kernels.values(), jobs)
    outcomes = []
    with path.open("a", encoding="utf-8") as file:
        for trial in todo:
            outcomes.append(measure(trial, repeats))
            print(json.dumps(asdict(outcomes[-1])), file=file, flush=True)
    print(report(outcomes, properties))
    return int(any(outcome.wrong for outcome in outcomes))


def measure(trial: Trial, repeats: int) -> Outcome:
    """On the current GPU: first whether the result is right, then the time."""
    try:
        outcome = _measure(trial, repeats)
    except Exception as error:  # CUDA's, the compiler's: they share no class, and others come next
        outcome = _wrong(trial, f"{type(error).__name__}: {error}")
    try:
        check_waits(torch.device("cuda", torch.cuda.current_device()))
    except RuntimeError as error:  # or the next layout would be blamed
        return _wrong(trial, str(error))
    return outcome


def _wrong(trial: Trial, what: str) -> Outcome:
    return Outcome(trial, float("inf"), float("inf"), what)


def _measure(trial: Trial, repeats: int) -> Outcome:
    problem = trial.problem
    device = torch.device("cuda", torch.cuda.current_device())
    shape = Shape(problem.batch, trial.frames, 2 * problem.hidden, problem.hidden)
    job = Job.of(MODULES[problem.cell], shape, device)
    with _planned(problem, trial.plan):
        rival = ours(job, device, precisions(device)[-1])  # bf16
    if rival.wrong:
        return _wrong(trial, rival.wrong)
    heading = f"recurrence {problem.pass_}"
    alone = [replace(rival, kernels={heading: rival.kernels[heading]})]
    times = []
    for waits in (True, False):
        with _planned(problem, replace(trial.plan, waits=waits)):
            (timing,) = measure_kernels(alone, repeats)
        times.append(1000 * timing.median_ms / trial.frames)
    waiting, not_waiting = times
    return Outcome(trial, waiting, not_waiting)


def _compile(trial: Trial) -> None:
    """Leave the kernels in Triton's cache, for other processes."""
    if wrong := measure(replace(trial, frames=2), repeats=1).wrong:
        raise RuntimeError(wrong)


@contextmanager
def _planned(problem: Problem, plan: Plan) -> Iterator[None]:
    INSTEAD[problem] = plan
    try:
        yield
    finally:
        del INSTEAD[problem]
