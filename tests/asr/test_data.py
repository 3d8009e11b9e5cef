import gzip
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from asr.audio import read_audio
from asr.config import AugmentConfig
from asr.data import Entry, Loader, Utterance, plan_batches, read_manifest
from asr.errors import AudioError, DataError

SPEEDS = (0.9, 1.0, 1.1)


@given(
    st.lists(st.floats(0.1, 30), min_size=1, max_size=200),
    st.floats(1, 100),
    st.integers(1, 50),
    st.integers(0, 5),
)
@settings(max_examples=50)
def test_a_plan_holds_everything_once_within_the_caps(seconds, max_seconds, most, epoch):
    plan = plan_batches(seconds, SPEEDS, max_seconds, most, 1, epoch)
    assert Counter(entry.index for batch in plan for entry in batch) == Counter(range(len(seconds)))
    for batch in plan:
        assert 1 <= len(batch) <= most
        longest = max(seconds[entry.index] / entry.speed for entry in batch)
        assert len(batch) == 1 or longest * len(batch) <= max_seconds * (1 + 1e-9)


def test_a_plan_is_a_function_of_seed_and_epoch():
    seconds = [1 + k * 0.37 % 5 for k in range(100)]
    first = plan_batches(seconds, SPEEDS, 20, 16, 1, 3)
    assert first == plan_batches(seconds, SPEEDS, 20, 16, 1, 3)
    assert first != plan_batches(seconds, SPEEDS, 20, 16, 1, 4)
    assert first != plan_batches(seconds, SPEEDS, 20, 16, 2, 3)


def test_little_padding():
    rng = np.random.default_rng(0)
    seconds = list(rng.uniform(1, 20, 2000))
    plan = plan_batches(seconds, (1.0,), 120, 64, 1, 0)
    padded = sum(len(b) * max(seconds[e.index] for e in b) for b in plan)
    assert sum(seconds) / padded > 0.93


@pytest.fixture
def utterances(tmp_path):
    made = []
    for k in range(6):
        path = tmp_path / f"{k}.wav"
        samples = np.random.default_rng(k).normal(0, 0.1, 8000 + 500 * k)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        made.append(Utterance(str(k), str(path), len(samples) / 16000, "A", "s"))
    return made


def test_batches_come_in_the_planned_order_whatever_the_threads(utterances):
    targets = [[k, k + 1] for k in range(6)]
    plan = [[Entry(0, 1.0), Entry(3, 0.9)], [Entry(5, 1.1)], [Entry(1, 1.0), Entry(2, 1.0)]]
    config = AugmentConfig(noise_probability=0.7, level=3.0)
    runs = [
        list(Loader(utterances, targets, 16000, w, config, seed=1).batches(plan, epoch=2))
        for w in (1, 3)
    ]
    for one, three in zip(*runs, strict=True):
        assert torch.equal(one.waveforms, three.waveforms)
        assert one.ids == three.ids
    assert [batch.ids for batch in runs[0]] == [("0", "3"), ("5",), ("1", "2")]
    assert runs[0][0].targets.tolist() == [0, 1, 3, 4]
    assert runs[0][0].lengths.tolist() == [8000, -(-9500 * 10 // 9)]


def test_audio_comes_at_the_rate_that_is_asked_for(utterances):
    batch = Loader(utterances, [[1]] * 6, 8000, 1).load([Entry(2, 1.0)])
    assert batch.lengths.tolist() == [4500]
    expected = read_audio(utterances[2].audio, 8000)
    assert torch.equal(batch.waveforms[0], expected)


def test_resuming_a_plan_gives_the_same_rest(utterances):
    loader = Loader(utterances, [[1]] * 6, 16000, 2, AugmentConfig(noise_probability=1.0), 3)
    plan = plan_batches([u.seconds for u in utterances], SPEEDS, 1.2, 2, 3, 0)
    whole = list(loader.batches(plan))
    rest = list(loader.batches(plan[2:]))
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.waveforms, b.waveforms)


def test_an_unreadable_file_is_named(utterances, tmp_path):
    broken = Utterance("x", str(tmp_path / "none.wav"), 1.0, "A", "s")
    with pytest.raises(AudioError, match=r"none\.wav"):
        next(Loader([broken], [[1]], 16000, 1).batches([[Entry(0, 1.0)]]))


@pytest.mark.parametrize("samples", [100, 5000, 12000])
def test_a_file_that_has_changed_since_its_manifest_is_named(utterances, samples):
    soundfile.write(utterances[1].audio, np.zeros(samples), 16000)
    loader = Loader(utterances, [[1]] * 6, 16000, 1)
    with pytest.raises(AudioError, match=r"1.wav: is .* expected 0.53 s as in the manifest"):
        loader.load([Entry(0, 1.0), Entry(1, 1.0)])


def test_tsv(tmp_path):
    path = tmp_path / "set.tsv"
    path.write_text("path\ttranscript\tseconds\na.wav\tIt's  a “test”\t1.5\n")
    assert read_manifest(path) == [
        Utterance("a.wav", str(tmp_path / "a.wav"), 1.5, "IT'S A TEST", "")
    ]


def test_a_table_of_a_spreadsheet(tmp_path):
    """With a byte order mark, carriage returns, and its suffix in capitals."""
    path = tmp_path / "set.TSV"
    path.write_bytes("\ufeffpath\ttranscript\r\na.wav\tA\r\n".encode())
    assert [(u.id, u.text) for u in read_manifest(path)] == [("a.wav", "A")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\ttext\n", "columns path and transcript, got file, text"),
        ("path\ttranscript\na.wav\n", ":2: no transcript in this line"),
        ("path\ttranscript\na.wav\tA\tB\n", ":2: more cells than the 2 columns"),
        ("path\ttranscript\n", "no utterance"),
        ("path\ttranscript\tseconds\na.wav\tA\tlong\n", ":2: expected seconds as a number"),
        ("path\ttranscript\na.wav\tcaf\xe9\n", "table in UTF-8, got"),
        ("path\ttranscript\na.wav\t" + 200_000 * "A", "tab-separated table"),
    ],
    ids=range(7),
)
def test_bad_tsv(tmp_path, text, message):
    path = tmp_path / "set.tsv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        read_manifest(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(5, "as text, got 5"), ("we call it медведь", "in letters of A-Z, got МЕДВЬ as well; write")],
)
def test_a_transcript_is_text_that_can_be_heard(utterances, tmp_path, text, message):
    recording = Recording.from_file(utterances[0].audio)
    cut = recording.to_cut()
    cut.supervisions = [SupervisionSegment("a", recording.id, 0.0, recording.duration, text=text)]
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(DataError, match=f"expected a transcript {message}"):
        read_manifest(tmp_path / "cuts.jsonl")


def test_letters_that_are_none_of_ours_are_named_with_their_line(tmp_path):
    path = tmp_path / "set.tsv"
    path.write_text("path\ttranscript\na.wav\tÉTÉ\nb.wav\tŁódź in шлюз\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"set.tsv:3: expected a transcript .*, got ŁШЛЮЗ as well"):
        read_manifest(path)


def test_a_part_of_a_recording_is_no_utterance(utterances, tmp_path):
    """Only whole files are read: a cut's times would be passed over in silence."""
    recording = Recording.from_file(utterances[0].audio)
    path = tmp_path / "cuts.jsonl"
    seconds = recording.duration
    supervision = SupervisionSegment("a", recording.id, 0.0, seconds, text="A")
    whole = MonoCut("a", 0.0, seconds, 0, [supervision], recording=recording)
    half, late = whole.truncate(duration=seconds / 2), whole.truncate(offset=0.1)
    for cut in (half, late, whole.pad(2 * seconds), replace(whole, recording=None)):
        CutSet.from_cuts([cut]).to_file(path)
        with pytest.raises(DataError, match="must be one whole recording"):
            read_manifest(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recording", "x"),
        ("recording", 5),
        ("duration", "5"),
        ("duration", None),
        ("start", None),
    ],
)
def test_a_cut_of_other_things_is_refused(utterances, tmp_path, name, value):
    recording = Recording.from_file(utterances[0].audio)
    cut = recording.to_cut()
    cut.supervisions = [SupervisionSegment("a", recording.id, 0.0, 0.1, text="A")]
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(cut.to_dict() | {name: value}) + "\n")
    with pytest.raises(DataError, match=r"cuts\.jsonl: (cut|neither)"):
        read_manifest(path)


def test_a_channel_of_a_recording_is_no_utterance(tmp_path):
    """Nor is one of its files: all channels of one file are what is read."""
    soundfile.write(tmp_path / "two.wav", np.zeros((1600, 2)), 16000)
    stereo = Recording.from_file(tmp_path / "two.wav")
    split = replace(stereo, sources=[replace(stereo.sources[0], channels=[k]) for k in (0, 1)])
    path = tmp_path / "cuts.jsonl"
    for recording, channels in ((stereo, 0), (split, [0, 1]), (replace(stereo, sources=[]), 0)):
        cut = recording.to_cut()
        cut.channel = channels
        cut.supervisions = [SupervisionSegment("a", recording.id, 0.0, 0.1, text="A")]
        CutSet.from_cuts([cut]).to_file(path)
        with pytest.raises(DataError, match="must be one whole recording"):
            read_manifest(path)


def test_not_a_manifest(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    with pytest.raises(DataError, match="asr prepare"):
        read_manifest(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"neither NAME\.tsv nor a lhotse"):
        read_manifest(path)
    path.write_bytes(
        gzip.compress(random.Random(0).randbytes(999).hex().encode())[:500]
    )  # a copy that broke off
    with pytest.raises(DataError, match="end-of-stream"):
        read_manifest(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="holds no utterance"):
        read_manifest(path)
    with gzip.open(path, "wt") as file:
        file.write('{"a": 1}\n')
    with pytest.raises(DataError, match=r"neither NAME\.tsv nor a lhotse"):
        read_manifest(path)
