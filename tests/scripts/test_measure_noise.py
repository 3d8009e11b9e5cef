"""The noises are such, alike each time, and counted by whether words come of them."""

from types import SimpleNamespace

import measure_noise
import pytest
import torch


def test_noises_are_the_same_each_time_and_within_full_scale() -> None:
    first, second = list(measure_noise.noises(1)), list(measure_noise.noises(1))
    assert len(first) == 3 * len(measure_noise.KINDS)
    for (name, samples), (again, others) in zip(first, second, strict=True):
        assert name == again
        assert torch.equal(samples, others)
        assert samples.isfinite().all()
        assert 0.01 < samples.abs().max() <= 1
    assert {len(samples) for _, samples in first} == {16000, 48000, 160000}


def test_those_with_words_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["HO", "HOHO", ""])
    given = []

    def load_model(**options: float) -> SimpleNamespace:
        given.append(options)
        return SimpleNamespace(
            transcribe_waveform=lambda samples: SimpleNamespace(text=next(said, ""))
        )

    monkeypatch.setattr(measure_noise, "load_model", load_model)
    monkeypatch.setattr("sys.argv", ["measure_noise.py", "--min-confidence", "0.3"])
    measure_noise.main()
    lines = capsys.readouterr().out.splitlines()
    assert given == [{"min_confidence": 0.3}]
    assert lines[0].split() == ["hum", "2", "of", "9", "HOHO"]
    assert lines[-1].split() == ["together", "2", "of", "117"]
