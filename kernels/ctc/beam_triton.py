"""The beam search in Triton: one launch for all frames, one for the traces. The host never waits.

How it works: `beam_kernels`. Before and after the launches there are some operators of torch,
their number independent of T: the units that may extend a prefix, the scores of ending, and what
`Hypotheses` says of the traces.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from kernels.context import current_device
from kernels.ctc import beam_kernels, beam_torch
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram
from kernels.ctc.scorer_kernels import HotwordTables, NGramTables, Scoring, Sizes, TreeTables

if TYPE_CHECKING:
    from kernels.bench.compiled import Specimen
    from kernels.ctc.beam import Scorer, Speller

MOST_BEAM = 1024  # compiles in 21 s for sm_90; 2048 had not after 300 s
_FEWEST_LANES = 4  # 2**4: as many possible parents are compared at once
_NO_NGRAM = NGramTables(*(None,) * 6)
_NO_TREE = TreeTables(*(None,) * 5)
_NO_HOTWORDS = HotwordTables(*(None,) * 3)


def takes(lm: "Scorer | Speller | None", hotwords: "Scorer | None") -> bool:
    """Whether the kernels know these scorers; a class derived from ours may do something else."""
    return type(lm) in (NGram, WordNGram, type(None)) and type(hotwords) in (Hotwords, type(None))


@dataclass(frozen=True)
class Search(beam_torch.Search):
    """As `beam_torch.Search`, of scorers that `takes` accepts."""

    def __call__(self, log_probs: Tensor, lengths: Tensor, nbest: int) -> tuple[Tensor, ...]:
        """See `beam_torch.Search`."""
        with current_device(log_probs.device):
            return super().__call__(log_probs, lengths, nbest)

    def _through(self, log_probs: Tensor, lengths: Tensor) -> beam_torch.Found:
        T, B, V = log_probs.shape
        K, C, R = self.beam, self.units, self.speller.options
        units = self._units(log_probs)
        at_blank, at_label, extra = (log_probs.new_empty(B, K) for _ in range(3))
        context, node = (lengths.new_empty(B, K) for _ in range(2))
        ways, words = lengths.new_empty(T, B, 2 * K), lengths.new_empty(T, B, K)
        marks = lengths.new_zeros(B, K, V, R, dtype=torch.int32)
        start, scoring, sizes = self._scoring()
        beam_kernels.search_kernel[(B,)](
            *(
                log_probs,
                lengths,
                units,
                marks,
                at_blank,
                at_label,
                extra,
                context,
                node,
                ways,
                words,
            ),
            *(T, B, K, C, V, self.blank, *log_probs.stride(), *units.stride()[:2]),
            *(start, scoring, *sizes),
            R=R,
            LOG_ADD=self.combine is torch.logaddexp,
            **_plan(K, K * C * R),
        )
        states = {NGram: context, Hotwords: node}
        after = tuple(states[type(scorer)] for scorer in self.scorers)
        return beam_torch.Found(at_blank, at_label, extra, context, after, ways, words)

    def _walk(
        self, found: beam_torch.Found, lengths: Tensor, state: Tensor, V: int
    ) -> tuple[Tensor, Tensor]:
        T, B, K = found.words.shape
        N = state.shape[1]
        spoken = state.new_full((B, N, T), self.blank)
        ended = torch.full_like(spoken, -1)
        beam_kernels.trace_kernel[(B,)](
            *(found.ways, found.words, lengths, state, spoken, ended, T, B, K, V, N),
            BLOCK=triton.next_power_of_2(N),
            num_warps=1,
        )
        return spoken, ended

    def _units(self, log_probs: Tensor) -> Tensor:
        """Units that may extend a prefix, [T, B, C] int64."""
        T, B, V = log_probs.shape
        every = torch.arange(V, device=log_probs.device)
        if self.units == V - 1:
            others = every[:-1] + (every[:-1] >= self.blank)
            return others.expand(T, B, V - 1)
        likely = log_probs.masked_fill(every == self.blank, -torch.inf)
        return likely.topk(self.units, sorted=False).indices

    def _scoring(self) -> tuple[int, Scoring, Sizes]:
        """State of the language model at the beginning; all scorers' tables, and their sizes."""
        start, weight = self.speller.start, self.speller_weight
        ngram, tree, hotwords = _NO_NGRAM, _NO_TREE, _NO_HOTWORDS
        sizes = Sizes(*(0,) * len(Sizes._fields))
        if isinstance(self.speller, WordNGram):
            ngram, tree = _ngram_tables(self.speller.model), _tree_tables(self.speller)
            sizes = _with_model(sizes, self.speller.model)._replace(
                edges=len(self.speller.keys), tree_units=self.speller.num_units
            )
        for scorer, its_weight in zip(self.scorers, self.weights, strict=True):
            if isinstance(scorer, NGram):
                start, weight, ngram = scorer.start, its_weight, _ngram_tables(scorer)
                sizes = _with_model(sizes, scorer)
            elif isinstance(scorer, Hotwords):
                hotwords = HotwordTables(scorer.after, scorer.complete, scorer.begun)
                sizes = sizes._replace(hotword_units=scorer.after.shape[1])
        extra = weight, self.token_score, self.word_score
        return start, Scoring(ngram, tree, hotwords, *map(float, extra)), sizes


def _ngram_tables(ngram: NGram) -> NGramTables:
    tables = ngram.words, ngram.keys, ngram.log_probs, ngram.targets, ngram.backoffs, ngram.shorter
    return NGramTables(*tables)


def _with_model(sizes: Sizes, ngram: NGram) -> Sizes:
    return sizes._replace(
        arcs=len(ngram.keys),
        model_words=ngram.num_words,
        order=ngram.order,
        contexts=len(ngram.backoffs),
    )


def _tree_tables(lexicon: WordNGram) -> TreeTables:
    return TreeTables(
        lexicon.keys, lexicon.children, lexicon.words, lexicon.goes_on, lexicon.promises
    )


def _plan(K: int, extensions: int) -> dict[str, int]:
    """Sizes of a program for K prefixes and all their extensions: no registers are spilled.

    Known from compilation, up to 128 prefixes. Which sizes are fastest is not known.
    """
    lanes = max(_FEWEST_LANES, _exponent(K))
    tile = max(lanes, min(10 if lanes <= 6 else 9, _exponent(extensions)))
    return {"LOG": lanes, "HALVINGS": tile - lanes, "num_warps": max(1, 2**tile // 128)}


def _exponent(size: int) -> int:
    """Of the smallest power of two that is not below it."""
    return (size - 1).bit_length()


_TARGETS = ("sm_80", "sm_90", "sm_100")  # Triton's compiler fails on it for AMD
_NGRAM = NGramTables("*i64", "*i64", "*fp32", "*i64", "*fp32", "*i64")
_TREE = TreeTables("*i64", "*i64", "*i64", "*i1", "*fp32")
_HOTWORDS = HotwordTables("*i64", "*fp32", "*fp32")


def specimens() -> "list[Specimen]":
    """What `python -m kernels.bench compile` compiles: common beams, with and without scorers."""
    from kernels.bench.compiled import Specimen

    trace = dict.fromkeys(beam_kernels.trace_kernel.arg_names, "*i64")
    trace |= dict.fromkeys(("T", "B", "K", "V", "N"), "i32") | {"BLOCK": "constexpr"}
    found = [
        Specimen(
            "ctc beam search, trace",
            beam_kernels.trace_kernel,
            trace,
            {"BLOCK": 8},
            {"num_warps": 1},
        )
    ]
    for K in (16, 64, 128):  # those between have the plan of the next one
        found.append(_specimen(Specimen, f"K={K}", K, (_NO_NGRAM, _NO_TREE, _NO_HOTWORDS)))
        found.append(_specimen(Specimen, f"K={K}, n-gram", K, (_NGRAM, _NO_TREE, _HOTWORDS)))
        found.append(_specimen(Specimen, f"K={K}, words", K, (_NGRAM, _TREE, _HOTWORDS), R=7))
    return found


def _specimen(
    make: "type[Specimen]",
    name: str,
    K: int,
    tables: tuple[NGramTables, TreeTables, HotwordTables],
    R: int = 1,
) -> "Specimen":
    kernel = beam_kernels.search_kernel
    names = kernel.arg_names
    plan = _plan(K, K * 40 * R)
    options = {"num_warps": plan.pop("num_warps")}
    constants: dict[Any, object] = {"R": R, "LOG_ADD": True, "stride_v": 1, **plan}
    signature: dict[str, Any] = dict.fromkeys(names, "i32") | dict.fromkeys(constants, "constexpr")
    signature |= dict.fromkeys(("log_probs", "at_blank_out", "at_label_out", "extra_out"), "*fp32")
    integers = ("lengths", "units", "context_out", "node_out", "ways", "words")
    signature |= dict.fromkeys(integers, "*i64") | {"marks": "*i32"}
    kinds = [type(table)(*(kind or "constexpr" for kind in table)) for table in tables]
    signature["scoring"] = Scoring(kinds[0], kinds[1], kinds[2], "fp32", "fp32", "fp32")
    for n, table in enumerate(tables):
        absent = [field for field, kind in enumerate(table) if kind is None]
        constants |= {(names.index("scoring"), n, field): None for field in absent}
    return make(f"ctc beam search {name}", kernel, signature, constants, options, targets=_TARGETS)
