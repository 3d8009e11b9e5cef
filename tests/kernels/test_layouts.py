"""The sweep over layouts: what is tried, what is said. Timing itself needs a card."""

import pytest

from kernels.backends.triton import plan as plan_module
from kernels.backends.triton.plan import DEVICES, Layout, Problem, make_plan
from kernels.bench.__main__ import main
from kernels.bench.layouts import Outcome, measure, problems, report, trials

H200 = DEVICES["h200"]


def _outcomes() -> list[Outcome]:
    """The slower, the later a layout comes; the first is wrong."""
    (forward, _) = problems("lstm", [512], [32])
    tried = trials([forward], H200, frames=200)
    assert len(tried) > 2
    first = Outcome(tried[0], float("inf"), float("inf"), wrong="y: error 1")
    return [first, *(Outcome(trial, 5.0 - n / 10, 1.0) for n, trial in enumerate(tried[1:]))]


def test_the_choice_of_the_model_is_among_the_layouts_tried() -> None:
    for problem in problems("gru", [320, 1024], [8, 64]):
        layouts = [trial.plan.layout for trial in trials([problem], H200, frames=10)]
        assert make_plan(problem, H200).layout in layouts
        assert len(set(layouts)) == len(layouts)


def test_report_puts_the_fastest_first_and_what_is_wrong_last() -> None:
    outcomes = _outcomes()
    lines = report(outcomes, H200).splitlines()
    assert lines[0] == str(outcomes[0].trial.problem)
    assert lines[1].startswith(f"  {outcomes[-1].waiting:6.2f} us a step,   1.00 without waits")
    assert "WRONG, not timed" in lines[len(outcomes)]
    assert "y: error 1" in lines[len(outcomes)]
    assert sum("<- the model chooses this" in line for line in lines) <= 1


def test_the_entry_that_is_printed_makes_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = _outcomes()
    entry = report(outcomes, H200).splitlines()[-1]
    table = eval(f"{{{entry}}}", {"Problem": Problem, "Layout": Layout})
    monkeypatch.setattr(plan_module, "MEASURED", table)
    make_plan.cache_clear()
    plan = make_plan(outcomes[0].trial.problem, H200)
    make_plan.cache_clear()
    assert plan.layout == outcomes[-1].trial.plan.layout
    assert plan.reasons[-1] == "measured on this card"


def test_a_layout_that_cannot_be_launched_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("out of resource: shared memory")

    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("kernels.bench.layouts.check_waits", lambda _: None)
    monkeypatch.setattr("kernels.bench.layouts.Job.of", refuse)
    (trial, *_) = trials(problems("lstm", [512], [32]), H200, frames=2)
    assert measure(trial, 1).wrong == "MemoryError: out of resource: shared memory"


def test_a_lost_wait_is_booked_to_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: object) -> None:
        raise RuntimeError("waited in vain")

    (trial, *_) = trials(problems("lstm", [512], [32]), H200, frames=2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("kernels.bench.layouts.check_waits", lost)
    monkeypatch.setattr("kernels.bench.layouts._measure", lambda *_: Outcome(trial, 1.0, 1.0))
    assert measure(trial, 1).wrong == "waited in vain"


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layouts", "--json", "nowhere.jsonl"]) == 1
    assert capsys.readouterr().err.startswith("layouts: needs a GPU")
