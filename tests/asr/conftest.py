"""What several tests of the recogniser are given."""

from pathlib import Path

import pytest
from tones import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of the corpus of tones."""
    out = tmp_path_factory.mktemp("manifests")
    prepare(tmp_path_factory.mktemp("tones"), out)
    return out
