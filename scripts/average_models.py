"""Average the weights of trained models of one shape: often better than each of them.

    python scripts/average_models.py exp/ONE/model exp/OTHER/model --out exp/mean/model

The models must have begun with the same weights, not too long ago, or their mean is none
(Wortsman et al. 2022, "Model soups"); one named twice counts twice. The mean has the first one's
settings and can be trained on (`asr train --init`), packaged and evaluated as any other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from asr.config import other_network
from asr.errors import AsrError, DataError
from asr.model_dir import load_model_dir, save_model_dir


def average(models: Sequence[Path], out: Path) -> None:
    """Write `out`, a model directory with the mean weights of `models`, in float16.

    Raises:
        DataError: they differ in features, units or layers, or `out` is one of them.
        ModelError: one cannot be read.
    """
    first, *others = (load_model_dir(model) for model in models)
    for other in others:
        if unlike := other_network(other.config, first.config):
            raise DataError(f"{other.directory}: its {unlike}, as {first.directory} has")
        if other.tokenizer.units != first.tokenizer.units:
            raise DataError(f"{other.directory}: its units are not those of {first.directory}")
    if out.resolve() in (model.resolve() for model in models):
        raise DataError(f"{out}: is one of the models; write the mean elsewhere")
    every = [part.model.state_dict() for part in (first, *others)]
    first.model.load_state_dict(
        {name: torch.stack([weights[name] for weights in every]).mean(0) for name in every[0]}
    )
    names = ", ".join(str(model) for model in models)
    save_model_dir(out, first.config, first.model, first.tokenizer, f"The mean of {names}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model directory")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        average(arguments.models, arguments.out)
    except (AsrError, OSError) as error:
        sys.exit(f"average_models: {error}")


if __name__ == "__main__":
    main()
