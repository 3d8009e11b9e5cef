"""Every command the README shows is run, each block in a copy of the repository of its own.

Comments right before a ```bash or ```python block say how:

    <!-- test: skip REASON -->       not run, for this reason (needs a corpus, a GPU, hours)
    <!-- test: after COMMAND -->     COMMAND is run before it, such as one that makes a stand-in
    <!-- test: replace OLD => NEW -->    the block is run with NEW for OLD: fewer steps, say

In the copy `.venv` is the environment that runs the tests, and it is active.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
COMMENT = re.compile(r"<!-- test: (\w+) ?(.*?) -->")
BLOCK = re.compile(
    rf"^(?P<comments>(?:{COMMENT.pattern}\n+)*)```(?P<language>bash|python)\n(?P<script>.*?)^```$",
    re.M | re.S,
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)")
SECONDS = 600


@dataclass(frozen=True)
class Block:
    """A block of commands as it is to be run; a `skip` reason means not at all."""

    language: str
    script: str
    before: str = ""
    skip: str = ""

    def __str__(self) -> str:
        return self.script.strip().splitlines()[0]


def blocks_of(text: str) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(text):
        script, before, skip = match["script"], "", ""
        for kind, rest in COMMENT.findall(match["comments"]):
            if kind == "skip" and rest:
                skip = rest
            elif kind == "after" and rest:
                before += rest + "\n"
            elif kind == "replace" and " => " in rest:
                old, new = rest.split(" => ")
                if old not in script:
                    raise ValueError(f"README: {old!r} is not in the block {script!r}")
                script = script.replace(old, new)
            else:
                raise ValueError(f"README: <!-- test: {kind} {rest} --> is not known, see above")
        blocks.append(Block(match["language"], script, before, skip))
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks_of(TEXT), ids=str)
def test_commands_run(block: Block, tmp_path: Path) -> None:
    if block.skip:
        pytest.skip(block.skip)
    copy = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "data", "exp")
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / ".venv").symlink_to(sys.prefix)
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    _run(["bash", "-euo", "pipefail", "-c", block.before], copy, environment)
    interpreter = ["bash", "-euo", "pipefail"] if block.language == "bash" else ["python"]
    _run([*interpreter, "-c", block.script], copy, environment)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    run = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, f"{command[-1]}\n{run.stdout}"


def test_links_lead_somewhere() -> None:
    targets = {first or second for first, second in LINK.findall(TEXT)}
    local = {target for target in targets if "://" not in target}
    assert sorted(target for target in local if not (ROOT / target).exists()) == []


def test_comments_change_what_is_run() -> None:
    text = (
        "Install\n<!-- test: skip done by .ci/run -->\n```bash\npip install .\n```\n"
        "<!-- test: after touch a -->\n<!-- test: replace 900 => 2 -->\n\n"
        "```bash\nasr train --steps 900\nls\n```\n```text\nno command\n```\n"
        "```python\nimport asr\n```\n"
    )
    assert blocks_of(text) == [
        Block("bash", "pip install .\n", skip="done by .ci/run"),
        Block("bash", "asr train --steps 2\nls\n", before="touch a\n"),
        Block("python", "import asr\n"),
    ]


@pytest.mark.parametrize("comment", ["skip", "skp reason", "replace 800 => 2", "replace 900"])
def test_a_comment_that_cannot_be_obeyed_is_an_error(comment: str) -> None:
    with pytest.raises(ValueError, match="README"):
        blocks_of(f"<!-- test: {comment} -->\n```bash\nasr train --steps 900\n```\n")
