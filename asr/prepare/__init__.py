"""Corpora -> manifests: one function a corpus layout, all writing the same files.

A new corpus needs a function that lists its `Item`s and hands them to `write_manifests`, or an
`utterances.tsv` and no code at all.
"""

from asr.prepare.librispeech import prepare_librispeech
from asr.prepare.manifests import Audio, Item, Part, Rejected, Summary, write_manifests
from asr.prepare.tsv import prepare_tsv

__all__ = [
    "Audio",
    "Item",
    "Part",
    "Rejected",
    "Summary",
    "prepare_librispeech",
    "prepare_tsv",
    "write_manifests",
]
