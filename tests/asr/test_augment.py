import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr.augment import add_noise, augment_waveform, change_level, change_speed, mask_features
from asr.config import AugmentConfig


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_speed_changes_duration_and_pitch(speed):
    seconds = torch.arange(16000) / 16000
    changed = change_speed(torch.sin(2 * math.pi * 440 * seconds), speed)
    assert len(changed) == math.ceil(16000 / speed)
    peak = torch.fft.rfft(changed).abs().argmax() * 16000 / len(changed)
    assert abs(peak - 440 * speed) < 2


@given(st.floats(-5, 30), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_noise_has_the_ratio_asked_for(snr, seed):
    speech = torch.randn(5000, generator=_generator(1))
    noise = add_noise(speech, (snr, snr), _generator(seed)) - speech
    measured = 20 * torch.log10(speech.norm() / noise.norm())
    assert measured == pytest.approx(snr, abs=0.01)


def test_noise_on_silence_is_silence():
    assert torch.equal(add_noise(torch.zeros(100), (10, 10), _generator()), torch.zeros(100))


def test_level_stays_within_bounds():
    for seed in range(20):
        gain = change_level(torch.ones(1), 6.0, _generator(seed))
        assert 10 ** (-6 / 20) <= float(gain) <= 10 ** (6 / 20)


def test_same_seed_same_waveform():
    config = AugmentConfig(noise_probability=0.5, level=3.0)
    speech = torch.randn(1000, generator=_generator(1))
    first = augment_waveform(speech, 1.1, config, _generator(7))
    assert torch.equal(first, augment_waveform(speech, 1.1, config, _generator(7)))
    assert not torch.equal(first, augment_waveform(speech, 1.1, config, _generator(8)))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 1000))
@example(lengths=[2], seed=1)  # a fifth of two frames is none
@example(lengths=[1], seed=27)
@settings(max_examples=40, deadline=None)
def test_masks_stay_within_their_limits(lengths, seed):
    config = AugmentConfig(
        frequency_masks=1,
        frequency_mask_bins=5,
        time_masks=1,
        time_mask_frames=10,
        time_mask_fraction=0.2,
    )
    features = torch.randn(len(lengths), max(lengths), 20, generator=_generator(1))
    fill = torch.full((20,), 99.0)
    masked = mask_features(features, torch.tensor(lengths), fill, config, _generator(seed))
    hit = masked == 99.0
    assert torch.equal(masked[~hit], features[~hit])
    for b, length in enumerate(lengths):
        bins = int(hit[b].all(0).sum())
        frames = int(hit[b].all(1).sum())
        assert bins <= 5
        assert frames <= min(10, 0.2 * length)
        assert not hit[b, length:].all(1).any() or frames == 0


def test_masks_do_fall():
    features = torch.zeros(8, 200, 80)
    fill = torch.ones(80)
    masked = mask_features(features, torch.full((8,), 200), fill, AugmentConfig(), _generator())
    assert 0.05 < float(masked.mean()) < 0.7
