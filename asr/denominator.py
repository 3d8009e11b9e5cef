"""The denominator of MMI training: what else the network hears that people might have said.

CTC makes the transcript likely by itself. A recogniser weighs it against everything that its
language model allows, and errs where something else wins. Maximum mutual information (MMI) trains
for that: a unit trigram stands for the language model, and the sum over all unit sequences of what
network and trigram think of them is pushed down while the transcript is pulled up: CTC's loss plus
the logarithm of that sum, up to the trigram's weight of the transcript, which has no gradient. On
CTC's paths this is CTC-CRF (Xiang and Ou 2019, "CRF-based single-stage acoustic modeling with CTC
topology"); without lattices, as Povey et al. 2016 do it for HMMs.
"""

import torch
from torch import Tensor

from asr.errors import ConfigError

MOST_UNITS = 128  # the trigram is a dense cube of them, and each frame walks through it


def unit_trigram(targets: list[list[int]], units: int) -> Tensor:
    """Weights [V, V, V] float32 of a unit after two others, from sequences of units.

    Index 0, CTC's blank, stands before a sequence as a context, and for its end as what follows.
    Probabilities, interpolated with bigram, unigram and uniform distribution as Witten and Bell
    (1991) weigh them, so that nothing is impossible; those of units times the perplexity, so that
    a unit of these sequences costs nothing on average. Else the network would learn to pay for it
    with units likelier than they are, and its greedy path would say too many: measured.

    Raises:
        ConfigError: V is more than `MOST_UNITS`.
    """
    if units > MOST_UNITS:
        raise ConfigError(
            f"train.mmi: expected at most {MOST_UNITS} units, as each three have a weight, got "
            f"{units}; take phonemes, characters or fewer subwords, or set train.mmi = 0"
        )
    rows = [torch.tensor([0, 0, *target, 0]) for target in targets]
    places = torch.cat([(row[:-2] * units + row[1:-1]) * units + row[2:] for row in rows])
    cube = torch.bincount(places, minlength=units**3).double().view(units, units, units)
    probability = torch.full((units,), 1.0 / units, dtype=torch.float64)
    for order in (cube.sum((0, 1)), cube.sum(0), cube):  # [V], [V, V], [V, V, V]
        kinds = (order > 0).sum(-1, keepdim=True).clamp(min=1)  # an unseen context backs off wholly
        probability = (order + kinds * probability) / (order.sum(-1, keepdim=True) + kinds)
    spoken = cube[..., 1:]
    perplexity = (-(spoken * probability[..., 1:].log()).sum() / spoken.sum()).exp()
    probability[..., 1:] *= perplexity
    return probability.float()


def log_denominator(
    log_probs: Tensor,  # [B, T, V], of a softmax
    lengths: Tensor,  # [B] int64, valid frames
    trigram: Tensor,  # [V, V, V], see `unit_trigram`
) -> Tensor:  # [B], nats, in float32
    """log sum over unit sequences of p(sequence | audio) * w(sequence), over all CTC paths.

    The first factor is CTC's, the second the product of the trigram's weights, the end's
    included. The recursion runs over the last two units, once with the last one sounding and once
    with blank after it, in float32 and scaled to sum to one at each frame; differentiable by
    autograd, which keeps two [B, V, V] of each frame.
    """
    B, T, V = log_probs.shape
    valid = torch.arange(T, device=lengths.device) < lengths[:, None]  # [B, T]
    only_blank = log_probs.new_full((V,), -torch.inf, dtype=torch.float32)  # changes nothing
    only_blank[0] = 0.0
    probs = torch.where(valid[..., None], log_probs.float(), only_blank).exp()
    others = trigram.clone()  # of a unit unlike the one before, which needs no blank between
    others[..., 0] = 0.0  # no unit, but the end
    others.diagonal(dim1=1, dim2=2).zero_()
    others = others.transpose(0, 1)  # [last, before, next], a product for each `last`
    again = trigram.diagonal(dim1=1, dim2=2).clone()  # [before, last]
    again[:, 0] = 0.0
    silent = probs.new_zeros(B, V, V)  # [B, before, last]
    silent[:, 0, 0] = 1.0
    sounding = torch.zeros_like(silent)
    total = silent
    log_scale = probs.new_zeros(B)
    for frame in probs.unbind(1):
        # Contiguous, or a copy is made for each `last`.
        moved = (total.permute(2, 0, 1).contiguous() @ others).transpose(0, 1)  # [B, last, next]
        repeated = torch.diag_embed((silent * again).sum(1))
        sounding = (sounding + moved + repeated) * frame[:, None, :]
        silent = total * frame[:, None, :1]
        total = sounding + silent
        scale = total.detach().sum((1, 2), keepdim=True)  # it leaves the gradient as it is
        sounding, silent, total = sounding / scale, silent / scale, total / scale
        log_scale = log_scale + scale[:, 0, 0].log()
    return log_scale + (total * trigram[..., 0]).sum((1, 2)).log()
