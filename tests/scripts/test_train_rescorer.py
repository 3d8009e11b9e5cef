import math
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import train_rescorer as tr

from asr.processes import ALONE, Processes
from asr.rescoring import RESCORER_FILES, load_rescorer
from asr.word_search import Hypothesis

torch.set_num_threads(1)

SENTENCES = ["THE CAT SAT ON THE MAT", "A DOG RAN TO THE SEA", "THE DOG SAT ON THE MAT"]


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tr.train_pieces(SENTENCES * 9, 30))


def _words(text: tr.Text, pieces: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [
        pieces.decode(text.units[first:end].tolist())
        for first, end in zip(text.words, text.words[1:], strict=False)
    ]


def test_text_knows_its_words_and_sentences(pieces) -> None:
    text = tr.encode(["", *SENTENCES, ""], pieces)
    assert len(text) == 3
    assert _words(text, pieces) == " ".join(SENTENCES).split()
    assert np.diff(text.sentences).tolist() == [6, 6, 6]


def test_pieces_make_up_a_sentence_or_its_end(pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tr, "SHORTEST", 1)
    monkeypatch.setattr(tr, "LONGEST", 3)
    text = tr.encode(SENTENCES, pieces)
    rng = np.random.default_rng(0)
    late = 0
    for _ in range(200):
        parts = [pieces.decode(piece.tolist()) for piece in text.pieces(1, rng)]
        assert all(1 <= len(part.split()) <= 3 for part in parts)
        said = " ".join(parts)
        assert said
        assert SENTENCES[1].endswith(said)
        late += said != SENTENCES[1]
    assert 0.1 < late / 200 < 0.3  # a quarter begins anywhere, sometimes at the beginning


def test_an_epoch_reads_each_text_as_often_as_asked(pieces, monkeypatch) -> None:
    monkeypatch.setattr(tr, "LATE", 0.0)
    monkeypatch.setattr(tr, "CHUNK", 4)
    texts = [tr.encode(SENTENCES[:2], pieces), tr.encode(SENTENCES[2:], pieces)]
    found: list[str] = []
    done = -1.0
    for progress, batch in tr.batches(texts, [1, 5], 70, np.random.default_rng(0)):
        assert done < progress < 1
        done = progress
        longest = max(len(piece) for piece in batch) + 1
        assert len(batch) == 1 or longest * len(batch) <= 70
        found += [pieces.decode(piece.tolist()) for piece in batch]
    assert sorted(found) == sorted([*SENTENCES[:2], *5 * SENTENCES[2:]])


def test_processes_share_the_steps(pieces) -> None:
    texts = [tr.encode(SENTENCES * 5, pieces)]

    def read(processes: Processes) -> list[list[list[int]]]:
        rng = np.random.default_rng(3)
        plan = tr.plan(texts, [1], 40, 2, rng, processes)
        return [[piece.tolist() for piece in batch] for _, batch in plan]

    alone, first, second = (read(Processes(*which)) for which in ((0, 1), (0, 2), (1, 2)))
    assert len(first) == len(second) > 2
    per_epoch = len(alone) // 2
    whole = [step for epoch in (alone[:per_epoch], alone[per_epoch:]) for step in epoch]
    for step in (*first, *second):
        assert step in whole


def test_it_learns_its_text_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 200))
    (tmp_path / "odd.txt").write_text("MAT THE ON SAT\n")
    out = tmp_path / "new" / "rescorer"
    command = (
        f"train_rescorer {out} --text {tmp_path}/text.txt 5 --held-out {tmp_path}/text.txt "
        f"--exclude {tmp_path}/odd.txt --units 30 --embedding-size 8 --hidden-size 16 "
        "--batch-units 300 --learning-rate 0.03 --warmup-steps 5 --device cpu"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    tr.main()
    first = float(capsys.readouterr().out.split()[-1])
    assert first < 2
    tr.main()
    again = float(capsys.readouterr().out.split()[-1])
    entropy = math.exp(math.log(3) / 7)  # which of three sentences, over six words and an end
    assert entropy < again < first + 0.01
    found = [tuple(Hypothesis(tuple(t.split()), (), (), 0.0, ()) for t in (SENTENCES[0], "MAT ON"))]
    ((known, odd),) = load_rescorer(out).log_probs(found)
    assert known > odd + 3
    assert (out / RESCORER_FILES[0]).stat().st_size < 20_000


@pytest.mark.parametrize(
    ("times", "says"), [("1", "cannot read the text"), ("often", "expected how often it is read")]
)
def test_one_line_says_what_is_wrong(
    times: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"train_rescorer {tmp_path} --text {tmp_path}/none.txt {times} --held-out none"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match=rf"train_rescorer: .*none\.txt: {says}"):
        tr.main()


@pytest.mark.parametrize("empty", ["text", "held"])
def test_a_file_without_sentences_is_named(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("text", "held"):
        (tmp_path / name).write_text("\n" if name == empty else "\n".join(SENTENCES * 20))
    files = f"--text {tmp_path}/text 1 --text {tmp_path}/held 1 --held-out {tmp_path}/held"
    command = f"train_rescorer {tmp_path}/out {files} --units 30 --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match=rf"{empty}: expected sentences, got none"):
        tr.main()
    assert not (tmp_path / "out").exists()


def test_gradients_are_those_of_the_mean_over_units(pieces) -> None:
    """Of a batch in one piece: what the first step moves does not depend on its padding."""
    text = tr.encode(SENTENCES, pieces)
    torch.manual_seed(0)
    model = tr.SubwordModel(pieces.vocab_size(), 4, 4)
    batch = [text.units[:3], text.units[:9]]
    marks = pieces.bos_id(), pieces.eos_id()
    config = tr.TrainConfig(learning_rate=1e-9)
    ((progress, loss),) = tr.train(model, iter([(0.5, batch)]), config, marks, ALONE)
    expected = sum(model.surprise([piece], *marks).sum().item() for piece in batch) / 14
    assert progress == 0.5
    assert loss == pytest.approx(expected, rel=1e-5)
