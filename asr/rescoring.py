"""A second pass over what the search found: a recurrent language model ranks it anew.

The n-gram of the search looks two words back, a recurrent model at all of them, but a beam cannot
ask it at every step. So it scores the search's best hypotheses only (Mikolov et al. 2010). Its
units are subwords: it knows every word, and its output layer is small.

rescorer.safetensors   weights (float16 or float32), whose shapes say how large the model is
rescorer.model         the subwords (sentencepiece), with marks for a text's beginning and end
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import kernels
from asr.config import DecodeConfig
from asr.errors import ModelError
from asr.files import replacing
from asr.word_search import Alternatives, Hypothesis

RESCORER_FILES = ("rescorer.safetensors", "rescorer.model")
_NOTHING = -100  # target where there is padding
_State = tuple[Tensor, Tensor]  # h and c, [1, B, H]


class SubwordModel(nn.Module):
    """Subwords -> logits of the one that follows; one matrix embeds them and tells them apart.

    Args:
        units: subwords, V.
        embedding_size: E.
        hidden_size: H, of the LSTM's one layer.
    """

    def __init__(self, units: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(units, embedding_size)
        nn.init.normal_(self.embedding.weight, std=embedding_size**-0.5)
        self.lstm = kernels.LSTM(embedding_size, hidden_size)
        forget = self.lstm.get_parameter("bias_ih_l0")[hidden_size : 2 * hidden_size]
        nn.init.ones_(forget)
        self.projection = nn.Linear(hidden_size, embedding_size)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(
        self,
        units: Tensor,  # [T, B] int64
        state: _State | None = None,  # before the first of them; None: nothing was said
    ) -> tuple[Tensor, _State]:  # [T, B, V], state after the last
        """Logits after each unit. Padding comes last, where no valid unit can see it."""
        scale = self.embedding.embedding_dim**0.5  # to the LSTM each entry is about 1
        hidden, state = self.lstm(scale * self.embedding(units), state)
        return F.linear(self.projection(hidden), self.embedding.weight, self.bias), state

    def surprise(self, texts: Sequence[Sequence[int]], begin: int, end: int) -> Tensor:
        """-ln p of each text's units and of `end` after them, 0 in padding: [T, B] float32."""
        device = self.bias.device
        units = pad_sequence([torch.tensor([begin, *text]) for text in texts])
        wanted = [torch.tensor([*text, end]) for text in texts]
        targets = pad_sequence(wanted, padding_value=_NOTHING).to(device)
        logits = self(units.to(device))[0].float().movedim(-1, 1)  # [T, V, B]
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=_NOTHING)

    @torch.inference_mode()
    def log_probs(self, texts: Sequence[Sequence[int]], begin: int, end: int) -> list[float]:
        """ln p of each text and of `end` after it; beginnings that texts share are read once."""
        scores = [0.0] * len(texts)
        nodes = dict.fromkeys(range(len(texts)), 0)  # text -> which of the beginnings is its own
        units, state, sums = [begin], None, torch.zeros(1, 1)  # of each beginning
        for length in range(max(map(len, texts), default=-1) + 1):
            logits, (h, c) = self(torch.tensor([units]), state)
            sums = sums + logits[0].log_softmax(-1)  # [beginnings, V], with each unit after it
            longer: dict[tuple[int, int], int] = {}
            for text, node in list(nodes.items()):
                if length == len(texts[text]):
                    scores[text] = float(sums[nodes.pop(text), end])
                else:
                    beginning = node, texts[text][length]
                    nodes[text] = longer.setdefault(beginning, len(longer))
            parents = [node for node, _ in longer]
            units = [unit for _, unit in longer]
            sums = sums[parents, units, None]
            state = h[:, parents], c[:, parents]
        return scores


class Rescorer:
    """Ranks the hypotheses of a search by its score and a `SubwordModel`'s.

    Args:
        pieces: the model's subwords.
        model: the language model.
    """

    def __init__(
        self,
        pieces: sentencepiece.SentencePieceProcessor,
        model: SubwordModel,
    ) -> None:
        self._pieces = pieces
        self.model = model.eval()

    def __call__(self, found: Sequence[Alternatives], config: DecodeConfig) -> list[Alternatives]:
        """Each utterance's hypotheses with new scores, best first."""
        ranked = []
        for hypotheses, log_probs in zip(found, self.log_probs(found), strict=True):
            scored = (
                replace(said, score=second_score(said, log_prob, config))
                for said, log_prob in zip(hypotheses, log_probs, strict=True)
            )
            ranked.append(tuple(sorted(scored, key=lambda said: -said.score)))
        return ranked

    def log_probs(self, found: Sequence[Alternatives]) -> list[list[float]]:
        """ln p of each hypothesis' words and that they end there."""
        said = [hypothesis.words for hypothesis in chain(*found)]
        texts = self._pieces.encode([" ".join(words) for words in said])
        scores = iter(self.model.log_probs(texts, self._pieces.bos_id(), self._pieces.eos_id()))
        return [[next(scores) for _ in hypotheses] for hypotheses in found]


def second_score(said: Hypothesis, log_prob: float, config: DecodeConfig) -> float:
    """The search's score with some of the n-gram's part exchanged for the recurrent model's."""
    ngram = (1 - config.rescore_ngram) * config.lm_weight * said.lm_score
    words = config.rescore_word_score * len(said.words)
    return said.score - ngram + config.rescore_weight * log_prob + words


def has_rescorer(directory: Path) -> bool:
    """Whether a model directory has a recurrent language model."""
    return (directory / RESCORER_FILES[0]).is_file()


def load_rescorer(directory: Path) -> Rescorer:
    """The recurrent language model of a model directory, on the CPU in float32.

    Args:
        directory: where `RESCORER_FILES` are.

    Raises:
        ModelError: a file is missing or damaged, or they do not fit each other.
    """
    weights_file, pieces_file = (directory / name for name in RESCORER_FILES)
    try:
        weights = load_file(weights_file)
        pieces = sentencepiece.SentencePieceProcessor(model_proto=pieces_file.read_bytes())
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{directory}: cannot read its second language model: {error}") from None
    try:
        units, embedding_size = weights["embedding.weight"].shape
        model = SubwordModel(units, embedding_size, weights["lstm.weight_hh_l0"].shape[1])
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{weights_file}: expected the weights of an LSTM: {error}") from None
    if units != pieces.vocab_size() or min(pieces.bos_id(), pieces.eos_id()) < 0:
        raise ModelError(
            f"{pieces_file}: expected {units} pieces with marks for beginning and end, "
            f"got {pieces.vocab_size()}; take both files from one model"
        )
    return Rescorer(pieces, model)


def save_rescorer(
    directory: Path, model: SubwordModel, pieces: bytes, dtype: torch.dtype = torch.float16
) -> None:
    """Write the files that `load_rescorer` reads; weights as `dtype`."""
    weights_file, pieces_file = (directory / name for name in RESCORER_FILES)
    weights = {name: value.cpu().to(dtype) for name, value in model.state_dict().items()}
    with replacing(weights_file) as partial:
        save_file(weights, partial)
    with replacing(pieces_file) as partial:
        partial.write_bytes(pieces)
