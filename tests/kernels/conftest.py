"""What tests of GPUs need, and why they are skipped where it is not there."""

import os

import pytest


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
