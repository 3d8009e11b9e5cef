import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config import Config, DataConfig
from asr.data import Utterance
from asr.features import FilterBank
from asr.model import AcousticModel
from asr.select import required_frames, select
from asr.tokenizer import CharacterTokenizer


@given(st.lists(st.integers(1, 3), max_size=20))
def test_required_frames_counts_repeats(target):
    # The shortest CTC path: a blank goes between equal neighbours, nothing else.
    path: list[int] = []
    for unit in target:
        path += [0, unit] if path and path[-1] == unit else [unit]
    assert required_frames(target) == len(path)


@pytest.mark.parametrize(
    ("seconds", "text", "speed", "reason"),
    [
        (1.0, "A", 1.0, None),
        (0.5, "A", 1.0, None),  # both bounds are inside
        (4.0, "A", 1.0, None),
        (0.49, "A", 1.0, "0.49 s is outside 0.5 to 4.0 s"),
        (4.01, "A", 1.0, "4.01 s is outside 0.5 to 4.0 s"),
        (1.0, "", 1.0, "empty transcript"),
        (1.0, "AB" * 12 + "A", 1.0, None),  # a frame for each letter
        (1.0, "AB" * 13, 1.0, "25 output frames are fewer than the 26 needed"),
        (1.0, "AB" * 12 + "B", 1.0, "25 output frames are fewer than the 26 needed"),
        (1.0, "AB" * 12, 1.1, "23 output frames are fewer than the 24 needed"),
    ],
)
def test_what_cannot_be_trained_on_is_named(seconds, text, speed, reason):
    config = Config(name="test", data=DataConfig(min_seconds=0.5, max_seconds=4.0))
    tokenizer = CharacterTokenizer()
    network = AcousticModel(config, len(tokenizer.units))
    said = Utterance("u", "u.wav", seconds, text, "")
    corpus = select([said], tokenizer, network, FilterBank(config.features), config, speed)
    assert corpus.excluded == ([("u", reason)] if reason else [])
    assert corpus.utterances == ([] if reason else [said])
