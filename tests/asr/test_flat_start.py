import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asr import flat_start
from asr.flat_start import flat_alignment, flat_start_loss, loudness


@given(
    st.lists(st.tuples(st.integers(2, 40), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_an_alignment_is_the_target_in_order_with_blanks(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([frames for frames, _ in sizes])
    counts = torch.tensor([min(units, frames) for frames, units in sizes])
    targets = torch.randint(1, 10, (int(counts.sum()),), generator=generator)
    loudness = torch.randn(len(sizes), int(lengths.max()), generator=generator)
    labels = flat_alignment(loudness, lengths, targets, counts)
    for row, length, target in zip(labels, lengths, targets.split(counts.tolist()), strict=True):
        assert (row[length:] == -1).all()
        spoken = [int(unit) for unit in row[:length] if unit != 0]
        # In order: what is spoken is the target with units repeated or, if too quiet, left out.
        place = 0
        for unit in spoken:
            while int(target[place]) != unit:
                place += 1


def test_quiet_frames_are_blank_and_loud_ones_are_shared_evenly():
    loudness = torch.tensor([[-9.0, -9, 0, 0, 0, 0, 0, 0, -9, -9]])
    labels = flat_alignment(
        loudness, torch.tensor([10]), torch.tensor([5, 6, 7]), torch.tensor([3])
    )
    assert labels.tolist() == [[0, 0, 5, 5, 6, 6, 7, 7, 0, 0]]


def test_the_loss_falls_where_the_network_agrees():
    loud = torch.tensor([[-9.0, -9, 0, 0, 0, 0, 0, 0, -9, -9]])
    right = torch.tensor([[0, 0, 5, 5, 6, 6, 7, 7, 0, 0]])
    output = nn.Linear(9, 9)
    nn.init.eye_(output.weight)
    nn.init.zeros_(output.bias)

    def loss(labels: torch.Tensor) -> float:
        hidden = torch.full((1, 10, 9), -50.0).scatter(2, labels[..., None], 0.0)
        counts = torch.tensor([5, 6, 7]), torch.tensor([10]), torch.tensor([3])
        return float(flat_start_loss(output, hidden, loud, *counts).detach())

    assert loss(right) == 0
    assert loss(right.flip(1)) > 1


@pytest.mark.parametrize("logits", [1, 40, 10_000])
def test_chunks_are_the_mean_over_valid_frames_times_the_units(monkeypatch, logits):
    monkeypatch.setattr(flat_start, "_LOGITS_AT_ONCE", logits)
    generator = torch.Generator().manual_seed(0)
    output = nn.Linear(6, 9)
    hidden = torch.randn(2, 7, 6, generator=generator, requires_grad=True)
    loud = torch.randn(2, 7, generator=generator)
    labels = torch.tensor([5, 6, 7, 1, 2]), torch.tensor([7, 4]), torch.tensor([3, 2])
    inputs = (hidden, output.weight, output.bias)
    loss = flat_start_loss(output, hidden, loud, *labels)
    units = flat_alignment(loud, labels[1], labels[0], labels[2])
    frames = output(hidden).log_softmax(-1)[units >= 0]
    expected = -frames.gather(1, units[units >= 0, None]).mean() * 5
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    )


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 1000)
)
def test_padding_is_as_loud_as_the_end(lengths, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(length, 3, generator=generator) for length in lengths]
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    loud = loudness(padded, torch.tensor(lengths), factor)
    for row, own in zip(loud, features, strict=True):
        frames = own.mean(1)
        alone = torch.cat([frames, frames[-1:].expand(-len(own) % factor)])
        torch.testing.assert_close(row[: len(alone) // factor], alone.view(-1, factor).mean(1))
