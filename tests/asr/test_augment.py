import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.augment import (
    add_noise,
    augment_waveform,
    change_level,
    change_speed,
    draw_masks,
    warp_frequencies,
)
from asr.config import AugmentConfig, FeatureConfig
from asr.features import FilterBank


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
    shape = torch.Size((len(lengths), max(lengths), 20))
    cpu = torch.device("cpu")
    hit = draw_masks(shape, torch.tensor(lengths), config, _generator(seed), cpu)
    for b, length in enumerate(lengths):
        bins = int(hit[b].all(0).sum())
        frames = int(hit[b].all(1).sum())
        assert bins <= 5
        assert frames <= min(10, 0.2 * length)
        assert not hit[b, length:].all(1).any() or frames == 0


def test_masks_do_fall():
    shape, lengths = torch.Size((8, 200, 80)), torch.full((8,), 200)
    masks = draw_masks(shape, lengths, AugmentConfig(), _generator(), torch.device("cpu"))
    assert 0.05 < float(masks.float().mean()) < 0.7


def _tone(hertz: float, bank: FeatureConfig) -> Tensor:
    """Features [1, T, D] of a tone."""
    waveform = torch.sin(2 * math.pi * hertz * torch.arange(16000) / bank.sample_rate)[None]
    features, _ = FilterBank(bank)(waveform, torch.tensor([16000]))
    return features


@pytest.mark.parametrize("hertz", [1500.0, 2000.0, 3500.0])
@pytest.mark.parametrize("seed", [5, 11])  # a factor above and one below 1
def test_a_warp_multiplies_frequencies(hertz, seed):
    bank = FeatureConfig()
    config = AugmentConfig(frequency_warp=0.15)
    factor = 1 + 0.15 * (2 * float(torch.rand(1, generator=_generator(seed))) - 1)
    assert abs(factor - 1) > 0.05
    warped = warp_frequencies(_tone(hertz, bank), config, bank, _generator(seed))
    expected = _tone(hertz / factor, bank)
    peak, other = warped[0, 50].argmax(), expected[0, 50].argmax()
    assert abs(int(peak - other)) <= 1
    assert abs(int(_tone(hertz, bank)[0, 50].argmax() - other)) >= 2


def test_a_warp_keeps_the_upper_end_and_each_order_of_deltas_apart():
    bank = FeatureConfig(deltas=1)
    config = AugmentConfig(frequency_warp=0.2)
    D = bank.num_mel_bins
    features = torch.cat([torch.zeros(3, 5, D), torch.ones(3, 5, D)], dim=2)
    assert torch.equal(warp_frequencies(features, config, bank, _generator()), features)
    ramp = torch.arange(2.0 * D).expand(3, 5, 2 * D)
    warped = warp_frequencies(ramp, config, bank, _generator())
    assert not torch.equal(warped[0], warped[1])  # a factor for each utterance
    assert (warped.diff(dim=2)[..., : D - 1] >= 0).all()
    torch.testing.assert_close(warped[..., D - 1], ramp[..., D - 1], atol=0.3, rtol=0)


def test_no_warp_leaves_the_features_and_the_generator_alone():
    features = torch.randn(2, 7, 80)
    generator = _generator()
    state = generator.get_state()
    assert warp_frequencies(features, AugmentConfig(), FeatureConfig(), generator) is features
    assert torch.equal(generator.get_state(), state)
