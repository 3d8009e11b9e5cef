"""What becomes of a call before a GPU gets it: arguments are bound, kernels compiled.

Ahead-of-time compilation says itself what it compiles; here Triton finds out from the arguments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.backends.triton.plan import DEVICES

Report = dict[str, Any]
RECURRENT = ["lstm bf16", "gru fp16", "rnn_relu fp32", "peepholes, recomputed"]
RECURRENT += ["gru, recomputed, recurrent dropout", "one of everything", "two groups"]


@pytest.fixture(scope="module")
def report() -> Report:
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pretend_gpu.py"))],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"TRITON_INTERPRET": "0"},
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    found: Report = json.loads(process.stdout)
    return found


@pytest.mark.parametrize("case", RECURRENT)
def test_a_layer_is_one_launch_each_way(report: Report, case: str) -> None:
    launches = report[case]
    assert [launch["kernel"] for launch in launches] == ["forward_kernel", "backward_kernel"]
    for launch in launches:  # or programs wait for one that has no place
        assert launch["cooperative"]
        assert 0 < launch["programs"] <= DEVICES["h200"].processors


def test_the_loss_is_five_launches_of_any_shape(report: Report) -> None:
    kernels = [launch["kernel"].removesuffix("_kernel") for launch in report["ctc"]]
    assert kernels == ["prepare", "emit", "recur", "occupy", "gradient"]
    assert not any(launch["cooperative"] for launch in report["ctc"])


def test_alignment_and_search_wait_for_nothing(report: Report) -> None:
    assert [launch["kernel"] for launch in report["align"]] == ["_viterbi"]
    kernels = [launch["kernel"] for launch in report["search"]]
    assert kernels == ["search_kernel", "trace_kernel"]


@pytest.mark.parametrize("called", ["lstm bf16", "lstm fp32", "ctc", "align", "search"])
def test_other_lengths_batches_and_addresses_compile_nothing(report: Report, called: str) -> None:
    """Each compilation is a second or more in which a training stands still."""
    assert report[f"{called} compiled again"] == 0
