import json
from pathlib import Path

from asr.train_log import TrainingLog


def test_what_a_kill_or_a_power_failure_left_of_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n\0\0\0\0\n{"step": 2}\n{"step": 3}\n{"st')
    with TrainingLog(tmp_path, "PER") as log:
        log.rewind(2, 0)
        log.record(step=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
