import json
from pathlib import Path

from matplotlib.figure import Figure

from asr.checkpoint import EpochScore
from asr.train_log import TrainingLog


def test_what_a_kill_or_a_power_failure_left_of_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"step": 1}\n\0\0\0\0\n\xff\xfe\n[2]\n{"step": "2"}\n{"step": 2}\n{"step": 3}\n{"st'
    )
    with TrainingLog(tmp_path, "PER") as log:
        log.rewind(2, 0)
        log.record(step=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_the_curves_show_a_first_epoch_and_errors_beyond_all_words(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: path.touch() or figures.append(self)
    )
    TrainingLog(tmp_path, "WER").plot([EpochScore(0, 10, 3.0, 4.0, 1.2, 1.0)])
    loss, rate = figures[0].axes
    assert all(line.get_marker() == "." for axes in (loss, rate) for line in axes.lines)
    assert [tick for tick in loss.get_xticks() if abs(tick) < 1] == [0]
    assert rate.get_ylim()[1] > 120
