from hypothesis import given
from hypothesis import strategies as st

from asr.select import required_frames


@given(st.lists(st.integers(1, 3), max_size=20))
def test_required_frames_counts_repeats(target):
    # The shortest CTC path: a blank goes between equal neighbours, nothing else.
    path: list[int] = []
    for unit in target:
        path += [0, unit] if path and path[-1] == unit else [unit]
    assert required_frames(target) == len(path)
