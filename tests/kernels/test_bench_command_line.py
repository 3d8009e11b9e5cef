"""The benchmark's command lines that measure nothing: plans, and what is refused in one line."""

import pytest

from kernels.bench.__main__ import main
from kernels.bench.explain import explain


def test_plan_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--hidden", "512", "--batch", "32", "--device", "h200"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("lstm H=512 B=32 bf16, directions: 2, on H200\nforward: ")
    assert "\nbackward: " in printed
    assert "processors" in printed


def test_every_choice_of_plan_exists() -> None:
    from kernels.bench.__main__ import _parser
    from kernels.bench.explain import CARDS, DTYPES

    options = ["plan", "--hidden", "64", "--batch", "3"]
    for card in CARDS:
        _parser().parse_args([*options, "--device", card])
    for dtype in DTYPES:
        assert _parser().parse_args([*options, "--dtype", dtype]).dtype == dtype
        assert "\nforward: " in explain("gru", 3, 64, 1, dtype, "a100")


def test_a_name_that_no_specimen_has_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kernels.bench import compiled

    monkeypatch.setattr(compiled.triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(compiled, "specimens", list)
    with pytest.raises(SystemExit) as exit:
        compiled.main(["--only", "zzzz"])
    assert exit.value.code == 2
    assert "error: no specimen with 'zzzz' in its name" in capsys.readouterr().err


def test_compile_takes_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.bench import compiled

    monkeypatch.setattr(compiled, "main", lambda arguments: len(arguments))
    assert main(["compile", "--target", "sm_90", "--only", "lstm"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["lstm", "--batch", "0"], "--batch: must be a whole number of at least 1, got '0'"),
        (
            ["lstm", "--hidden", "many"],
            "--hidden: must be a whole number of at least 1, got 'many'",
        ),
        (
            ["ctc", "--vocabulary", "1"],
            "--vocabulary: must be a whole number of at least 2, got '1'",
        ),
        *(
            (
                [*command, "--json", path],
                f"--json: must be a file in a folder that exists, got {path!r}",
            )
            for command in (["lstm"], ["grid"], ["layouts"], ["compile"])
            for path in ("no/such/folder.json", ".")
        ),
        (["lstm", "--wings", "2"], "unrecognized arguments: --wings 2"),
        (["plan", "--hidden", "512", "--batch", "2", "--device", "abacus"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_a_bad_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
