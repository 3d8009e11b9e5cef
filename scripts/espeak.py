"""Speech of espeak-ng as a waveform, for the scripts that make corpora and the sample."""

import subprocess
import tempfile

import numpy as np

from asr.audio import read_audio
from asr.errors import DataError


def speak(
    text: str, voice: str = "en-us", speed: int = 160, pitch: int = 50, gap: int = 0
) -> np.ndarray:
    """Say `text`.

    Args:
        text: one clause or more; read as written, so capitals may be spelt.
        voice: a language, or a language and a variant: `en-gb+f3`.
        speed: words a minute.
        pitch: 0 to 99.
        gap: silence between words, in units of 10 ms at the default speed.

    Returns:
        `[N]` float32, 16 kHz.

    Raises:
        DataError: espeak-ng is not installed, or does not know the voice.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap)]
        try:
            subprocess.run(
                [*command, "-w", wav.name], input=text, capture_output=True, text=True, check=True
            )
        except FileNotFoundError:
            raise DataError("espeak-ng is not installed; apt-get install espeak-ng") from None
        except subprocess.CalledProcessError as error:
            raise DataError(f"espeak-ng: {' '.join(error.stderr.split())}") from None
        return read_audio(wav.name).numpy()
