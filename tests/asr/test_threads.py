import threading
from collections.abc import Iterator

import pytest
import torch

from asr.threads import one_core_each


@pytest.fixture
def three_threads() -> Iterator[None]:
    inherited = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(inherited)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("cores", [1, 2])
def test_each_thread_has_its_cores_and_nobody_else_is_told(cores: int) -> None:
    everyone = threading.Barrier(4)
    seen = []

    def see() -> None:
        everyone.wait(10)  # so that no thread takes two of these
        seen.append(torch.get_num_threads())

    with one_core_each(4, "test", cores) as pool:
        for _ in range(4):
            pool.submit(see)
    assert seen == [cores] * 4
    assert torch.get_num_threads() == 3
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[-1] == 3
