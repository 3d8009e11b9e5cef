from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from asr.config import Config, parse_config
from asr.consistency import consistency_loss
from asr.data import Batch
from asr.denominator import log_denominator, unit_trigram
from asr.errors import ConfigError
from asr.features import FilterBank
from asr.loss import TrainingLoss
from asr.model import AcousticModel

TINY = {"conv_channels": 2, "num_layers": 1, "hidden_size": 6, "dropout": 0.0}
TARGETS = [[1, 2, 3], [4]]
NOTHING = {"frequency_masks": 0, "time_masks": 0}


def _config(augment: dict[str, object] | None = None, **train: object) -> Config:
    tables = {"model": TINY, "augment": NOTHING | (augment or {}), "train": train}
    return parse_config({"name": "tiny"} | tables, "test")


@pytest.fixture
def model() -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel(_config(), 5)


@pytest.fixture
def batch() -> Batch:
    none = torch.empty(0)
    lengths = torch.tensor([len(target) for target in TARGETS])
    return Batch(("a", "b"), none, none, torch.cat([*map(torch.tensor, TARGETS)]), lengths)


def _loss(model: AcousticModel, batch: Batch, config: Config, step: int = 0) -> torch.Tensor:
    features = torch.randn(2, 40, 80, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([40, 29])
    loss = TrainingLoss(model, config, TARGETS)
    return loss(features, frames, batch, step, torch.Generator().manual_seed(2))


def _log_probs(B: int, T: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2 * B, T, 4, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def test_divergence_is_that_of_each_frame_from_the_other_view():
    log_probs, lengths = _log_probs(2, 3, 0), torch.tensor([3, 2, 3, 2])
    expected = 0.0
    for view, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        for t in range(int(lengths[view])):
            p, q = log_probs[view, t].exp(), log_probs[other, t].exp()
            expected += float((q * (q / p).log()).sum())
    assert float(consistency_loss(log_probs, lengths)) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_views_that_agree_do_not_diverge_and_padding_never_does(B, T, seed):
    lengths = torch.randint(1, T + 1, (B,), generator=torch.Generator().manual_seed(seed))
    log_probs = _log_probs(B, T, seed)
    past = torch.arange(T) >= lengths.repeat(2)[:, None]
    log_probs[:B] = torch.where(past[:B, :, None], log_probs[:B], log_probs[B:])
    assert float(consistency_loss(log_probs, lengths.repeat(2))) == 0


def test_the_other_view_stands_still():
    logits = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
    consistency_loss(logits.log_softmax(-1), torch.tensor([1, 1])).backward()
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, p - p.flip(0))  # that of cross-entropy with `other`


def test_two_views_that_are_the_same_give_the_loss_of_one(model, batch):
    one, two = _loss(model, batch, _config()), _loss(model, batch, _config(consistency=0.3))
    torch.testing.assert_close(two, one)


def test_two_views_are_masked_apart_and_their_divergence_is_weighed(model, batch):
    masks = {"time_masks": 2, "time_mask_frames": 30, "time_mask_fraction": 1.0}
    first, second, third = (
        float(_loss(model, batch, _config(masks, consistency=weight)).detach())
        for weight in (0.5, 1, 2)
    )
    assert second > first
    assert third - second == pytest.approx(2 * (second - first), rel=1e-3)


def test_the_flat_start_has_one_view(model, batch, monkeypatch):
    config = _config(consistency=0.3, flat_start_steps=1)
    assert _loss(model, batch, config, 0) == _loss(model, batch, _config(flat_start_steps=1), 0)
    rows = []
    ctc_loss = kernels.ctc_loss
    monkeypatch.setattr(
        kernels, "ctc_loss", lambda *a, **k: rows.append(len(a[2])) or ctc_loss(*a, **k)
    )
    _loss(model, batch, config, 1)
    assert rows == [4]


@pytest.mark.parametrize("views", [{}, {"consistency": 0.3}])
def test_the_denominator_is_weighed_and_added(model, batch, views):
    plain, half, whole = (
        float(_loss(model, batch, _config(mmi=mmi, **views)).detach()) for mmi in (0, 0.5, 1)
    )
    features = torch.randn(2, 40, 80, generator=torch.Generator().manual_seed(1))
    log_probs, lengths = model(features, torch.tensor([40, 29]))
    denominator = float(
        log_denominator(log_probs, lengths, unit_trigram(TARGETS, 5)).sum().detach()
    )
    assert half - plain == pytest.approx(0.5 * denominator, rel=1e-4)
    assert whole - plain == pytest.approx(denominator, rel=1e-4)


def test_a_training_with_the_whole_denominator_tells_targets_apart(model, batch):
    """MMI does not care how likely a target is, only which one: the rest comes to nothing."""
    config = _config(mmi=1.0)
    weights = unit_trigram(TARGETS, 5)
    rows = [[0, 0, *target, 0] for target in TARGETS]
    least = sum(
        float(weights[three].log())
        for row in rows
        for three in zip(row, row[1:], row[2:], strict=False)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    values = []
    for step in range(60):
        optimizer.zero_grad()
        loss = _loss(model, batch, config, step)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert min(values) >= least - 1e-3
    assert values[-1] == pytest.approx(least, abs=0.1)


@pytest.mark.parametrize("judge", ["consistency", "mmi", "distill"])
def test_two_judges_need_the_logits(judge):
    with pytest.raises(
        ConfigError, match=r'"ctc" with consistency, mmi or distill: got "linear_ctc"'
    ):
        _config(**{judge: 0.2, "loss": "linear_ctc"})


def test_the_denominator_is_in_float32_where_the_network_is_not(model, batch, monkeypatch):
    cast = []
    monkeypatch.setattr(
        "asr.loss.log_denominator",
        lambda *a: cast.append(torch.is_autocast_enabled("cpu")) or log_denominator(*a),
    )
    _loss(model, batch, _config(mmi=0.9, precision="bf16"))
    assert cast == [False]


def test_a_denominator_is_of_few_units():
    model = AcousticModel(_config(), 129)
    with pytest.raises(ConfigError, match=r"train.mmi: expected at most 128 units, .* got 129; "):
        TrainingLoss(model, _config(mmi=0.9), TARGETS)


@pytest.mark.parametrize(
    "train",
    [{}, {"consistency": 0.2}, {"mmi": 0.5}, {"loss": "linear_ctc"}],
    ids=["ctc", "views", "mmi", "linear"],
)
def test_a_step_waits_for_no_device(model, monkeypatch, train):
    """On `meta` tensors have no values: whatever would read one, as of a GPU, raises."""
    config = _config({"frequency_warp": 0.1, "time_masks": 2, "frequency_masks": 2}, **train)
    waveforms, lengths = torch.randn(2, 16000), torch.tensor([16000, 9000])
    targets, counts = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 1])
    for name in ("ctc_loss", "linear_ctc_loss"):  # theirs is another test's
        monkeypatch.setattr(kernels, name, lambda logits, *_, **__: logits.sum())
    monkeypatch.setattr("asr.loss.computing_in", lambda *_: nullcontext())  # knows no meta
    bank = FilterBank(config.features).to("meta")
    features, frames = bank(waveforms.to("meta"), lengths)
    loss = TrainingLoss(model.to("meta"), config, TARGETS)
    batch = Batch(("a", "b"), waveforms, lengths, targets, counts)
    value = loss(features, frames, batch, 0, torch.Generator().manual_seed(2))
    value.backward()
    assert value.device.type == "meta"
