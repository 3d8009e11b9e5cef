"""Preparation: every utterance of a corpus is in a manifest, or in the list of rejected ones."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet

import asr.prepare.manifests
from asr.data import read_manifest
from asr.errors import DataError
from asr.prepare import Item, Rejected, prepare_librispeech, prepare_tsv, write_manifests
from asr.prepare.dev import choose_dev
from asr.prepare.librispeech import SPLITS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def librispeech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny LibriSpeech with every split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from make_tiny_librispeech import make_corpus, tones
    root: Path = make_corpus(tmp_path_factory.mktemp("corpus"), list(SPLITS), 2, tones)
    return root.parent


@pytest.fixture
def dev_clean(librispeech: Path, tmp_path: Path) -> Path:
    """One split of it, to be broken."""
    source = tmp_path / "source" / "LibriSpeech"
    shutil.copytree(librispeech / "LibriSpeech" / "dev-clean", source / "dev-clean")
    return source


def rejections(path: Path) -> dict[str, str]:
    header, *rows = path.read_text().splitlines()
    assert header == "path\treason"
    return {Path(name).name: reason for name, reason in (row.split("\t") for row in rows)}


def write_audio(path: Path, seconds: float = 0.1, rate: int = 16000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)


def write_table(source: Path, *rows: str, header: str = "path\ttranscript\tsplit\tspeaker") -> Path:
    source.mkdir(parents=True, exist_ok=True)
    table = source / "utterances.tsv"
    table.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return table


# LibriSpeech


def test_librispeech_every_split_every_utterance(librispeech: Path, tmp_path: Path) -> None:
    summary = prepare_librispeech(librispeech, tmp_path)
    assert set(summary.parts) == set(SPLITS)
    assert summary.rejected == 0
    for split, part in summary.parts.items():
        folder = librispeech / "LibriSpeech" / split
        said = {}
        for transcript in folder.glob("*/*/*.trans.txt"):
            said |= dict(line.split(" ", 1) for line in transcript.read_text().splitlines())
        found = read_manifest(tmp_path / f"librispeech_{split}.jsonl.gz")
        assert [u.id for u in found] == sorted(said)
        assert (part.utterances, part.speakers) == (6, 2)
        assert part.hours == pytest.approx(sum(u.seconds for u in found) / 3600)
        for u in found:
            assert u.text == said[u.id]
            assert u.speaker == u.id.split("-")[0]
            assert Path(u.audio).is_absolute()
            assert u.seconds == soundfile.info(u.audio).duration


def test_lhotse_loads_the_audio_of_a_manifest(librispeech: Path, tmp_path: Path) -> None:
    prepare_librispeech(librispeech, tmp_path)
    cut = next(iter(CutSet.from_file(tmp_path / "librispeech_test-other.jsonl.gz")))
    samples, rate = soundfile.read(cut.recording.sources[0].source, dtype="float32")
    assert (cut.sampling_rate, cut.num_samples) == (rate, len(samples))
    np.testing.assert_array_equal(cut.load_audio()[0], samples)


def test_librispeech_itself_or_the_folder_around_it(librispeech: Path, tmp_path: Path) -> None:
    for source, out in ((librispeech, "a"), (librispeech / "LibriSpeech", "b")):
        prepare_librispeech(source, tmp_path / out)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(
        [*(f"librispeech_{s}.jsonl.gz" for s in SPLITS), "librispeech_rejected.tsv"]
    )
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_librispeech_broken_utterances_are_listed_with_the_reason(
    dev_clean: Path, tmp_path: Path
) -> None:
    first, second, third = sorted((dev_clean / "dev-clean").glob("*/*"))
    names = [path.stem for chapter in (first, second, third) for path in chapter.glob("*.flac")]
    no_audio, truncated, unsaid, empty, *orphans = sorted(names)
    (first / f"{no_audio}.flac").unlink()
    whole = (first / f"{truncated}.flac").read_bytes()
    (first / f"{truncated}.flac").write_bytes(whole[: len(whole) // 2])
    transcript = second / f"{second.parent.name}-{second.name}.trans.txt"
    transcript.write_text(f"{empty} \n")
    (third / f"{third.parent.name}-{third.name}.trans.txt").unlink()
    extra = dev_clean / "dev-clean" / "1" / "2"
    write_audio(extra / "1-2-0000.flac")
    (extra / "1-2.trans.txt").write_text("1-2-0000 IT'S FINE\n")

    summary = prepare_librispeech(dev_clean, tmp_path / "out")

    assert summary.parts["dev-clean"].utterances == 1
    assert summary.rejected == len(names)
    reasons = rejections(summary.rejections)
    assert set(reasons) == {f"{name}.flac" for name in names}
    assert "No such file" in reasons[f"{no_audio}.flac"]
    assert "truncated" in reasons[f"{truncated}.flac"]
    assert reasons[f"{unsaid}.flac"] == f"not in {transcript.name}"
    assert reasons[f"{empty}.flac"] == "empty transcript ''"
    assert {reasons[f"{name}.flac"] for name in orphans} == {
        f"{third.parent.name}-{third.name}.trans.txt is missing"
    }
    assert f"{len(names)} left out" in str(summary)


@pytest.mark.parametrize("place", [".", "LibriSpeech/dev-clean", "nowhere"])
def test_a_folder_that_is_not_librispeech(place: str, dev_clean: Path, tmp_path: Path) -> None:
    source = (tmp_path / "source" / place) if place != "." else tmp_path
    with pytest.raises(DataError, match=r"expected the folder LibriSpeech.*train-clean-100"):
        prepare_librispeech(source, tmp_path / "out")


def test_nothing_usable_names_the_first_reason(dev_clean: Path, tmp_path: Path) -> None:
    for audio in dev_clean.rglob("*.flac"):
        audio.write_bytes(b"")
    with pytest.raises(DataError, match=r"got 6 that are not .*empty file"):
        prepare_librispeech(dev_clean, tmp_path / "out")
    assert len(rejections(tmp_path / "out" / "librispeech_rejected.tsv")) == 6
    assert not list((tmp_path / "out").glob("*.jsonl.gz"))


def test_a_transcript_that_is_not_text(dev_clean: Path, tmp_path: Path) -> None:
    transcript = next(dev_clean.rglob("*.trans.txt"))
    transcript.write_bytes(b"\xff\xfe1\x00")
    with pytest.raises(DataError, match=rf"{transcript.name}: expected UTF-8"):
        prepare_librispeech(dev_clean, tmp_path / "out")


# Tables


def test_table_with_splits_speakers_and_other_columns(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    write_audio(source / "a.wav", 0.2, 8000)
    write_audio(source / "sub" / "b.flac", 0.1, 44100, channels=2)
    table = write_table(
        source,
        "7\ta.wav\t“Well-known” café…\tann",
        "8\tsub/b.flac\tit\u2019s\u2028here\t",
        header="age\tpath\ttranscript\tspeaker",
    )
    summary = prepare_tsv(source, tmp_path / "out", "mine")
    assert summary.rejected == 0
    part = summary.parts["train"]
    assert part.manifest == tmp_path / "out" / "mine_train.jsonl.gz"
    assert (part.utterances, part.speakers) == (2, 1)
    a, b = read_manifest(part.manifest)
    assert (a.id, a.text, a.speaker, a.seconds) == ("a.wav", "WELL KNOWN CAFE", "ann", 0.2)
    assert (b.id, b.text, b.speaker, b.seconds) == ("sub/b.flac", "IT'S HERE", "", 0.1)
    assert a.audio == str(source / "a.wav")
    cuts = {cut.id: cut for cut in CutSet.from_file(part.manifest)}
    assert cuts["a.wav"].supervisions[0].text == "WELL KNOWN CAFE"
    assert cuts["sub/b.flac"].load_audio().shape == (2, 4410)

    before = part.manifest.read_bytes()
    prepare_tsv(table, tmp_path / "out", "mine")  # the table itself, and once more
    assert part.manifest.read_bytes() == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "mine_train.jsonl.gz",
        "mine_rejected.tsv",
    }


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    for name in ("good", "again", "silent", "foreign", "wide"):
        write_audio(source / f"{name}.wav")
    write_audio(source / "nothing.wav", seconds=0)
    write_table(
        source,
        "good.wav\tyes\ttest\tann",
        "again.wav\tyes\ttest\tann",
        "again.wav\tno\ttrain\tann",
        "silent.wav\t ...\ttest\tann",
        "foreign.wav\tçe 42 $ привет\ttest\tann",
        "short.wav",
        "\tno path\ttest\tann",
        "wide.wav\tyes\ttest\tann\ttoo many",
        "nothing.wav\tyes\ttest\tann",
        "gone.wav\tyes\ttest\tann",
    )
    summary = prepare_tsv(source, tmp_path / "out", "mine")
    assert [u.id for u in read_manifest(summary.parts["test"].manifest)] == [
        "again.wav",
        "good.wav",
    ]
    assert set(summary.parts) == {"test"}
    reasons = rejections(summary.rejections)
    assert summary.rejected == len(reasons) == 8
    for name, reason in {
        "again.wav": "came before",
        "silent.wav": "empty transcript",
        "foreign.wav": "none of A-Z: ПРИВЕТ",
        "short.wav": "no transcript in this line",
        "utterances.tsv:8": "no path",
        "wide.wav": "more cells than the 4 columns",
        "nothing.wav": "holds no audio samples",
        "gone.wav": "No such file",
    }.items():
        assert reason in reasons[name]


def test_dev_takes_whole_speakers_of_train_only(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    rows = []
    for speaker in range(6):
        for take in range(2):
            write_audio(source / f"{speaker}_{take}.wav", 0.01)
            split = "test" if speaker == 5 else "train"
            rows.append(f"{speaker}_{take}.wav\tyes\t{split}\ts{speaker}")
    write_table(source, *rows)
    summary = prepare_tsv(source, tmp_path / "out", "mine", dev_speakers=2)
    speakers = {
        split: {u.speaker for u in read_manifest(part.manifest)}
        for split, part in summary.parts.items()
    }
    assert speakers["test"] == {"s5"}
    assert len(speakers["dev"]) == 2
    assert speakers["dev"] | speakers["train"] == {f"s{i}" for i in range(5)}
    assert not speakers["dev"] & speakers["train"]
    assert [part.utterances for part in summary] == [4, 2, 6]  # dev, test, train


def items_of(speakers: list[str], split: str = "train") -> list[Item]:
    return [
        Item(f"{speaker}/{take}", Path(f"{speaker}-{take}.wav"), "YES", speaker, split)
        for speaker in speakers
        for take in range(3)
    ]


NAMES = st.sets(st.integers(0, 10**6).map(str), min_size=8, max_size=20).map(sorted)


@given(NAMES, st.integers(1, 3))
def test_dev_every_does_not_move_when_data_is_added(names: list[str], every: int) -> None:
    half = items_of(names[: len(names) // 2])
    large = choose_dev(items_of(names), 0, every)
    assert choose_dev(half, 0, every) == large & {item.id for item in half}


@given(NAMES, st.integers(1, 3))
def test_dev_speakers_only_make_room_for_new_ones(names: list[str], count: int) -> None:
    *known, new = names
    small = {id.split("/")[0] for id in choose_dev(items_of(known), count, 0)}
    large = {id.split("/")[0] for id in choose_dev(items_of(names), count, 0)}
    assert len(small) == len(large) == count
    assert large == small or (large - small == {new} and len(small - large) == 1)


def test_dev_every_takes_about_that_share() -> None:
    items = items_of([f"speaker{i}" for i in range(1000)])
    # 3000 draws of 1 in 10: standard deviation 16.4, six of them either way
    assert abs(len(choose_dev(items, 0, 10)) - 300) < 99


@pytest.mark.parametrize(
    ("split", "dev", "message"),
    [
        ("train", (3, 0), "expected more named speakers .* dev_speakers = 3, got 3"),
        ("train", (1, 5), "either dev_speakers or dev_every .* got 1 and 5"),
        ("train", (-1, 0), "got -1 and 0"),
        ("train", (0, 10**9), "dev_every = 1000000000: got none of 3 utterances"),
        ("dev", (1, 0), "already has a split dev"),
    ],
)
def test_a_dev_part_that_cannot_be_made(
    split: str, dev: tuple[int, int], message: str, tmp_path: Path
) -> None:
    rows = [f"{i}.wav\tyes\t{split}\ts{i}" for i in range(3)]
    write_table(tmp_path, *rows)
    with pytest.raises(DataError, match=message):
        prepare_tsv(tmp_path, tmp_path / "out", "mine", *dev)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header line .* got nothing"),
        (b"file\ttext\na.wav\tyes\n", "columns path and transcript, got file, text"),
        (b"path\ttranscript\na.wav\t\xff\n", "tab-separated table in UTF-8"),
        (b"path\ttranscript\n", "at least one usable utterance, got 0"),
    ],
)
def test_a_table_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "utterances.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare_tsv(tmp_path, tmp_path / "out", "mine")


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"utterances.tsv: No such file .*; expected a table"):
        prepare_tsv(tmp_path, tmp_path / "out", "mine")


def test_a_path_that_is_not_text_is_named(tmp_path: Path) -> None:
    """A manifest is UTF-8, which the name of a folder need not be."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_audio(tmp_path / "a.wav")
    folder.mkdir()
    (tmp_path / "a.wav").rename(folder / "a.wav")
    with pytest.raises(DataError, match=r"caf\\udce9.*UTF-8; rename"):
        write_manifests([Item("a", folder / "a.wav", "A", "", "train")], tmp_path, "mine")


def test_what_is_rejected_may_have_any_name(tmp_path: Path) -> None:
    write_audio(tmp_path / "good.wav")
    items = [Item("good", tmp_path / "good.wav", "A", "", "train")]
    odd = [Rejected(os.fsdecode(b"caf\xe9\t1.flac"), "no\ntranscript")]
    write_manifests(items, tmp_path / "data", "mine", odd)
    assert rejections(tmp_path / "data" / "mine_rejected.tsv") == {
        "caf\\udce9 1.flac": "no transcript"
    }


def test_manifests_of_an_earlier_preparation_are_named(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    for name in "ab":
        write_audio(source / f"{name}.wav")
    write_table(source, "a.wav\tA\ttrain\tS1", "b.wav\tB\ttrain\tS2")
    first = prepare_tsv(source, tmp_path / "data", "mine", dev_speakers=1)
    assert not first.earlier
    dev = first.parts["dev"].manifest
    second = prepare_tsv(source, tmp_path / "data", "mine")
    assert second.earlier == (dev,)
    assert f"{dev}: was there before" in str(second)


def test_an_interrupt_does_not_wait_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes while the files are still being handed out."""
    begun = []

    def decode(item: Item) -> str:
        begun.append(item)
        time.sleep(0.02)
        return "nothing"

    class Interrupting(list):
        def __iter__(self):
            yield from super().__iter__()
            raise KeyboardInterrupt

    monkeypatch.setattr(asr.prepare.manifests, "_decode", decode)
    items = Interrupting(Item(str(n), tmp_path, "A", "", "train") for n in range(1000))
    with pytest.raises(KeyboardInterrupt):
        list(asr.prepare.manifests._decoded(items))
    count = len(begun)
    assert count < 500
    time.sleep(0.5)
    assert len(begun) <= count + 8  # those under way


@pytest.mark.parametrize(("name", "split"), [("a/b", "train"), ("mine", "../train"), ("", "train")])
def test_names_that_cannot_be_files(name: str, split: str, tmp_path: Path) -> None:
    item = Item("a", tmp_path / "a.wav", "YES", "", split)
    with pytest.raises(DataError, match="expected a corpus or split name"):
        write_manifests([item], tmp_path / "out", name)


@pytest.mark.skipif("ASR_SHARED_DATA" not in os.environ, reason="ASR_SHARED_DATA is not set")
def test_a_corpus_of_real_speech_is_whole(tmp_path: Path) -> None:
    source = Path(os.environ["ASR_SHARED_DATA"]) / "ljspeech"
    summary = prepare_tsv(source, tmp_path, "ljspeech", dev_every=12)
    assert summary.rejected == 0
    assert sum(part.utterances for part in summary) == 147
