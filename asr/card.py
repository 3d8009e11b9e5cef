"""The card of a model that training has written: what it was made from, and how well it does."""

from collections.abc import Sequence

from asr.config import Config


def model_card(
    config: Config,
    seconds: float,  # of training speech
    metric: str,  # PER or WER
    rate: float,  # of the greedy path on the validation speech
    weights: str,  # which ones these are
    teachers: Sequence[str] = (),  # names of the models that were learnt from
) -> str:
    """Markdown."""
    taught = f" and what {', '.join(teachers)} said of it" if teachers else ""
    return (
        f"# {config.name}\n\n"
        f"Trained by `asr train` on {', '.join(config.data.train)}: {seconds / 3600:.2f} h of "
        f"speech{taught}.\nWeights: {weights}. "
        f"{metric} (greedy) on {', '.join(config.data.valid)}: {rate:.2%}.\n\n"
        "`config.toml` is the whole recipe. The licence of the weights follows from the data's"
        + (", and from the teachers'.\n" if teachers else ".\n")
    )
