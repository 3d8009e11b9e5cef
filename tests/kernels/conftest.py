"""What tests of compiled code need."""

import pytest


@pytest.fixture
def fresh_compiler() -> None:
    """Dynamo counts how often a function is compiled in a process, whichever test asks for it."""
    import torch._dynamo

    torch._dynamo.reset()
