"""The benchmark command on a tiny shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels
from kernels.bench.__main__ import main
from kernels.bench.registry import Rival
from kernels.bench.report import table
from kernels.bench.timing import Timing, measure

TINY = ["--batch", "3", "--frames", "5", "--input", "4", "--hidden", "3", "--repeats", "2"]


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_table_and_json(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    assert main([op, *TINY, "--threads", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    name = op.upper()
    rivals = [f"nn.{name} packed", f"nn.{name} padded, not exact", f"kernels.{name}"]
    assert all(rival in printed for rival in rivals)
    assert torch.cuda.is_available() or "no GPU here" in printed
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["shape"]["frames"] == 5
    assert [(t["heading"], t["rival"]) for t in saved["timings"]] == [
        (heading, rival) for heading in ("forward + backward", "inference") for rival in rivals
    ]
    for timing in saved["timings"]:
        assert 0 < timing["p10_ms"] <= timing["median_ms"] <= timing["p90_ms"]


def test_a_wrong_result_has_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = kernels.LSTM.forward

    def a_bit_off(*arguments: Any) -> Any:
        y, final = right(*arguments)
        return y + 1e-3, final

    monkeypatch.setattr(kernels.LSTM, "forward", a_bit_off)
    assert main(["lstm", *TINY]) == 1
    captured = capsys.readouterr()
    assert "not timed, its result is wrong: y: error" in captured.err
    assert "median" not in captured.out


def test_rivals_take_turns() -> None:
    calls: list[str] = []
    rivals = [Rival(name, {"run": lambda name=name: calls.append(name)}) for name in "ab"]
    measure(rivals, torch.device("cpu"), repeats=2)
    assert "".join(calls) == "ab" + "abab"  # once untimed


def test_table_compares_with_the_last() -> None:
    lines = table(
        [Timing("theirs", "run", 3.0, 2.0, 4.0, 5), Timing("ours", "run", 2.0, 1.0, 3.0, 5)]
    ).splitlines()
    assert lines[1].split() == ["run", "theirs", "3.0", "ms", "2.0", "ms", "4.0", "ms", "1.50"]
    assert lines[2].endswith("1.00")
