"""What the times were taken on, and with which code."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

Machine = dict[str, str | int | None]


def machine(device: torch.device) -> Machine:
    """Card or processor, driver, versions, commit and date; None for what is not there."""
    facts: Machine = {"device": device.type}
    if device.type == "cuda":
        facts |= {
            "card": torch.cuda.get_device_name(device),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        facts |= {
            "card": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }
    return facts | {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """First line that `command`, run beside this file, prints; None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    lines = run.stdout.split("\n")
    return lines[0].strip() if run.returncode == 0 else None
