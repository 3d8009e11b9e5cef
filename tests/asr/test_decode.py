import gzip
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.config import DecodeConfig
from asr.decode import BeamDecoder, Decoder, GreedyDecoder, build_decoder, greedy_decode
from asr.errors import DataError
from asr.lexicon import Lexicon
from asr.tokenizer import CharacterTokenizer, PhonemeTokenizer, SubwordTokenizer, Tokenizer
from asr.word_graph import load_word_graph

torch.set_num_threads(1)

LEXICON = Lexicon(
    (line.split()[0], line.split()[1:])
    for line in [
        "A AH", "A EY", "CAT K AE T", "CATS K AE T S", "SEE S IY", "SEA S IY", "TOP T AA P",
        "THE DH AH", "ZOO Z UW",
    ]
)  # fmt: skip
ARPA = r"""\data\
ngram 1=10
ngram 2=4

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-3.0	<unk>
-0.8	A	-0.3
-1.0	CAT	-0.3
-1.2	CATS	-0.3
-1.0	SEA	-0.3
-1.1	SEE	-0.3
-1.1	THE	-0.3
-1.1	TOP	-0.3

\2-grams:
-0.3	THE SEA
-0.3	CAT </s>
-0.3	A CAT
-0.4	<s> SEE

\end\
"""
BEAM = DecodeConfig(method="beam", lm_weight=1.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "lm.arpa").write_text(ARPA)
    return path


@pytest.fixture(scope="module")
def phonemes(directory: Path) -> Decoder:
    return build_decoder(BEAM, PhonemeTokenizer(LEXICON), directory)


def emissions(tokenizer: Tokenizer, path: str, sure: float = 0.9) -> Tensor:  # [1, T, V]
    """Log-probabilities with `sure` on each unit of `path`, separated by spaces; `-` is blank."""
    units = ["<blk>" if unit == "-" else unit for unit in path.split()]
    V = len(tokenizer.units)
    probs = torch.full((1, len(units), V), (1 - sure) / (V - 1))
    for frame, unit in enumerate(units):
        probs[0, frame, tokenizer.units.index(unit)] = sure
    return probs.log()


def decode(decoder: Decoder, log_probs: Tensor):
    return decoder(log_probs, torch.tensor([log_probs.shape[1]]))[0]


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4))
def test_greedy_spans_are_the_runs_of_the_best_path(paths: list[list[int]]) -> None:
    T = max(map(len, paths))
    best = torch.randint(0, 4, (len(paths), T), generator=torch.Generator().manual_seed(0))
    for row, path in zip(best, paths, strict=True):
        row[: len(path)] = torch.tensor(path, dtype=torch.int64)
    log_probs = torch.nn.functional.one_hot(best, 4).float().log_softmax(-1)
    spans = greedy_decode(log_probs, torch.tensor([len(path) for path in paths]))
    for path, found in zip(paths, spans, strict=True):
        expected, start = [], 0
        for unit, run in groupby(path):
            end = start + len(list(run))
            if unit:
                expected.append((unit, start, end))
            start = end
        assert found == expected


def test_greedy_words_of_phonemes_are_phones() -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    found = decode(GreedyDecoder(tokenizer), emissions(tokenizer, "- K K AE - T T"))
    assert found.words == ("K", "AE", "T")
    assert found.frames == (1, 3, 5)
    assert found.word_frames == ((1, 3), (3, 4), (5, 7))
    assert found.score == pytest.approx(7 * torch.tensor(0.9).log().item(), rel=1e-5)


def test_a_penalty_lets_what_is_heard_unsurely_win_over_blank(directory: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    log_probs = emissions(tokenizer, "- K -")
    log_probs[0, 2, tokenizer.units.index("T")] = log_probs[0, 2, 0] - 0.5
    for penalty, phones in ((0.0, ("K",)), (0.49, ("K",)), (0.51, ("K", "T"))):
        decoder = build_decoder(DecodeConfig(blank_penalty=penalty), tokenizer, directory)
        found = decode(decoder, log_probs)
        assert found.words == phones
        blanks = 3 - len(phones)
        path = sum(log_probs[0, frame].amax().item() for frame in (0, 1))
        last = log_probs[0, 2, 0] if blanks == 2 else log_probs[0, 2, 0] - 0.5
        assert found.score == pytest.approx(path + last.item() - blanks * penalty, rel=1e-5)


def test_greedy_joins_characters_to_words() -> None:
    tokenizer = CharacterTokenizer()
    found = decode(GreedyDecoder(tokenizer), emissions(tokenizer, "| A - | | T O - O | - |"))
    assert found.words == ("A", "TOO")
    assert found.word_frames == ((1, 2), (5, 9))


def subwords() -> SubwordTokenizer:
    return SubwordTokenizer.train(["THE CAT SEES THE SEA A CAT SEES CATS"] * 3, 60)


def test_greedy_joins_subwords_to_words() -> None:
    tokenizer = subwords()
    pieces = [tokenizer.units[index] for index in tokenizer.encode("SEE THE CAT")]
    found = decode(GreedyDecoder(tokenizer), emissions(tokenizer, " - ".join(pieces)))
    assert found.words == ("SEE", "THE", "CAT")
    starts = [2 * i for i, piece in enumerate(pieces) if piece.startswith("▁")]
    assert [first for first, _ in found.word_frames] == starts
    assert found.word_frames[-1][1] == 2 * len(pieces) - 1


def test_beam_finds_words_with_their_frames(phonemes: Decoder) -> None:
    path = "- DH AH - - - S S IY IY - - K AE T -"
    found = decode(phonemes, emissions(PhonemeTokenizer(LEXICON), path))
    assert found.words == ("THE", "SEA", "CAT")
    assert found.word_frames == ((1, 3), (6, 10), (12, 15))
    assert found.frames == (1, 2, 6, 8, 12, 13, 14)
    units = [PhonemeTokenizer(LEXICON).units[token] for token in found.tokens]
    assert " ".join(units) == "DH AH S IY K AE T"


def test_language_model_chooses_between_homophones(phonemes: Decoder) -> None:
    assert decode(phonemes, emissions(PhonemeTokenizer(LEXICON), "S IY")).words == ("SEE",)
    assert decode(phonemes, emissions(PhonemeTokenizer(LEXICON), "DH AH S IY")).words[-1] == "SEA"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["CAT", "CATS", "TOP", "THE", "A"]),
            st.lists(st.integers(1, 3), min_size=4, max_size=4),  # frames of each phone
            st.integers(0, 4),  # blanks before the word
        ),
        max_size=6,
    )
)
def test_beam_reads_words_at_any_pace(
    directory: Path, spoken: list[tuple[str, list[int], int]]
) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    # Words cost something, lest the held vowel of THE be taken for another A.
    config = BEAM.model_copy(update={"word_score": -2.0})
    decoder = build_decoder(config, tokenizer, directory)
    path: list[str] = []
    expected = []
    for word, frames, blanks in spoken:
        phones = [
            phone
            for phone, number in zip(LEXICON[word][0], frames, strict=False)
            for _ in range(number)
        ]
        same = bool(path) and path[-1] == phones[0]
        path += ["-"] * max(blanks, same)
        expected.append((len(path), len(path) + len(phones)))
        path += phones
    found = decode(decoder, emissions(tokenizer, " ".join([*path, "-"]), sure=0.999))
    assert found.words == tuple(word for word, _, _ in spoken)
    assert found.word_frames == tuple(expected)


def test_every_pronunciation_is_tried(phonemes: Decoder) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    assert decode(phonemes, emissions(tokenizer, "AH - K AE T")).words == ("A", "CAT")
    assert decode(phonemes, emissions(tokenizer, "EY - K AE T")).words == ("A", "CAT")


def test_words_the_language_model_lacks_are_not_found(phonemes: Decoder) -> None:
    found = decode(phonemes, emissions(PhonemeTokenizer(LEXICON), "Z UW"))
    assert "ZOO" not in found.words


def test_beam_reads_characters(directory: Path) -> None:
    tokenizer = CharacterTokenizer()
    decoder = build_decoder(BEAM, tokenizer, directory)
    found = decode(decoder, emissions(tokenizer, "- T H E E | - S E - E E | C A T T -"))
    assert found.words == ("THE", "SEE", "CAT")
    assert found.word_frames == ((1, 5), (7, 12), (13, 17))
    assert tokenizer.decode(found.tokens) == "THE SEE CAT"
    assert decode(decoder, emissions(tokenizer, "A C A T")).words != ("A", "CAT")


def test_beam_reads_subwords(directory: Path) -> None:
    tokenizer = subwords()
    decoder = build_decoder(BEAM, tokenizer, directory)
    pieces = [tokenizer.units[index] for index in tokenizer.encode("THE SEA CATS")]
    found = decode(decoder, emissions(tokenizer, " - ".join(pieces)))
    assert found.words == ("THE", "SEA", "CATS")
    assert found.word_frames[0][0] == 0
    assert found.word_frames[-1][1] == 2 * len(pieces) - 1


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_padding_and_other_utterances_change_nothing(directory: Path, method: str) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    decoder = build_decoder(DecodeConfig(method=method), tokenizer, directory)
    alone = [emissions(tokenizer, path) for path in ("S IY", "DH AH - S IY IY -", "K AE T")]
    padded = torch.full((4, 7, len(tokenizer.units)), -1.0)
    for row, log_probs in zip(padded, alone, strict=False):
        row[: log_probs.shape[1]] = log_probs[0]
    found = decoder(padded, torch.tensor([2, 7, 3, 0]))
    for single, together in zip(alone, found, strict=False):
        assert decode(decoder, single) == together
    assert found[3].words == found[3].tokens == found[3].word_frames == ()


def test_gzipped_model_is_the_same_model(directory: Path, tmp_path: Path) -> None:
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    tokenizer = PhonemeTokenizer(LEXICON)
    log_probs = emissions(tokenizer, "DH AH - S IY IY - K AE T", sure=0.6)
    plain = decode(build_decoder(BEAM, tokenizer, directory), log_probs)
    assert decode(build_decoder(BEAM, tokenizer, tmp_path), log_probs) == plain
    given = build_decoder(BEAM, tokenizer, Path("nowhere"), language_model=packed)
    assert decode(given, log_probs) == plain


def test_of_many_homophones_the_likeliest_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"W{'I' * number}" for number in range(1, 10)]
    grams = "\n".join(f"-{3 - i * 0.1:.1f}\t{word}" for i, word in enumerate(words))
    model = tmp_path / "lm.arpa"
    model.write_text(
        f"\\data\\\nngram 1={len(words) + 3}\nngram 2=1\n\n\\1-grams:\n"
        f"-99\t<s>\n-1\t</s>\n-3\t<unk>\n{grams}\n\n\\2-grams:\n-1\tWI WI\n\n\\end\\\n"
    )
    tokenizer = PhonemeTokenizer(Lexicon((word, ["W", "IY"]) for word in words))
    graph = load_word_graph(tokenizer, model)
    assert graph.words == tuple(words[:-4:-1])
    decoder = build_decoder(BEAM, tokenizer, tmp_path)
    assert decode(decoder, emissions(tokenizer, "W IY")).words == (words[-1],)
    assert capfd.readouterr() == ("", "")  # neither KenLM nor the tree says anything


def test_score_weighs_the_language_model_and_the_words(directory: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    log_probs = emissions(tokenizer, "S IY", sure=0.9)
    for lm_weight, word_score in ((0.0, 0.0), (2.0, 0.0), (0.5, 1.5)):
        config = BEAM.model_copy(update={"lm_weight": lm_weight, "word_score": word_score})
        score = decode(build_decoder(config, tokenizer, directory), log_probs).score
        # log10 p(SEE | <s>), and p(</s> | SEE) by backing off
        language = -0.4 + (-0.3 - 1.0)
        acoustic = log_probs.amax(-1).sum().item()
        assert score == pytest.approx(acoustic + lm_weight * language + word_score, abs=1e-4)


def test_an_unfinished_word_pays_four_fifths_of_the_likeliest_that_it_may_become(
    directory: Path,
) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    graph = load_word_graph(tokenizer, directory / "lm.arpa")
    begun = graph.trie.search([tokenizer.units.index("K")])  # CAT or CATS
    assert begun.max_score == pytest.approx(0.8 * -1.0)


def test_paths_of_the_same_words_add_up(directory: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    log_probs = emissions(tokenizer, "S S IY", sure=1 - 1e-6)
    unit = tokenizer.units.index("S")
    log_probs[0, 1] = -30.0
    log_probs[0, 1, [0, unit]] = math.log(0.5)  # S is held, or over
    config = BEAM.model_copy(update={"lm_weight": 0.0, "word_score": 0.0})
    score = decode(build_decoder(config, tokenizer, directory), log_probs).score
    one = log_probs.amax(-1).sum().item()
    assert score == pytest.approx(one + math.log(2), abs=1e-5)


def test_the_paths_of_a_word_are_those_of_ctc(directory: Path) -> None:
    """Also those of its last unit; but for paths on which it is likelier over than it was."""
    tokenizer = PhonemeTokenizer(LEXICON)
    config = BEAM.model_copy(update={"lm_weight": 0.0, "beam_size": 5000, "beam_threshold": 1e3})
    decoder = build_decoder(config, tokenizer, directory)
    log_probs = emissions(tokenizer, "- K AE AE T T T T -", sure=0.7)
    T = torch.tensor([log_probs.shape[1]])
    target = torch.tensor([tokenizer.encode("CAT")])
    found = decode(decoder, log_probs)
    assert found.words == ("CAT",)
    ctc = -torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), target, T, torch.tensor([3]), reduction="sum"
    )
    assert found.score == pytest.approx(ctc.item(), abs=0.02)


def test_one_sound_may_end_a_word_and_begin_the_next(directory: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    config = BEAM.model_copy(update={"word_score": -1.0})
    decoder = build_decoder(config, tokenizer, directory)
    found = decode(decoder, emissions(tokenizer, "K AE T T AA P"))
    assert found.words == ("CAT", "TOP")
    assert found.word_frames == ((0, 3), (3, 6))
    assert found.tokens == tuple(tokenizer.encode("CAT TOP"))


def test_what_is_equally_likely_stands_in_the_order_of_its_words(tmp_path: Path) -> None:
    """Not of the places in memory: the same speech has the same transcript each time."""
    alike = ARPA.replace("-1.0\tSEA", "-1.1\tSEA").replace("<s> SEE", "<s> TOP")
    (tmp_path / "lm.arpa").write_text(alike)
    tokenizer = PhonemeTokenizer(LEXICON)
    decoder = build_decoder(BEAM, tokenizer, tmp_path)
    assert isinstance(decoder, BeamDecoder)
    (found,) = decoder.alternatives(emissions(tokenizer, "S IY S IY"), torch.tensor([4]))
    equal = [said.words for said in found if said.score == found[0].score]
    assert equal == [("SEA", "SEA"), ("SEA", "SEE"), ("SEE", "SEA"), ("SEE", "SEE")]


def test_agreement_is_the_share_of_the_best_hypotheses(phonemes: Decoder) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    the = decode(phonemes, emissions(tokenizer, "DH AH", sure=1 - 1e-6))
    assert the.agreement == (pytest.approx(1.0, abs=1e-3),)
    see = decode(phonemes, emissions(tokenizer, "S IY", sure=1 - 1e-6))
    assert see.words == ("SEE",)
    sea = -0.3 - 1.0 + 0.4  # log10 of how much less likely the language model thinks it
    assert see.agreement == (pytest.approx(1 / (1 + math.exp(sea)), abs=1e-3),)


def test_what_is_not_likely_right_in_any_word_is_taken_for_noise(directory: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    log_probs = emissions(tokenizer, "K AE T - - S IY", sure=0.9)
    log_probs[0, :3] = emissions(tokenizer, "K AE T", sure=0.4)[0]
    kept = build_decoder(BEAM, tokenizer, directory)
    assert decode(kept, log_probs).words == ("CAT", "SEA")
    assert decode(kept, log_probs).confidence == (pytest.approx(0.4), pytest.approx(0.9))
    for least, words in (0.85, ("CAT", "SEA")), (0.95, ()):
        config = BEAM.model_copy(update={"min_confidence": least})
        found = decode(build_decoder(config, tokenizer, directory), log_probs)
        assert (found.words, len(found.word_frames), len(found.confidence)) == (
            words,
            *[len(words)] * 2,
        )


def test_threads_take_turns(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two searches at once in one of flashlight's decoders end in a segmentation fault."""
    tokenizer = PhonemeTokenizer(LEXICON)
    decoder = build_decoder(BEAM, tokenizer, directory)
    assert isinstance(decoder, BeamDecoder)
    search = decoder._words._searcher(BEAM)
    flashlight = search._decoder
    free = threading.Semaphore()

    def alone(*arguments: int):
        assert free.acquire(blocking=False)
        time.sleep(0.01)  # lets another thread in
        try:
            return flashlight.decode(*arguments)
        finally:
            free.release()

    monkeypatch.setattr(search, "_decoder", SimpleNamespace(decode=alone))
    log_probs = emissions(tokenizer, "K AE T")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: decode(decoder, log_probs).words, range(8)))
    assert found == [("CAT",)] * 8


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("lm.arpa", b"no model", "expected an ARPA model"),
        ("lm.arpa.gz", gzip.compress(ARPA.encode(), mtime=0)[:60], "cannot read it"),
        ("lm.arpa.gz", b"not gzip at all", "cannot read it"),
        ("lm.arpa", ARPA.replace("-0.3\tTHE SEA", "x\ty\tz").encode(), "cannot read it"),
        ("lm.arpa", ARPA.replace("ngram 2=4", "ngram 2=9").encode(), "cannot read it"),
    ],
)
def test_unreadable_models_are_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        build_decoder(BEAM, PhonemeTokenizer(LEXICON), tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_named_with_a_remedy(directory: Path, tmp_path: Path) -> None:
    tokenizer = PhonemeTokenizer(LEXICON)
    with pytest.raises(DataError, match="make_language_model"):
        build_decoder(BEAM, tokenizer, tmp_path)
    with pytest.raises(DataError, match=r"none\.arpa"):
        build_decoder(BEAM, tokenizer, tmp_path, language_model=tmp_path / "none.arpa")
    with pytest.raises(DataError, match="lexicon"):
        build_decoder(BEAM, PhonemeTokenizer(Lexicon([("YES", ["Y"])])), directory)
