"""The weights of the best epochs, kept on disk and averaged at the end of a training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr.checkpoint import EpochScore
from asr.errors import ModelError
from asr.files import replacing


class BestEpochs:
    """Weights of the `count` epochs with the lowest error rates, one file an epoch.

    A quiet one writes and deletes nothing: of several processes one does.
    """

    def __init__(self, folder: Path, count: int, *, quiet: bool = False) -> None:
        self.folder = folder
        self.count = count
        self.quiet = quiet

    def rank(self, history: Sequence[EpochScore]) -> list[int]:
        """The best epochs so far, best first; of equals the later one."""
        ranked = sorted(history, key=lambda score: (score.error_rate, -score.epoch))
        return [score.epoch for score in ranked[: self.count]]

    def keep(self, model: nn.Module, history: Sequence[EpochScore]) -> None:
        """Save the last epoch's weights if it is among the best."""
        if not self.quiet and history[-1].epoch in self.rank(history):
            weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            with replacing(self._file(history[-1].epoch)) as partial:
                save_file(weights, partial)

    def drop_others(self, history: Sequence[EpochScore]) -> None:
        """Delete what is no longer among the best: once the checkpoint knows that it is not."""
        best = self.rank(history)
        for path in self.folder.glob("*.safetensors"):
            if not self.quiet and path.stem.isdecimal() and int(path.stem) not in best:
                path.unlink()

    def kept(self, history: Sequence[EpochScore]) -> list[int]:
        """The best epochs whose weights are here, best first."""
        return [epoch for epoch in self.rank(history) if self._file(epoch).exists()]

    def average(self, history: Sequence[EpochScore]) -> dict[str, Tensor]:
        """Mean of the weights of `kept(history)` (Izmailov 2018); there must be some.

        Raises:
            ModelError: those of an epoch are damaged.
        """
        sets = [self._load(epoch) for epoch in self.kept(history)]
        return {name: torch.stack([s[name] for s in sets]).mean(0) for name in sets[0]}

    def _load(self, epoch: int) -> dict[str, Tensor]:
        try:
            return load_file(self._file(epoch))
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{self._file(epoch)}: cannot read the weights: {error}; delete it, and the mean "
                "will be that of the others"
            ) from None

    def _file(self, epoch: int) -> Path:
        return self.folder / f"{epoch:04d}.safetensors"
