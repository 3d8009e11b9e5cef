import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.config import Config, FeatureConfig, ModelConfig
from asr.model import AcousticModel

SIZES = {"conv_channels": 4, "num_layers": 2, "hidden_size": 8, "dropout": 0.5}


def _model(deltas: int = 0, **settings: object) -> AcousticModel:
    torch.manual_seed(0)
    config = Config(
        name="x",
        features=FeatureConfig(num_mel_bins=10, deltas=deltas),
        model=ModelConfig.model_validate(SIZES | settings),
    )
    model = AcousticModel(config, 7).eval()
    # Statistics unlike 0 and 1, so that a forgotten mask shows.
    model.cmvn_mean.normal_()
    model.cmvn_istd.uniform_(0.5, 2)
    return model


VARIANTS = [
    {},
    {"subsampling": "stack", "stack": 8, "skip": 3},
    {"recurrent": "gru"},
    {"recurrent": "cifg", "peephole": True, "recurrent_dropout": 0.5},
    {"bidirectional": False},
    {"dense_size": 6},
    {"layer_norm": False, "subsampling": "stack"},
    {"cmn_prior": 0.0},
    {"cmn_prior": 12.0},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_padded_equals_alone(settings):
    model = _model(**settings)
    lengths = torch.tensor([37, 1, 23, 4])
    features = torch.randn(4, 37, 10)
    for b, length in enumerate(lengths):
        features[b, length:] = 1e3  # whatever lies in the padding
    log_probs, frames = model(features, lengths)
    assert torch.equal(frames, model.output_lengths(lengths))
    for b, length in enumerate(lengths):
        alone, _ = model(features[b : b + 1, :length], lengths[b : b + 1])
        error = (log_probs[b, : frames[b]] - alone[0]).abs().max()
        assert error <= 32 * torch.finfo(torch.float32).eps * alone.abs().max()


@pytest.mark.parametrize("settings", [{}, {"subsampling": "stack"}, {"cmn_prior": 12.0}], ids=str)
def test_exported_for_any_batch_and_length(settings):
    model = _model(**settings)
    B, T = torch.export.Dim("B", min=2, max=16), torch.export.Dim("T", min=8, max=1000)
    example = torch.randn(2, 37, 10), torch.tensor([37, 12])
    exported = torch.export.export(model, example, dynamic_shapes=({0: B, 1: T}, {0: B})).module()
    other = torch.randn(3, 50, 10), torch.tensor([20, 50, 1])
    for got, expected in zip(exported(*other), model(*other), strict=True):
        torch.testing.assert_close(got, expected)


@given(st.integers(1, 40), st.sampled_from(["conv4", "stack"]), st.integers(0, 2))
@settings(max_examples=25)
def test_lengths_are_exact(length, subsampling, deltas):
    model = _model(deltas, subsampling=subsampling)
    features = torch.randn(1, length, 10 * (1 + deltas))
    log_probs, frames = model(features, torch.tensor([length]))
    assert log_probs.shape == (1, int(frames), 7)
    assert int(frames) == -(-length // model.frames_per_output)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1, int(frames)))


def test_forget_gate_starts_open():
    for layer in _model().layers:
        for suffix in ("", "_reverse"):
            ih = getattr(layer.recurrent, f"bias_ih_l0{suffix}")
            hh = getattr(layer.recurrent, f"bias_hh_l0{suffix}")
            assert ((ih + hh)[8:16] == 1).all()
    for layer in _model(recurrent="cifg").layers:  # f = 1 - i
        assert ((layer.recurrent.bias_ih_l0 + layer.recurrent.bias_hh_l0)[:8] == -1).all()


def test_the_mean_taken_off():
    features, lengths = torch.randn(2, 20, 10), torch.tensor([20, 0])
    channel = torch.linspace(-2, 2, 10)  # a microphone adds a constant to every frame
    own = _model(cmn_prior=0.0)
    alone = features[:1], lengths[:1]
    torch.testing.assert_close(own(alone[0] + channel, alone[1]), own(*alone))
    mixed = _model(cmn_prior=60.0)  # three times the frames there are
    mean = mixed._mean(features, lengths)[:, 0]
    expected = 0.75 * mixed.cmvn_mean + 0.25 * features[0].mean(0)
    torch.testing.assert_close(mean[0], expected)
    torch.testing.assert_close(mean[1], mixed.cmvn_mean)  # nothing else to go by
    assert not own._mean(features, lengths).isnan().any()


def test_dropout_in_training_only():
    model = _model()
    features, lengths = torch.randn(1, 20, 10), torch.tensor([20])
    assert torch.equal(model(features, lengths)[0], model(features, lengths)[0])
    model.train()
    assert not torch.equal(model(features, lengths)[0], model(features, lengths)[0])


def test_gradients_reach_every_parameter():
    model = _model().train()
    log_probs, _ = model(torch.randn(2, 30, 10), torch.tensor([30, 17]))
    log_probs[..., 1].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
