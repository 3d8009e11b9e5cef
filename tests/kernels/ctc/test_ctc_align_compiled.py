"""The alignment kernel, compiled ahead of time: within the registers on every size of block.

Compiling for a card needs none, but a process in which Triton does not interpret.
"""

import os
import subprocess
import sys

import pytest

COMPILE = """
import re, subprocess, sys, tempfile
from pathlib import Path
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.ctc.align_triton import _viterbi, num_warps

architecture, block = map(int, sys.argv[1:])
types = dict.fromkeys(_viterbi.arg_names, "i32")
types |= dict(log_probs="*fp32", scores="*fp32", choices="*u8", BLOCK="constexpr")
types |= dict.fromkeys(["targets", "input_lengths", "target_lengths", "states"], "*i64")
source = ASTSource(_viterbi, types, {"BLOCK": block})
target = GPUTarget("cuda", architecture, 32)
compiled = triton.compile(source, target=target, options={"num_warps": num_warps(block)})
tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    Path(file.name).write_bytes(compiled.asm["cubin"])
    usage = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
print(*re.findall(r"(?:STACK|LOCAL):\\d+", usage))
"""


@pytest.mark.parametrize(("architecture", "block"), [(80, 64), (90, 64), (90, 4096), (100, 1024)])
def test_nothing_spills(architecture: int, block: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), str(block)],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["STACK:0", "LOCAL:0"], run.stderr
