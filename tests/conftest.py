"""Settings that hold for every test; it is imported before any test imports torch."""

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else the workers fight over the cores

# A shared machine's timing says nothing about a law, and CI must not find new cases by chance.
settings.register_profile("asr", deadline=None, derandomize=True)
settings.load_profile("asr")
