"""What is done to training speech: speed, level, noise; warped frequencies; masks.

Every random choice comes from a generator that the caller seeds, so that a resumed training
draws what the uninterrupted one would have drawn.
"""

from fractions import Fraction

import torch
import torchaudio.functional
from torch import Generator, Tensor
from torchaudio.compliance.kaldi import inverse_mel_scale, mel_scale

from asr.config import AugmentConfig, FeatureConfig

_WARPED_LINEARLY = 0.6  # share of the band whose frequencies are multiplied by the factor


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """Play `waveform` [N] `speed` times as fast; pitch moves with it. -> [ceil(N / speed)]."""
    if speed == 1.0:
        return waveform
    ratio = Fraction(speed).limit_denominator(100)
    changed: Tensor = torchaudio.functional.resample(waveform, ratio.numerator, ratio.denominator)
    return changed


def change_level(waveform: Tensor, decibels: float, generator: Generator) -> Tensor:
    """Amplify `waveform` by a uniform draw from +-`decibels`."""
    gain: float = 10 ** (_uniform(-decibels, decibels, generator) / 20)
    return waveform * gain


def add_noise(waveform: Tensor, snr: tuple[float, float], generator: Generator) -> Tensor:
    """Add Gaussian noise, white to brown, at a uniform signal-to-noise ratio (dB)."""
    size = 1 << max(1, len(waveform) - 1).bit_length()  # a length that the FFT likes
    spectrum = torch.fft.rfft(torch.randn(size, generator=generator))
    slope = _uniform(0.0, 1.0, generator)  # amplitude falls with frequency ** slope
    spectrum *= torch.arange(1, len(spectrum) + 1).pow(-slope)
    noise = torch.fft.irfft(spectrum)[: len(waveform)]
    ratio: float = 10 ** (_uniform(*snr, generator) / 20)
    scale = waveform.norm() / (noise.norm().clamp(min=1e-10) * ratio)
    noisy: Tensor = waveform + scale * noise
    return noisy


def augment_waveform(
    waveform: Tensor,  # [N] float32
    speed: float,
    config: AugmentConfig,
    generator: Generator,
) -> Tensor:  # [ceil(N / speed)]
    """Speed, level and noise, in this order."""
    waveform = change_speed(waveform, speed)
    if config.level:
        waveform = change_level(waveform, config.level, generator)
    if config.noise_probability > float(torch.rand((), generator=generator)):
        waveform = add_noise(waveform, config.noise_snr, generator)
    return waveform


def warp_frequencies(
    features: Tensor,  # [B, T, D], log-mel energies, deltas after them
    config: AugmentConfig,
    bank: FeatureConfig,
    generator: Generator,  # of the CPU, so that devices draw alike
) -> Tensor:  # [B, T, D]
    """Vocal tract length perturbation (Jaitly and Hinton 2013), applied to the mel bins.

    Each utterance draws a factor from 1 +- `frequency_warp`; a bin takes the energy at its own
    frequency times that factor, interpolated between bins. Up to six tenths of the band the
    factor is whole, from there a straight line leads to the band's upper end, which stays.
    """
    if not config.frequency_warp:
        return features
    spread = 2 * torch.rand(len(features), generator=generator) - 1
    factors = 1 + config.frequency_warp * spread
    D = bank.num_mel_bins
    low, high = bank.low_freq, bank.highest
    first, last = mel_scale(torch.tensor([low, high])).tolist()
    step = (last - first) / (D + 1)
    hertz = inverse_mel_scale(first + step * torch.arange(1, D + 1))  # centres of the bins
    knee = _WARPED_LINEARLY * high / factors.clamp(min=1.0)[:, None]  # [B, 1]
    beyond = high - (high - factors[:, None] * knee) * (high - hertz) / (high - knee)
    source = torch.where(hertz <= knee, factors[:, None] * hertz, beyond)  # [B, D]
    place = ((mel_scale(source) - first) / step - 1).clamp(0, D - 1)
    place = place.to(features.device, non_blocking=True)
    below = place.floor().clamp(max=D - 2)
    share = (place - below)[:, None, None]
    x = features.unflatten(2, (-1, D))  # [B, T, orders, D]
    index = below.long()[:, None, None].expand(x.shape)
    warped: Tensor = x.gather(3, index).lerp(x.gather(3, index + 1), share)
    return warped.flatten(2)


def draw_masks(
    shape: torch.Size,  # B, T, D of the features
    lengths: Tensor,  # [B] int64, of the CPU
    config: AugmentConfig,
    generator: Generator,  # of the CPU, so that devices draw alike
    device: torch.device,
) -> Tensor:  # [B, T, D] bool, on `device`
    """SpecAugment without warping (Park 2019), each utterance masked within its own length."""
    B, T, D = shape
    bins = torch.full((B,), D)
    limits = (lengths * config.time_mask_fraction).clamp(max=config.time_mask_frames)
    times = _bands(T, lengths, limits, config.time_masks, generator)
    widest = torch.full((B,), float(config.frequency_mask_bins))
    frequencies = _bands(D, bins, widest, config.frequency_masks, generator)
    # The bands travel, not the masks: 0.3 MB instead of 26 with 256 utterances of 12 s.
    times, frequencies = (each.to(device, non_blocking=True) for each in (times, frequencies))
    return times[:, :, None] | frequencies[:, None, :]


def _bands(
    size: int,
    lengths: Tensor,  # [B]
    limits: Tensor,  # [B] float, widest band
    count: int,
    generator: Generator,
) -> Tensor:  # [B, size] bool
    """Mark `count` random bands in each row."""
    widths = torch.rand(len(lengths), count, generator=generator) * (limits.floor()[:, None] + 1)
    widths = widths.floor()  # 0 .. limit
    room = (lengths[:, None] - widths).clamp(min=0)
    starts = (torch.rand(len(lengths), count, generator=generator) * (room + 1)).floor()
    position = torch.arange(size)
    after = position >= starts[..., None]  # [B, count, size]
    return (after & (position < (starts + widths)[..., None])).any(1)
