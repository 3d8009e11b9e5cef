"""Speech recognition: audio -> filterbank -> BLSTM -> CTC -> transcript.

`load_model().transcribe("speech.flac").text` is the shortest way through it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.loading import load_model
    from asr.transcribe import Recognizer, Transcript, Word

__all__ = ["Recognizer", "Transcript", "Word", "load_model"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Lazy, so that `asr --help` does not pay for importing torch, nor `load_model` too early.
    if name == "load_model":
        from asr.loading import load_model

        return load_model
    if name in __all__:
        import asr.transcribe

        return getattr(asr.transcribe, name)
    raise AttributeError(f"module 'asr' has no attribute {name!r}")
