"""A development set out of a corpus that has none."""

import hashlib
from collections.abc import Sequence

from asr.errors import DataError
from asr.prepare.manifests import Item


def choose_dev(items: Sequence[Item], dev_speakers: int, dev_every: int) -> set[str]:
    """Ids of the utterances of split train that shall be split dev.

    The choice is by a hash of the name, so that what is added to a corpus hardly moves what was
    there: an utterance never, a speaker only to make room for a new one.

    Args:
        items: the corpus.
        dev_speakers: so many whole speakers, those of the smallest hashes; 0: not by speaker.
        dev_every: one utterance in so many; 0: not by utterance.

    Raises:
        DataError: both or a negative number given, dev exists already, or too few to choose from.
    """
    if dev_speakers < 0 or dev_every < 0 or (dev_speakers and dev_every):
        raise DataError(
            "expected either dev_speakers or dev_every to be positive, "
            f"got {dev_speakers} and {dev_every}"
        )
    if not dev_speakers and not dev_every:
        return set()
    if any(item.split == "dev" for item in items):
        raise DataError("the corpus already has a split dev; leave dev_speakers and dev_every 0")
    train = [item for item in items if item.split == "train"]
    if dev_every:
        chosen = {item.id for item in train if _hash(item.id) % dev_every == 0}
        if not chosen:
            raise DataError(
                f"dev_every = {dev_every}: got none of {len(train)} utterances of split train; "
                "take a smaller number"
            )
        return chosen
    speakers = sorted({item.speaker for item in train} - {""}, key=_hash)
    if len(speakers) <= dev_speakers:
        raise DataError(
            f"expected more named speakers in split train than dev_speakers = {dev_speakers}, got "
            f"{len(speakers)}; take fewer (--dev-speakers), or one utterance in some (--dev-every)"
        )
    dev = set(speakers[:dev_speakers])
    return {item.id for item in train if item.speaker in dev}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
