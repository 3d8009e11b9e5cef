"""scripts/gpu_check with a python3 that does nothing but say so: order, limits, failures."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check"
TESTS = ["card", "repeat", "recurrence", "ctc_tests"]
SPEEDS = ["grid", "ctc", "gru", "picture"]

PYTHON = """#!/bin/sh
echo "python3 $*" >>"$CALLS"
case "$*" in
    *find_spec*) case "$MISSING" in "") exit 0;; *) case "$*" in *"'$MISSING'"*) exit 1;; esac; exit 0;; esac;;
esac
case "$*" in *"${FAILING:-nothing}"*) echo broken; exit "${STATUS:-3}";; esac
exit 0
"""  # noqa: E501
TIMEOUT = """#!/bin/sh
echo "timeout $3" >>"$CALLS"
shift 3
exec "$@"
"""
SANITIZER = """#!/bin/sh
echo "$*" >>"$CALLS"
"""


class Run:
    def __init__(
        self,
        tmp_path: Path,
        *arguments: str,
        sanitizer: bool = False,
        real_timeout: bool = False,
        python: str = PYTHON,
        **env: str,
    ):
        tools = tmp_path / "tools"
        tools.mkdir()
        programs = {"python3": python}
        if not real_timeout:
            programs["timeout"] = TIMEOUT
        if sanitizer:
            programs["compute-sanitizer"] = SANITIZER
        for name, code in programs.items():
            (tools / name).write_text(code, encoding="utf-8")
            (tools / name).chmod(0o755)
        calls = tmp_path / "calls"
        environment = {"PATH": f"{tools}:{os.defpath}", "CALLS": str(calls), "MISSING": "", **env}
        command = [str(SCRIPT), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        self.status = done.returncode
        self.lines = done.stdout.splitlines()
        self.calls = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []

    def steps(self, how: str) -> list[str]:
        names = [line.removeprefix(how).split(",")[0].strip() for line in self.lines]
        return [name for name, line in zip(names, self.lines, strict=True) if line.startswith(how)]


def test_all_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, "here")
    assert run.status == 0
    assert run.steps("ok") == [*TESTS, *SPEEDS]
    assert run.lines[-1].endswith("0 failed: none")
    assert (tmp_path / "here" / "summary.txt").read_text().splitlines() == run.lines


def test_all_limits_together_are_within_ten_minutes(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", sanitizer=True)
    assert run.steps("ok") == [*TESTS, "memcheck", "racecheck", *SPEEDS]
    assert any(call.startswith("--tool racecheck --error-exitcode") for call in run.calls)
    limits = [int(call.split()[1]) for call in run.calls if call.startswith("timeout")]
    assert len(limits) == len(run.steps("ok"))
    assert sum(limits) < 10 * 60


@pytest.mark.parametrize(
    ("failing", "step"),
    [("test_gpu_repeat.py", "repeat"), (" grid ", "grid"), ("bench ctc", "ctc")],
)
def test_goes_on_where_a_step_fails(failing: str, step: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "here", FAILING=failing)
    assert run.status == 1
    assert step in run.steps("FAILED")
    assert run.steps("ok")[-1] == "picture"
    assert "broken" in (tmp_path / "here" / "log.txt").read_text()
    assert step in run.lines[-1].split(": ")[1].split()


def test_a_step_that_takes_too_long_has_failed(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", FAILING="bench grid", STATUS="124")
    assert run.status == 1
    assert run.steps("TOO LONG") == ["grid"]
    assert run.lines[-1].endswith("1 failed: grid")


def test_without_a_card_it_ends_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", FAILING="is_available")
    assert run.status == 1
    assert run.steps("ok") == []
    assert "no GPU" in run.lines[-1]


def test_without_pytest_the_speeds_are_still_taken(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", MISSING="pytest")
    assert run.status == 1
    assert "FAILED   tests: python3 has no pytest" in run.lines
    assert "grid" in run.steps("ok")


def test_workers_only_with_xdist(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert any("-n 12" in call for call in Run(tmp_path / "a", "x").calls)
    assert not any("-n 12" in call for call in Run(tmp_path / "b", "x", MISSING="xdist").calls)


def test_the_folder_is_an_argument_or_out_or_gpu_check(tmp_path: Path) -> None:
    for name, arguments, env in (
        ("a", ["a"], {"OUT": "b"}),
        ("b", [], {"OUT": "b"}),
        ("gpu_check", [], {}),
    ):
        place = tmp_path / f"in_{name}"
        place.mkdir()
        assert Run(place, *arguments, **env).status == 0
        assert (place / name / "summary.txt").exists()


def test_some_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", "grid", "recurrence")
    assert run.steps("ok") == ["card", "recurrence", "grid"]


def test_steps_that_are_named_may_take_longer(tmp_path: Path) -> None:
    def limits(run: Run) -> list[int]:
        return [int(call.split()[1]) for call in run.calls if call.startswith("timeout")]

    (tmp_path / "all").mkdir()
    card, *_, picture = limits(Run(tmp_path / "all", "here"))
    assert limits(Run(tmp_path, "here", "picture")) == [3 * card, 3 * picture]


def test_the_recogniser_only_where_it_is_named(tmp_path: Path) -> None:
    """Its dependencies are not on every machine with a card."""
    run = Run(tmp_path, "here", "asr", "training")
    assert run.steps("ok") == ["card", "asr", "training"]
    assert any("tests/asr/test_gpu.py" in call for call in run.calls)
    assert any("bench-training recipes/librispeech_960_bpe.toml" in call for call in run.calls)
    assert (tmp_path / "here" / "training.json").exists()


def test_a_step_that_there_is_not_is_a_failure(tmp_path: Path) -> None:
    run = Run(tmp_path, "here", "grids", "ctc", "memcheck")
    assert run.status == 1
    assert run.steps("ok") == ["card", "ctc"]
    assert run.lines[-1].endswith("2 failed: grids memcheck")


def test_an_old_grid_stays_for_its_picture(tmp_path: Path) -> None:
    grid = tmp_path / "here" / "grid.jsonl"
    grid.parent.mkdir()
    grid.write_text("{}\n", encoding="utf-8")
    assert Run(tmp_path, "here", "picture").steps("ok") == ["card", "picture"]
    assert grid.exists()


def test_what_a_step_leaves_running_is_killed(tmp_path: Path) -> None:
    left = tmp_path / "left"
    leaves = f"""#!/bin/sh
case "$*" in *find_spec*) exit 0;; esac
sleep 60 & echo $! >{left}
"""
    run = Run(tmp_path, "here", "grid", real_timeout=True, python=leaves)
    assert run.steps("ok") == ["card", "grid"]
    state = Path(f"/proc/{left.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_an_old_grid_is_not_added_to(tmp_path: Path) -> None:
    old = tmp_path / "here" / "grid.jsonl"
    old.parent.mkdir()
    old.write_text("{}\n", encoding="utf-8")
    Run(tmp_path, "here")
    assert not old.exists()
