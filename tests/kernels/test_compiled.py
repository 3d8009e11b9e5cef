"""Kernels compile ahead of time, and what their machine code does wrong is seen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.bench.compiled import TARGETS, main

Report = dict[tuple[str, str], dict[str, Any]]  # (toy, target) -> its entry


def compiling(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process where Triton does not interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=600,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    process = compiling(str(Path(__file__).with_name("compile_toys.py")))
    assert process.returncode == 0, process.stderr
    return {(entry["toy"], entry["target"]): entry for entry in json.loads(process.stdout)}


@pytest.mark.parametrize("target", TARGETS)
def test_a_sound_kernel_has_no_fault(report: Report, target: str) -> None:
    entry = report["right", target]
    assert entry["faults"] == []
    assert 0 < entry["registers"] <= 512
    assert entry["loop"]["spills"] == 0
    assert entry["loop"]["coherent_loads"] > 0
    gates = 16 * 16 * 2  # [B, SLICE] of bfloat16
    assert entry["loop"]["plain_bytes"] * entry["threads"] == gates


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("toy", "fault"),
    [
        ("reload", "loads 8704 bytes a step, needs 512"),  # 256 x 16 weights, and the gates
        ("stale", "loads 8704 bytes a step, needs 512"),  # 16 x 256 of h, and the gates
        ("l1", "hand-over is loaded through the L1 cache"),
        ("inner", "plain loads in a loop within the time loop"),
        ("spill", "spills"),
    ],
)
def test_planted_faults_are_seen(report: Report, toy: str, fault: str, target: str) -> None:
    assert any(found.startswith(fault) for found in report[toy, target]["faults"])


def test_spills_within_the_loop_are_counted(report: Report) -> None:
    assert all(report["spill", target]["loop"]["spills"] > 0 for target in TARGETS)


def test_every_target_is_disassembled(report: Report) -> None:
    assert all(entry["disassembled"] for entry in report.values())


def test_an_interpreting_triton_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "compile: Triton is interpreting: set TRITON_INTERPRET=0\n"


COMMAND = "import sys; from kernels.bench.compiled import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_every_kernel_of_the_package_is_faultless_on_hopper(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    process = compiling("-c", COMMAND, "--target", "sm_90", "--json", str(table))
    assert process.returncode == 0, process.stderr
    assert {row["target"] for row in json.loads(table.read_text())} == {"sm_90"}


@pytest.mark.slow
def test_kernels_compile_for_the_other_targets(tmp_path: Path) -> None:
    """Some of them still have faults there, which `kernels.bench compile` names; see README.md."""
    table = tmp_path / "table.json"
    compiling("-c", COMMAND, "--only", "H=512 B=16", "--json", str(table))
    rows = json.loads(table.read_text())
    assert {row["target"] for row in rows} == set(TARGETS)
    assert not [row for row in rows if "registers" not in row]
