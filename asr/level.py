"""Quiet speech is brought to the usual level, and noise is told from what may be speech."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_FRAME = 0.025  # seconds over which power is measured
_LEVEL = 1e-2  # power of the loud frames of a usual recording of speech: -20 dB of full scale
_CONTRAST = 100.0  # power of loud frames over that of quiet ones, where there is speech: 20 dB
_FLOOR = 1e-10  # power of what 16 bits take for silence: -100 dB of full scale
_LOUD, _QUIET = 0.95, 0.1  # ranks among an utterance's frames

_SHORTEST = 0.5  # seconds: in less a word said alone may have neither contrast nor a clear period
_VOICE_RATE = 4000  # Hz, of the samples in which voice is looked for
_VOICE_FRAME = 0.05  # seconds
_PERIODS = 0.0025, 0.016  # seconds: voices of 400 to 62.5 Hz
_VOICED = 0.7  # correlation of a frame with itself a period later

_SHARE = 0.9  # of a frame's energy in three neighbouring bins: of tones more
_LONGEST = 0.3  # seconds for which speech never sounds like that: at most 0.13 in 2000 recordings
_BINS = 80  # of which the above was found; the fewer there are, the more of speech is in three
_HUM = 6  # bins of the lowest frequencies, up to 180 Hz, where hum does not hide what is said


def hear(
    waveforms: Tensor,  # [B, N] float32, full scale 1; what is past the end has no influence
    lengths: Tensor,  # [B] int64, samples
    sample_rate: int,  # Hz
) -> tuple[Tensor, Tensor]:  # [B, N] float32, [B] bool
    """Utterances, amplified where they are quieter than usual; and which may be speech.

    Speech has contrast, or voice, or both. Contrast: its loud frames (95th percentile) are 20 dB
    above its quiet ones (10th), also in a whisper. Voice: some frame resembles itself a period
    later, also in noise. What has neither is noise,
    unless it is shorter than half a second.

    What has contrast is multiplied by one number, so that its loud frames reach -20 dB of full
    scale, or less where a sample would pass full scale; it is never made quieter. How quiet a
    recording was does not matter then, but for its rounding. Without contrast the noise would be
    amplified as much, and heard as words.
    """
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    samples = waveforms.where(valid, 0.0)
    loud, quiet = _powers(samples, lengths, round(_FRAME * sample_rate))
    contrast = loud > _CONTRAST * quiet
    speech = contrast | (lengths < _SHORTEST * sample_rate)
    if not speech.all():
        speech[~speech] = _periodicity(samples[~speech], sample_rate) > _VOICED
    peak = F.pad(samples.abs(), (0, 1)).amax(1)
    gain = torch.minimum((_LEVEL / loud).sqrt(), 1 / peak).clamp(min=1.0)
    return waveforms * gain.where(contrast, 1.0)[:, None], speech


def tones(
    features: Tensor,  # [B, T, M] log-mel energies
    frame: float,  # seconds from one to the next
) -> Tensor:  # [B, T] bool
    """Frames in which nobody speaks: in a whistle, a beep or a siren.

    For 0.3 s or longer, with nearly all energy at one frequency at a time; below 400 Hz
    filters are too narrow to be sure.
    """
    energy = features.exp()
    peak, place = (energy[..., :-2] + energy[..., 1:-1] + energy[..., 2:]).max(2)
    narrow = (peak > _SHARE * energy.sum(2)) & (place >= _HUM) & (features.shape[2] >= _BINS)
    run = math.ceil(_LONGEST / frame)  # frames
    around = F.pad(narrow.float(), (run - 1, run - 1)).unsqueeze(1)
    whole = -F.max_pool1d(-around, run, stride=1)  # of each run: is all of it narrow
    return F.max_pool1d(whole, run, stride=1).squeeze(1) > 0  # of each frame: is it in such a run


def _powers(samples: Tensor, lengths: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    """Power of the loud and of the quiet frames: [B, N], [B] -> [B], [B]; inf without a frame."""
    short = max(0, frame - samples.shape[1])
    frames = F.pad(samples, (0, short)).unfold(1, frame, frame)
    power = torch.linalg.vector_norm(frames, dim=2).square() / frame  # [B, T]
    counts = (lengths // frame)[:, None]
    past = torch.arange(power.shape[1], device=power.device) >= counts
    ordered = power.masked_fill(past, torch.inf).sort(1).values
    last = (counts - 1).clamp(min=0)
    loud = ordered.gather(1, (_LOUD * last).long())
    quiet = ordered.gather(1, (_QUIET * last).long()).clamp(min=_FLOOR)
    return loud[:, 0], quiet[:, 0]


def _periodicity(samples: Tensor, sample_rate: int) -> Tensor:
    """Highest normalised cross-correlation (Talkin 1995) over all frames: [B, N] -> [B].

    Averaging neighbours down to about 4 kHz keeps the harmonics and drops most of the noise.
    """
    fold = max(1, sample_rate // _VOICE_RATE)
    frame = round(_VOICE_FRAME * sample_rate / fold)
    shortest, longest = (round(period * sample_rate / fold) for period in _PERIODS)
    padded = F.pad(samples, (0, -samples.shape[1] % (frame * fold) or frame * fold))
    frames = padded.unflatten(1, (-1, frame, fold)).mean(3)  # [B, T, frame]
    frames = frames - frames.mean(2, keepdim=True)
    windows = frames.unfold(2, frame - longest, 1)  # [B, T, lags, window]
    size = torch.linalg.vector_norm(windows, dim=3)
    product = (windows @ windows[:, :, 0, :, None])[..., 0]  # [B, T, lags]
    scale = (size * size[..., :1]).clamp(min=_FLOOR)
    highest: Tensor = (product / scale)[..., shortest:].amax((1, 2))
    return highest
