"""The sample recording."""

import shutil
import sys
from pathlib import Path

import make_sample as script
import pytest
import soundfile

from asr.text import normalize

DOCS = Path(__file__).parents[2] / "docs"


def test_the_sample_in_docs_is_what_the_script_says() -> None:
    text = (DOCS / "sample.txt").read_text()
    assert text == normalize(" ".join(script.SENTENCES)) + "\n"
    info = soundfile.info(DOCS / "sample.flac")
    assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
    assert 6 <= info.duration <= 8
    assert (DOCS / "sample.flac").stat().st_size < 200_000


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is missing")
def test_the_script_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "sample.flac"
    monkeypatch.setattr(sys, "argv", ["make_sample", "--out", str(out)])
    script.main()
    made, kept = soundfile.info(out), soundfile.info(DOCS / "sample.flac")
    # Another release of espeak-ng may speak a little differently.
    assert abs(made.duration - kept.duration) < 1
    assert out.with_suffix(".txt").read_text() == (DOCS / "sample.txt").read_text()


def test_without_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["make_sample", "--out", str(tmp_path / "sample.flac")])
    with pytest.raises(SystemExit, match="make_sample: espeak-ng is not installed"):
        script.main()
    assert not list(tmp_path.iterdir())
