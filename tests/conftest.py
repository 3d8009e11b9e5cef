"""Settings that hold for every test; it is imported before any test imports torch.

Also what tests of GPUs need, why they are skipped where it is not there, and how they end.
"""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else the workers fight over the cores

# Triton decides at its import whether it interprets. `pytest -m gpu` sets it to 0, see scripts.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A shared machine's timing says nothing about a law, and CI must not find new cases by chance.
settings.register_profile("asr", deadline=None, derandomize=True)
settings.load_profile("asr")

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a character model that has learnt nothing, but runs."""
    import torch

    from asr.config import Config, ModelConfig, UnitConfig
    from asr.model import AcousticModel
    from asr.model_dir import save_model_dir
    from asr.tokenizer import build_tokenizer

    config = Config(
        name="tiny",
        units=UnitConfig(kind="character"),
        model=ModelConfig(conv_channels=2, num_layers=1, hidden_size=4),
    )
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.units, ["THE QUICK BROWN FOX"])
    network = AcousticModel(config, len(tokenizer.units))
    save_model_dir(directory, config, network, tokenizer, "# tiny\n\nWER on nothing: 100 %\n")
    return directory
