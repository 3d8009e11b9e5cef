"""Kaldi-compatible log-mel filterbank of a padded batch, on the batch's device.

Per utterance the result equals `torchaudio.compliance.kaldi.fbank`; what is in the padding has
no influence on valid frames.
"""

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from asr.config import FeatureConfig

_PREEMPHASIS = 0.97
# Frames at once, on a CPU and elsewhere. Spectra of 2 MB stay in a CPU's cache: a fifth less time
# than with 8192 frames. Elsewhere they bound the memory, to half a GB with what leads to them.
_ON_CPU, _ELSEWHERE = 1024, 65_536


class FilterBank(nn.Module):
    """Log-mel energies in 25 ms povey windows every 10 ms (by default).

    Numerics: float32; energies are floored at float32's epsilon before the logarithm.
    Source: Kaldi's `compute-fbank-feats`, with samples in [-1, 1].
    """

    window: Tensor  # [W]
    mel: Tensor  # [2 F, M], each bin twice

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.shift = int(config.sample_rate * config.frame_shift / 1000)  # samples
        self.size = int(config.sample_rate * config.frame_length / 1000)  # samples
        self.fft_size = 1 << (self.size - 1).bit_length()
        window = torch.hann_window(self.size, periodic=False).pow(0.85)  # povey
        banks, _ = kaldi.get_mel_banks(
            config.num_mel_bins,
            self.fft_size,
            float(config.sample_rate),
            config.low_freq,
            config.highest,
            100.0,
            -500.0,
            1.0,
        )
        self.register_buffer("window", window, persistent=False)
        mel = F.pad(banks, (0, 1)).T.repeat_interleave(2, 0)  # a bin's real and imaginary part
        self.register_buffer("mel", mel, persistent=False)

    @property
    def size_of_feature(self) -> int:
        """D, the width of a frame."""
        return self.config.num_mel_bins * (1 + self.config.deltas)

    def frames(self, samples: Tensor) -> Tensor:
        """Frame counts of utterances of so many samples; same shape, int64."""
        if self.config.snip_edges:
            return ((samples - self.size) // self.shift + 1).clamp(min=0)
        return (samples + self.shift // 2) // self.shift

    @torch.no_grad()
    def forward(
        self,
        waveforms: Tensor,  # [B, N] float32 in [-1, 1]
        lengths: Tensor,  # [B] int64, valid samples
    ) -> tuple[Tensor, Tensor]:  # [B, T, D] float32, zero past the end; [B] int64 frames
        """Filterbank of each utterance, and its number of frames, which stays where `lengths` is.

        With `lengths` on the host nothing waits for a GPU: the longest says how many to make.
        """
        counts = self.frames(lengths)
        num_frames = int(counts.max()) if len(counts) else 0
        if num_frames == 0:
            return waveforms.new_zeros(len(waveforms), 0, self.size_of_feature), counts
        lengths, frame_lengths = (
            each.to(waveforms.device, non_blocking=True) for each in (lengths, counts)
        )
        padded = self._extend(waveforms, lengths, num_frames)
        windows = padded.unfold(1, self.size, self.shift)  # [B, T, W]
        at_once = _ON_CPU if windows.device.type == "cpu" else _ELSEWHERE
        step = max(1, at_once // len(waveforms))
        features = torch.cat([self._log_mel(part) for part in windows.split(step, dim=1)], dim=1)
        features = _with_deltas(features, frame_lengths, self.config.deltas)
        valid = torch.arange(num_frames, device=features.device) < frame_lengths[:, None]
        return features.where(valid[..., None], 0.0), counts

    def _extend(self, waveforms: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
        """Lay out the samples that the frames cover, each utterance mirrored at its own ends."""
        total = (num_frames - 1) * self.shift + self.size
        if self.config.snip_edges:
            return waveforms[:, :total]
        lead = self.size // 2 - self.shift // 2
        ahead = torch.arange(lead, 0, -1, device=waveforms.device) - 1
        beyond = lengths[:, None] + torch.arange(self.size, device=waveforms.device)
        extended = waveforms.new_zeros(len(waveforms), lead + waveforms.shape[1] + self.size)
        extended[:, :lead] = waveforms.gather(1, _mirrored(ahead, lengths))
        extended[:, lead : lead + waveforms.shape[1]] = waveforms
        extended.scatter_(1, lead + beyond, waveforms.gather(1, _mirrored(beyond, lengths)))
        return extended[:, :total]

    def _log_mel(self, windows: Tensor) -> Tensor:  # [B, T, W] -> [B, T, M]
        if self.training and self.config.dither:
            windows = windows + self.config.dither * torch.randn_like(windows)
        windows = windows - windows.mean(-1, keepdim=True)
        past = windows * _PREEMPHASIS
        windows[..., 0] -= past[..., 0]  # the first sample is its own past
        windows[..., 1:] -= past[..., :-1]
        spectrum = torch.fft.rfft(windows.mul_(self.window), n=self.fft_size)
        squares = torch.view_as_real(spectrum).flatten(-2).square_()  # re, im, re, im ...
        energy: Tensor = (squares @ self.mel).clamp(min=torch.finfo(torch.float32).eps)
        return energy.log()


def _mirrored(position: Tensor, lengths: Tensor) -> Tensor:
    """Fold positions into [0, length) by mirroring at both ends: ... 1 0 0 1 2 2 1 0 ... [B, K]."""
    length = lengths.clamp(min=1)[:, None]
    folded = position % (2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def _repeat_last(features: Tensor, lengths: Tensor) -> Tensor:
    """`features` [B, T, D] with every frame past the end replaced by the last valid one."""
    steps = torch.arange(features.shape[1], device=features.device)
    index = torch.minimum(steps, (lengths[:, None] - 1).clamp(min=0))  # [B, T]
    return features.gather(1, index[..., None].expand_as(features))


def _with_deltas(features: Tensor, lengths: Tensor, orders: int) -> Tensor:
    """Append `orders` time derivatives over five frames: [B, T, D] -> [B, T, D (1 + orders)]."""
    stacked = [features]
    for _ in range(orders):
        extended = _repeat_last(stacked[-1], lengths)
        delta = torchaudio.functional.compute_deltas(extended.transpose(1, 2))
        stacked.append(delta.transpose(1, 2))
    return torch.cat(stacked, dim=-1)


def stack_frames(
    features: Tensor,  # [B, T, D]
    lengths: Tensor,  # [B] int64
    stack: int,
    skip: int,
) -> tuple[Tensor, Tensor]:  # [B, ceil(T / skip), stack * D], [B]
    """Put each frame beside its `stack - 1` successors and keep every `skip`-th (Sak 2015).

    Frames past an utterance's end count as zero, so that padding changes nothing.
    """
    num_frames = features.shape[1]
    steps = torch.arange(num_frames, device=features.device)
    features = features.where((steps < lengths[:, None])[..., None], 0.0)
    kept = -(-num_frames // skip)
    padded = F.pad(features, (0, 0, 0, (kept - 1) * skip + stack - num_frames if kept else 0))
    windows = padded.unfold(1, stack, skip)  # [B, T', D, stack]; a negative pad above only trims
    stacked = windows.transpose(2, 3).flatten(2)
    return stacked, -(-lengths // skip)
