import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.flat_start import flat_alignment, flat_start_loss


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
    features = torch.tensor([-9.0, -9, 0, 0, 0, 0, 0, 0, -9, -9]).view(1, 10, 1)
    right = torch.tensor([[0, 0, 5, 5, 6, 6, 7, 7, 0, 0]])
    lengths, targets, counts = torch.tensor([10]), torch.tensor([5, 6, 7]), torch.tensor([3])

    def loss(labels: torch.Tensor) -> float:
        log_probs = torch.full((1, 10, 9), -5.0).scatter(2, labels[..., None], 0.0)
        return float(flat_start_loss(log_probs, lengths, features, targets, counts))

    assert loss(right) == 0
    assert loss(right.flip(1)) > 1
