"""The measurement of the blank plateau."""

import itertools
import sys
from pathlib import Path

import measure_plateau as script
import numpy as np
import pytest
import soundfile
import torch


def _collapsed(path: tuple[int, ...]) -> list[int]:
    return [unit for unit, _ in itertools.groupby(path) if unit != 0]


def test_paths_are_weighed_with_scores_that_are_not_normalised() -> None:
    log_probs = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    log_probs = log_probs.log_softmax(-1).requires_grad_()
    offset = torch.tensor([1.5, 0.0, -0.7], dtype=torch.double)
    labels = torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    (gradient,) = torch.autograd.grad(script.weighed_loss(log_probs, offset, *labels), log_probs)
    paths = [p for p in itertools.product(range(3), repeat=4) if _collapsed(p) == [1, 2]]
    scores = log_probs[:, 0] - offset
    weights = torch.stack([scores[range(4), path].sum() for path in paths])
    (expected,) = torch.autograd.grad(-weights.logsumexp(0), log_probs)
    torch.testing.assert_close(gradient, expected)


def test_every_objective_runs_and_the_same_seed_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path\ttranscript\tseconds"]
    for number, text in enumerate(("ab", "ba", "abba")):
        noise = np.random.default_rng(number).normal(0, 0.1, 16000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
        rows.append(f"{number}.wav\t{text}\t1.0")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    objectives = ["none", "none+flat=0", "flat=5+prior=0.3", "smooth=0.1", "penalty=0.5"]
    options = ["--unit", "character", "--seeds", "1", "--steps", "10", "--hidden", "4"]
    monkeypatch.setattr(sys, "argv", ["", str(manifest), *objectives, *options])
    script.main()
    table = capsys.readouterr().out.splitlines()[-len(objectives) :]
    cells = [line.split("|")[1:-1] for line in table]
    assert [row[0].strip() for row in cells] == objectives
    assert cells[0][1:] == cells[1][1:]


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown objective 'smoth'"):
        script.Objective("smoth=1", 5)
