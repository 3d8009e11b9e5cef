"""The benchmark commands on tiny shapes, and what they print, save and refuse."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kernels
from kernels import testing
from kernels.bench import grid, profile, recurrent, report, run, timing, torch_rivals
from kernels.bench.__main__ import main
from kernels.bench.job import Job
from kernels.bench.outside_rivals import onnx_graph
from kernels.bench.products import products
from kernels.bench.registry import BENCHMARKS, Benchmark, Rival, Shape
from kernels.bench.report import Record, load, save, table
from kernels.bench.timing import Timing, measure
from kernels.testing import packed_call

TINY = ["--batch", "3", "--frames", "5", "--input", "4", "--hidden", "3", "--repeats", "2"]
CELLS = ["--hidden", "3", "4", "--batch", "2", "--frames", "5", "--repeats", "1"]
CPU = torch.device("cpu")


def _record(**changes: Any) -> Record:
    timings = [
        Timing("theirs", "forward", 3.0, 2.0, 4.0, 5, 7.0),
        Timing("ours", "forward", 2.0, 1.0, 3.0, 5, 6.0),
    ]
    shape = {"batch": 1, "frames": 100, "hidden": 8, "layers": 2}
    record = Record("lstm", shape, {"card": "A card", "driver": None}, timings, {"forward": 1.0})
    return replace(record, **changes)


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_table_and_json(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    assert main([op, *TINY, "--threads", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    rivals = {f"nn.{op.upper()} packed", f"nn.{op.upper()} padded, fp32, not exact"}
    rivals.add("matrix products alone, fp32")
    assert all(rival in printed for rival in rivals)
    assert torch.cuda.is_available() or "no GPU here" in printed
    (record,) = load(path)
    assert record.shape["frames"] == 5
    for heading in ("forward", "forward + backward"):
        assert rivals <= {t.rival for t in record.timings if t.heading == heading}
        assert record.ours(heading).rival == f"kernels.{op.upper()} fp32"
    for one in record.timings:
        assert 0 < one.p10_ms <= one.median_ms <= one.p90_ms
    assert {"card", "torch", "triton", "commit", "date"} <= record.machine.keys()


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kernels.bench.outside_rivals.find_spec", lambda name: None)
    assert main(["lstm", *TINY]) == 0
    expected = "ONNX Runtime, fp32: not timed: not installed: onnx, onnxruntime"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_a_wrong_result_has_no_speed(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = kernels.LSTM.forward

    def a_bit_off(module: nn.LSTM, x: torch.Tensor, *more: Any) -> Any:
        if what == "output":
            y, final = right(module, x, *more)
            return y + 1e-3, final
        return right(module, x * 1.001 - x.detach() * 0.001, *more)

    monkeypatch.setattr(kernels.LSTM, "forward", a_bit_off)
    assert main(["lstm", *TINY]) == 1
    captured = capsys.readouterr()
    name = "y" if what == "output" else "dx"
    assert f"not timed, its result is wrong: {name}: error" in captured.err
    assert "median" not in captured.out


def test_a_precision_that_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("out of resource: shared memory")

    monkeypatch.setattr(recurrent, "assert_matches_torch", refuse)
    job = Job.of("LSTM", Shape(batch=3, frames=5, input=4, hidden=3), CPU)
    rival = recurrent.ours(job, CPU, recurrent.precisions(CPU)[-1])
    assert rival.wrong == "MemoryError: out of resource: shared memory"
    assert not rival.passes


def test_a_loss_that_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("out of resource: shared memory")

    monkeypatch.setattr("kernels.bench.ctc.ctc_loss", refuse)
    assert main(["ctc", "--batch", "2", "--frames", "5", "--vocabulary", "4", "--labels", "2"]) == 1
    expected = "its result is wrong: MemoryError: out of resource: shared memory\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_rival_that_refuses_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = testing.packed_call

    def refuse(module: nn.Module, x: torch.Tensor, *more: Any) -> Any:
        if x.dtype == torch.float32:
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        return packed(module, x, *more)

    monkeypatch.setattr(testing, "packed_call", refuse)
    job = Job.of("LSTM", Shape(batch=3, frames=5, input=4, hidden=3), CPU)
    assert not recurrent.ours(job, CPU, recurrent.precisions(CPU)[-1]).wrong


@pytest.mark.parametrize("where", ["building", "running"])
def test_a_rival_that_fails_does_not_stop_the_others(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Rival:
        raise RuntimeError("no kernel for this\nand a trace")

    def padded(job: Job, dtype: torch.dtype, name: str) -> Rival:
        return fail() if where == "building" else Rival(name, {"forward": fail})

    monkeypatch.setattr(torch_rivals, "padded", padded)
    assert main(["lstm", *TINY]) == 0
    out = capsys.readouterr().out
    why = "not timed: RuntimeError: no kernel for this\n"
    assert f"nn.LSTM padded, fp32, not exact: {why}" in out
    assert "nn.LSTM packed" in out


def test_a_wrong_variant_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rivals = [
        Rival("wrong", {}, wrong="y: error"),
        Rival("absent", {}, skipped="not installed"),
        Rival("right", {"forward": lambda: None}),
    ]
    monkeypatch.setitem(BENCHMARKS, "lstm", Benchmark(lambda shape, device: rivals, Shape, {}))
    assert main(["lstm", *TINY]) == 1
    captured = capsys.readouterr()
    assert captured.err == "wrong: not timed, its result is wrong: y: error\n"
    assert "absent: not timed: not installed" in captured.out
    assert "right" in captured.out


def test_the_floor_has_the_products_of_the_valid_frames() -> None:
    shape = Shape(batch=3, frames=6, input=5, hidden=4, layers=2)
    job = Job.of("GRU", shape, CPU)
    rows = int(job.lengths.sum())
    assert rows < 3 * 6
    a_product = 2 * rows * 3 * 4 * 2 * ((5 + 4) + (8 + 4))  # of each frame's 3 gates, 2 directions
    floor = products(job, "floor")
    for heading, share in (("forward", 1), ("forward + backward", 3)):
        with FlopCounterMode(display=False) as counter:
            floor.passes[heading]()
        assert counter.get_total_flops() == share * a_product


def test_rivals_take_turns() -> None:
    calls: list[str] = []
    rivals = [Rival(name, {"run": lambda name=name: calls.append(name)}) for name in "ab"]
    measure(rivals, CPU, repeats=2)
    assert "".join(calls) == "ab" + "abab"  # once untimed


def test_time_that_is_up_leaves_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    (one,) = measure([Rival("a", {"run": lambda: None})], CPU, repeats=50, seconds=0.0)
    assert one.repeats == timing.FEWEST


def test_summary_of_times() -> None:
    one = timing.summary("a", "run", [float(ms) for ms in range(11)], 2.0)
    assert one == Timing("a", "run", 5.0, 1.0, 9.0, 11, 2.0)


def test_kernels_alone_are_summed_over_the_launches_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def event(name: str, start: int, us: float) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, time_range=SimpleNamespace(start=start, elapsed_us=lambda: us)
        )

    class Profile:
        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> list[SimpleNamespace]:
            launches = [event("forward_kernel_0d1", n, us) for n, us in enumerate([1, 2, 3, 4])]
            return [*reversed(launches), event("gemm", 9, 50.0)]

    monkeypatch.setattr(profile.torch.profiler, "profile", lambda **_: Profile())
    monkeypatch.setattr(profile.torch.cuda, "synchronize", lambda: None)
    passes: dict[str, Any] = {"forward": lambda: None}
    alone = {"alone": ("forward", "forward_kernel"), "none": ("forward", "backward_kernel")}
    (one,) = profile.measure_kernels([Rival("ours", passes, alone)], repeats=2)
    assert (one.heading, one.repeats) == ("alone", 2)
    assert one.median_ms == pytest.approx((3 + 7) / 2 / 1000)


def test_table_compares_with_the_last() -> None:
    lines = table(_record(skipped={"other": "not installed"})).splitlines()
    assert lines[0].split("  ")[-1] == "x ours"
    assert lines[1].split() == [
        *["forward", "theirs", "3.00", "ms", "2.00", "ms", "4.00", "ms"],
        *["15.00", "7%", "7", "MiB", "1.50"],
    ]
    assert lines[2].endswith("10.00       10%  6 MiB    1.00")
    assert lines[3] == "other: not timed: not installed"
    assert "not measured" in lines[4]


def test_no_floor_where_there_is_no_model() -> None:
    printed = table(_record(floor_us={}))
    assert "floor" not in printed


def test_records_survive_their_file(tmp_path: Path) -> None:
    save(tmp_path / "one", _record())
    report.append(tmp_path / "one", _record(op="gru"))
    assert load(tmp_path / "one") == [_record(), _record(op="gru")]


def _changed(place: str, value: object) -> str:
    """A record's line with something else in a place such as `timings.0.median_ms`."""
    content = part = json.loads(json.dumps(asdict(_record())))
    *way, last = place.split(".")
    for step in way:
        part = part[int(step) if step.isdigit() else step]
    part[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    "content",
    [
        *("{", '{"op": "lstm"}', "[]", '{"timings": [{}]}'),
        *(_changed("shape", shape) for shape in ({}, [], {"batch": 1, "frames": 0})),
        *(_changed("op", 3), _changed("machine", None), _changed("floor_us", {"forward": "1"})),
        *(_changed("timings.0.median_ms", "3"), _changed("timings.1.heading", None)),
    ],
)
def test_what_is_no_record_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    path.write_text(content, encoding="utf-8")
    assert main(["picture", str(path), str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert "line 1: expected a record of kernels.bench" in error
    assert len(error.splitlines()) == 1


def test_grid_has_every_cell_and_the_most_telling_first() -> None:
    cells = grid.Grid(["lstm"]).cells()
    assert cells[0] == ("lstm", Shape(batch=32, frames=400, input=1024, hidden=512))
    assert len({(c.hidden, c.batch, c.frames) for _, c in cells}) == len(cells) == 4 * 4 * 3


def test_grid_saves_each_cell_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.jsonl"
    seen: list[int] = []

    def scripted(op: str, shape: Shape, *_: Any) -> Record:
        seen.append(len(load(path)) if path.exists() else 0)
        if shape.hidden == 3:
            raise RuntimeError("CUDA out of memory")
        return _record(op=op)

    monkeypatch.setattr(grid, "run", scripted)
    assert main(["grid", *CELLS, "--op", "lstm", "gru", "--json", str(path)]) == 1
    assert seen == [0, 0, 0, 1]
    assert [record.op for record in load(path)] == ["lstm", "gru"]
    captured = capsys.readouterr()
    assert "gru H=3 B=2 T=5: not timed: CUDA out of memory" in captured.err
    assert "ours 2.00 ms, 10.00 us/step; 1.50 x theirs" in captured.out


def test_grid_keeps_to_its_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(grid.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(grid, "run", lambda *_: _record())
    assert main(["grid", *CELLS, "--seconds", "1", "--json", str(tmp_path / "g")]) == 0
    assert len(load(tmp_path / "g")) == 1
    assert "1 cells not timed" in capsys.readouterr().out


def test_picture_of_a_grid(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shapes = [
        {"batch": B, "frames": T, "hidden": H} for B in (1, 2) for T in (3, 4) for H in (5, 6)
    ]
    for shape in shapes:
        report.append(tmp_path / "g.jsonl", _record(shape=shape))
    assert main(["picture", str(tmp_path / "g.jsonl"), str(tmp_path / "g.png")]) == 0
    assert (tmp_path / "g.png").read_bytes()[:4] == b"\x89PNG"


def test_matplotlib_is_imported_for_the_picture_only() -> None:
    code = "import sys, kernels.bench.__main__; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_onnx_graph_is_the_same_function(name: str) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    module = getattr(nn, name)(5, 7, 2, bidirectional=True)
    x, lengths = torch.randn(9, 3, 5), torch.tensor([9, 4, 6])
    session = runtime.InferenceSession(onnx_graph(module, name), providers=["CPUExecutionProvider"])
    got = session.run(["y"], {"x0": x.numpy(), "lengths": lengths.int().numpy()})[0]
    expected = packed_call(module, x, None, lengths)[0]
    # 9 steps of two layers, sums of at most 14 terms.
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=4e-6)


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.bench.machine.shutil.which", lambda name: None)
    assert run.machine(CPU)["commit"] is None


def test_saved_lines_are_json(tmp_path: Path) -> None:
    save(tmp_path / "one", _record())
    assert json.loads((tmp_path / "one").read_text(encoding="utf-8"))["op"] == "lstm"


def test_a_stack_is_timed_in_the_mode_of_its_pass() -> None:
    """cuDNN keeps what a backward pass needs wherever a module is in training mode."""
    job = Job.of("LSTM", Shape(2, 3, 4, 5), CPU)
    modes: list[bool] = []

    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        modes.append(job.theirs.training)
        return [job.theirs(x)[0]]

    rival = job.rival("one", [job.theirs], forward)
    modes.clear()
    for _ in range(3):
        rival.passes["forward"]()
        rival.passes["forward + backward"]()
    assert modes == [False, True] * 3


def test_inputs_change_from_run_to_run() -> None:
    job = Job.of("LSTM", Shape(2, 3, 4, 5), CPU)
    seen: list[int] = []

    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        seen.append(x.data_ptr())
        return [job.theirs(x)[0]]

    rival = job.rival("one", [job.theirs], forward)
    seen.clear()
    for _ in range(len(job.inputs) + 1):
        rival.passes["forward"]()
    assert len(set(seen)) == len(job.inputs) > 1
    assert seen[0] == seen[-1]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_cards_precisions_and_rivals_run_on_a_cpu_too(name: str) -> None:
    """All but autocast, streams and cuDNN itself, so that a card finds no misspelt name."""
    job = Job.of(name, Shape(3, 5, 4, 6), CPU)
    precisions = [p for p in recurrent.precisions(torch.device("cuda")) if p.autocast is None]
    assert [p.name for p in precisions] == ["fp32 (ieee)", "fp32 (tf32)", "fp16", "bf16"]
    rivals = [recurrent.ours(job, CPU, precision) for precision in precisions]
    rivals += [
        torch_rivals.padded(job, torch.float16, "padded", cudnn=False),
        torch_rivals.two_directions(job, "apart", streams=False),
    ]
    assert not any(rival.wrong for rival in rivals)
    headings = {timing.heading for timing in measure(rivals, CPU, repeats=1)}
    assert headings == {"forward", "forward + backward"}
    assert rivals[3].kernels.keys() | headings == recurrent.FLOOR_US.keys()
