import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from asr.config import FeatureConfig
from asr.features import FilterBank, stack_frames

# Two float32 FFTs of 512 samples in different order, seen through a logarithm.
TOLERANCE = 64 * torch.finfo(torch.float32).eps


def _speech(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator) * 0.1
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("snip_edges", [False, True])
@pytest.mark.parametrize("num_mel_bins", [40, 80])
def test_equals_torchaudio_of_each_utterance(snip_edges, num_mel_bins):
    waveforms, lengths = _speech(16000, 5333, 400, 801, 24645)
    bank = FilterBank(FeatureConfig(snip_edges=snip_edges, num_mel_bins=num_mel_bins))
    features, frames = bank(waveforms, lengths)
    for b, length in enumerate(lengths):
        expected = kaldi.fbank(
            waveforms[b : b + 1, :length],
            num_mel_bins=num_mel_bins,
            snip_edges=snip_edges,
            high_freq=-400.0,
            dither=0.0,
        )
        assert frames[b] == len(expected)
        scale = expected.abs().max()
        assert (features[b, : frames[b]] - expected).abs().max() <= TOLERANCE * scale
        assert (features[b, frames[b] :] == 0).all()


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=4), st.integers(0, 2), st.booleans())
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing(lengths, deltas, snip_edges):
    waveforms, counts = _speech(*lengths)
    waveforms = torch.nn.functional.pad(waveforms, (0, 700), value=float("nan"))
    bank = FilterBank(FeatureConfig(deltas=deltas, snip_edges=snip_edges))
    features, frames = bank(waveforms, counts)
    assert not features.isnan().any()
    for b, length in enumerate(lengths):
        alone, count = bank(waveforms[b : b + 1, :length], counts[b : b + 1])
        assert torch.equal(count[0], frames[b])
        if count[0]:
            error = (features[b, : frames[b]] - alone[0]).abs().max()
            assert error <= TOLERANCE * alone.abs().max()


def test_deltas_are_those_of_the_utterance_alone():
    waveforms, lengths = _speech(8000, 3000)
    features, frames = FilterBank(FeatureConfig(deltas=2))(waveforms, lengths)
    assert features.shape[2] == 240
    static = features[1, : frames[1], :80]
    from torchaudio.functional import compute_deltas

    delta = compute_deltas(static.T).T
    torch.testing.assert_close(features[1, : frames[1], 80:160], delta)
    torch.testing.assert_close(features[1, : frames[1], 160:], compute_deltas(delta.T).T)


def test_dither_in_training_only():
    waveforms, lengths = _speech(4000)
    bank = FilterBank(FeatureConfig(dither=1e-3))
    trained, _ = bank(waveforms, lengths)
    bank.eval()
    first, _ = bank(waveforms, lengths)
    second, _ = bank(waveforms, lengths)
    assert torch.equal(first, second)
    assert not torch.equal(first, trained)


def test_digital_silence_is_finite():
    features, _ = FilterBank(FeatureConfig())(torch.zeros(1, 4000), torch.tensor([4000]))
    assert features.isfinite().all()


def test_nothing_gives_no_frames():
    features, frames = FilterBank(FeatureConfig())(torch.zeros(2, 0), torch.tensor([0, 0]))
    assert features.shape == (2, 0, 80)
    assert frames.tolist() == [0, 0]


@pytest.mark.parametrize(("stack", "skip"), [(3, 3), (8, 3), (1, 3), (2, 1), (1, 1)])
def test_stacking(stack, skip):
    features = torch.arange(1.0, 11).view(1, 10, 1)
    stacked, lengths = stack_frames(features, torch.tensor([8]), stack, skip)
    assert lengths.tolist() == [-(-8 // skip)]
    for k in range(int(lengths)):
        expected = [float(t + 1) if t < 8 else 0.0 for t in range(k * skip, k * skip + stack)]
        assert stacked[0, k].tolist() == expected
