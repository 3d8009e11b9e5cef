from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from asr.subtitles import GAP, LINE, SECONDS, cues, lines, to_srt, to_vtt
from asr.transcribe import Transcript, Word


def _transcript(*words: tuple[str, float, float]) -> Transcript:
    spoken = tuple(Word(text, start, end, 0.9) for text, start, end in words)
    return Transcript("a.wav", " ".join(word.text for word in spoken), 4000.0, spoken)


HELLO = _transcript(("HELLO", 0.5, 0.9), ("THERE", 1.0, 1.4996), ("AGAIN", 3600.0, 3661.25))


def test_srt():
    assert to_srt(HELLO) == (
        "1\n00:00:00,500 --> 00:00:01,500\nHELLO THERE\n\n2\n01:00:00,000 --> 01:01:01,250\nAGAIN\n"
    )


def test_vtt():
    assert to_vtt(HELLO) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\nHELLO THERE\n\n"
        "01:00:00.000 --> 01:01:01.250\nAGAIN\n"
    )


def test_silence_has_no_subtitles():
    assert to_srt(_transcript()) == ""
    assert to_vtt(_transcript()) == "WEBVTT\n"


@given(
    st.lists(
        st.tuples(st.text("ABC", min_size=1, max_size=60), st.floats(0, 3), st.floats(0.01, 9)),
        max_size=40,
    )
)
def test_every_word_is_shown_once_and_nothing_is_too_long(parts):
    now, words = 0.0, []
    for text, pause, spoken in parts:
        words.append(Word(text, now + pause, now + pause + spoken, 0.5))
        now += pause + spoken
    groups = cues(words)
    assert [word for group in groups for word in group] == words
    for group in groups:
        shown = lines(group)
        assert " ".join(shown).split() == [word.text for word in group]
        assert len(shown) <= 2
        assert all(len(line) <= LINE or " " not in line for line in shown)
        assert len(group) == 1 or group[-1].end - group[0].start <= SECONDS
        assert all(b.start - a.end < GAP for a, b in pairwise(group))
