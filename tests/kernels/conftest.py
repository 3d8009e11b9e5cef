"""What tests of GPUs need, why they are skipped where it is not there, and how they end."""

import faulthandler
import os
from collections.abc import Iterator

import pytest

SECONDS = 100  # most of a minute of which may go into compiling


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hung card cannot be interrupted: end the process, and with it what runs there."""
    on_gpu = request.node.get_closest_marker("gpu")
    if on_gpu:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    if on_gpu:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def fresh_compiler() -> None:
    """Dynamo counts how often a function is compiled in a process, whichever test asks for it."""
    import torch._dynamo

    torch._dynamo.reset()


def _missing() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "needs a GPU"
    if os.environ["TRITON_INTERPRET"] != "0":
        return "needs TRITON_INTERPRET=0 before Triton is imported, see scripts/gpu_check"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = _missing() if on_gpu else None
    if reason:
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))
