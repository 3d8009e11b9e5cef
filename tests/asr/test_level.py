import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.bench import speech_like
from asr.config import FeatureConfig
from asr.features import FilterBank
from asr.level import hear, tones

RATE = 16000
FRAME = 400  # 25 ms
TARGET = 0.1  # -20 dB of full scale


def voice(seconds: float = 3.0, seed: int = 0) -> Tensor:
    return torch.from_numpy(speech_like(seconds, seed))


def noise(samples: int = 2 * RATE, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def whisper() -> Tensor:
    """Noise in syllables, without a period."""
    envelope = torch.sin(torch.arange(2 * RATE) * 2 * math.pi * 2 / RATE).clamp(min=0.003)
    return 0.3 * envelope * noise()


def heard(waveform: Tensor) -> tuple[Tensor, bool]:
    result, speech = hear(waveform[None], torch.tensor([len(waveform)]), RATE)
    return result[0], bool(speech)


def loudness(waveform: Tensor) -> float:
    """RMS of the frame at the 95th percentile."""
    power = waveform.unfold(0, FRAME, FRAME).square().mean(1).sort().values
    return math.sqrt(power[int(0.95 * (len(power) - 1))])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50), st.floats(-40.0, 0.0))
def test_how_quiet_a_recording_is_does_not_matter(seed, decibels):
    full = voice(seed=seed) * 0.3
    (expected, _), (got, _) = heard(full), heard(full * 10 ** (decibels / 20))
    assert loudness(got) > loudness(full)
    # The one gain is as exact as a sum over a frame; sample by sample only products round.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(got, expected, rtol=FRAME * eps, atol=0)
    bank, lengths = FilterBank(FeatureConfig()), torch.tensor([len(full)])
    energy, got_energy = (bank(x[None], lengths)[0].exp() for x in (expected, got))
    # A bin's rounding is that of its frame's transform, in which the strongest bin leads.
    assert ((got_energy - energy).abs() <= FRAME * eps * energy.amax(2, keepdim=True)).all()


def test_quiet_speech_reaches_the_usual_level():
    result, speech = heard(voice() * 0.01)
    assert speech
    assert loudness(result) == pytest.approx(TARGET, rel=1e-4)


def test_loud_speech_stays_as_it_is():
    loud = voice() * (2 * TARGET / loudness(voice()))
    assert torch.equal(heard(loud)[0], loud)


@given(st.floats(1e-4, 1.0), st.integers(0, 20))
def test_what_lacks_contrast_and_voice_is_noise_and_never_lifted(level, seed):
    sound = noise(seed=seed) * level
    result, speech = heard(sound)
    assert not speech
    assert torch.equal(result, sound)


@pytest.mark.parametrize("decibels", [5, 10])
def test_voice_in_noise_may_be_speech_but_is_not_lifted(decibels):
    quiet = 0.01 * voice()
    hiss = noise(len(quiet))
    sound = quiet + hiss * quiet.norm() / hiss.norm() * 10 ** (-decibels / 20)
    result, speech = heard(sound)
    assert speech
    assert torch.equal(result, sound)


def test_a_whisper_may_be_speech():
    quiet = 0.01 * whisper()
    result, speech = heard(quiet)
    assert speech
    assert loudness(result) == pytest.approx(TARGET, rel=1e-4)


@given(st.floats(1e-3, 1.0))
def test_no_sample_is_lifted_beyond_full_scale(click):
    quiet = voice() * 0.01
    quiet[len(quiet) // 2] = click
    result, _ = heard(quiet)
    eps = torch.finfo(torch.float32).eps
    assert float(result.abs().max()) <= 1 + eps
    gain = float(result[len(quiet) // 2] / quiet[len(quiet) // 2])
    assert gain >= 1
    torch.testing.assert_close(result, quiet * gain, rtol=4 * eps, atol=0)  # one number for all


def test_samples_beyond_full_scale_are_kept():
    sound = 0.01 * voice()
    sound[1000] = 1.5
    assert torch.equal(heard(sound)[0], sound)


def test_silence_stays_silence():
    result, speech = heard(torch.zeros(RATE))
    assert not speech
    assert not result.any()


def test_the_last_bit_on_and_off_is_noise():
    sound = torch.cat([torch.zeros(8000), noise(8000).sign() / 32768])
    result, speech = heard(sound)
    assert not speech
    assert torch.equal(result, sound)


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 799])
def test_what_is_too_short_for_contrast_stays_as_it_is(samples):
    sound = 1e-3 * noise(samples)
    result, speech = heard(sound)
    assert torch.equal(result, sound)
    assert speech  # for all that can be told


def test_no_utterances():
    result, speech = hear(torch.zeros(0, 4000), torch.zeros(0, dtype=torch.int64), RATE)
    assert result.shape == (0, 4000)
    assert speech.shape == (0,)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 24000), min_size=1, max_size=4), st.floats(-1.0, 1.0))
def test_padding_and_neighbours_change_nothing(samples, padding):
    sounds = [(voice(seed=n), noise(seed=n), whisper())[n % 3] for n in range(len(samples))]
    alone = [sound[:n] * 0.01 for sound, n in zip(sounds, samples, strict=True)]
    batch = pad_sequence(alone, batch_first=True, padding_value=padding)
    results, speech = hear(batch, torch.tensor(samples), RATE)
    for result, may_be_speech, waveform in zip(results, speech, alone, strict=True):
        expected, expected_speech = heard(waveform)
        torch.testing.assert_close(result[: len(waveform)], expected)
        assert bool(may_be_speech) == expected_speech


def tone(hertz: float | Tensor, seconds: float = 1.0) -> Tensor:
    samples = round(seconds * RATE)
    return torch.sin(2 * math.pi * (torch.ones(samples) * hertz / RATE).cumsum(0))


def in_tones(*waveforms: Tensor, padding: float = 0.0, bins: int = 80) -> list[float]:
    """Share of the frames of each."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = pad_sequence(waveforms, batch_first=True, padding_value=padding)
    features, frames = FilterBank(FeatureConfig(num_mel_bins=bins))(batch, lengths)
    every = tones(features[:, ::4], 0.04)
    assert every.shape == features[:, ::4].shape[:2]
    rows = zip(every, (frames + 3) // 4, strict=True)
    assert not any(row[count:].any() for row, count in rows)
    return (every.sum(1) / ((frames + 3) // 4)).nan_to_num().tolist()


@given(st.floats(400.0, 6000.0), st.floats(1e-3, 1.0), st.floats(0.5, 2.0))
def test_in_a_tone_nobody_speaks(hertz, level, seconds):
    assert in_tones(level * tone(hertz, seconds))[0] > 0.8


def test_in_a_siren_nobody_speaks():
    wave = torch.sin(2 * math.pi * 0.5 * torch.arange(3 * RATE) / RATE)
    assert in_tones(tone(700 + 300 * wave, 3.0))[0] > 0.8


@given(st.integers(0, 50), st.floats(0.3, 3.0))
def test_speech_whispers_and_hiss_are_no_tones(seed, seconds):
    assert in_tones(voice(seconds, seed), whisper(), noise(seed=seed)) == [0.0] * 3


@pytest.mark.parametrize("speech_first", [True, False])
@pytest.mark.parametrize("level", [1.0, 0.01])
@pytest.mark.parametrize("beep_seconds", [0.5, 3.0])
def test_beside_a_tone_speech_is_heard(beep_seconds, level, speech_first):
    beep, speech = tone(1000.0, beep_seconds), level * voice(1.0)
    parts = [speech, beep] if speech_first else [beep, speech]
    (share,) = in_tones(torch.cat(parts))
    assert 0.8 * beep_seconds < share * (beep_seconds + 1.0) < beep_seconds + 0.1


@pytest.mark.parametrize("hertz", [50.0, 60.0, 100.0, 120.0])
def test_in_hum_speech_is_heard(hertz):
    speech = 0.03 * voice(2.0)
    assert in_tones(0.9 * tone(hertz, 2.0) + speech) == [0.0]


def test_a_short_beep_may_be_a_vowel():
    assert in_tones(torch.cat([noise(8000) * 0.01, tone(500.0, 0.2), noise(8000) * 0.01])) == [0.0]


def test_silence_and_little_are_no_tones():
    assert in_tones(torch.zeros(RATE), torch.zeros(400), tone(500.0, 0.1)) == [0.0] * 3


@pytest.mark.parametrize("padding", [0.0, 1.0, math.nan])
def test_padding_and_neighbours_tell_no_tone(padding):
    sounds = tone(500.0), voice(), tone(2000.0, 0.1), whisper()
    together = in_tones(*sounds, padding=padding)
    assert together == [in_tones(sound)[0] for sound in sounds]


def test_with_few_bins_nobody_can_tell():
    assert in_tones(tone(500.0), bins=40) == [0.0]


def test_no_utterances_have_no_tones():
    assert tones(torch.zeros(0, 30, 80), 0.04).shape == (0, 30)
