import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from asr.threads import pool_with_cores


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

    with pool_with_cores(4, "test", cores) as pool:
        for _ in range(4):
            pool.submit(see)
    assert seen == [cores] * 4
    assert torch.get_num_threads() == 3
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[-1] == 3


@pytest.mark.usefixtures("three_threads")
def test_no_thread_waits_for_those_that_never_came(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, submitted = ThreadPoolExecutor.submit, []

    def interrupted(pool: ThreadPoolExecutor, *task: Any) -> Any:
        if len(submitted) == 2:
            raise KeyboardInterrupt
        submitted.append(submit(pool, *task))

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool_with_cores(4, "test")
    assert [type(each.exception(10)) for each in submitted] == [threading.BrokenBarrierError] * 2
    assert torch.get_num_threads() == 3
