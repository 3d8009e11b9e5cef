"""A corpus of tones, a recipe that learns it in seconds, and a folder of its manifests."""

from pathlib import Path

import numpy as np
import soundfile

from asr.config import Config, parse_config
from asr.prepare import prepare_tsv

WORDS = ("AB", "BA", "CAB", "ACB", "BC", "CC A", "B A C", "ABBA")
TONES = {"A": 400.0, "B": 1100.0, "C": 2500.0, " ": 0.0}


def say(text: str) -> np.ndarray:
    """A tone for each letter, with a gap after it."""
    seconds = np.arange(int(0.12 * 16000)) / 16000
    tones = [0.3 * np.sin(2 * np.pi * TONES[letter] * seconds) for letter in text]
    gap = np.zeros(int(0.06 * 16000))
    noise = np.random.default_rng(len(text)).normal(0, 0.003, 16000 * 10)
    speech = np.concatenate([gap, *(np.concatenate([tone, gap]) for tone in tones)])
    return speech + noise[: len(speech)]


def prepare(source: Path, out: Path) -> None:
    """Write the corpus into `source` and its manifests into `out`."""
    rows = ["path\tsplit\ttranscript"]
    for copy in range(3):
        for word in WORDS:
            name = f"{word.replace(' ', '_')}_{copy}.wav"
            soundfile.write(source / name, say(word), 16000)
            rows.append(f"{name}\ttrain\t{word}")
    soundfile.write(source / "long.wav", say("AB"), 16000)
    rows.append(f"long.wav\ttrain\t{'AABB' * 30}")  # 120 letters, 60 of them repeats
    for word in WORDS:
        name = f"{word.replace(' ', '_')}_dev.wav"
        soundfile.write(source / name, say(word), 16000)
        rows.append(f"{name}\tdev\t{word}")
    (source / "utterances.tsv").write_text("\n".join(rows) + "\n")
    prepare_tsv(source, out, "tones")


RECIPE = {
    "name": "tones",
    "data": {"train": ["tones_train"], "valid": ["tones_dev"]},
    "units": {"kind": "character"},
    "model": {"conv_channels": 4, "num_layers": 1, "hidden_size": 24, "dropout": 0.1},
    "augment": {"speeds": [1.0, 1.1], "frequency_mask_bins": 4, "time_mask_frames": 4},
    "train": {
        "epochs": 40,
        "max_frames": 600,
        "learning_rate": 0.02,
        "warmup_steps": 10,
        "decay_from": 0.6,
        "checkpoint_steps": 3,
    },
}


def tones_recipe(**train: object) -> Config:
    """With other settings in [train]."""
    return parse_config(RECIPE | {"train": RECIPE["train"] | train}, "test")  # type: ignore[operator]
