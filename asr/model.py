"""The acoustic model: features in, CTC log-probabilities out; padding never matters."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from asr.config import Config, ModelConfig
from asr.features import stack_frames


class ConvSubsampling(nn.Module):
    """Two 3x3 convolutions of stride 2: a quarter of the frames and of the bins."""

    factor = 4

    def __init__(self, bins: int, orders: int, channels: int) -> None:
        super().__init__()
        self.bins = bins
        self.first = nn.Conv2d(orders, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.output_size = channels * -(-bins // 4)

    def lengths(self, lengths: Tensor) -> Tensor:
        """Output frames, ceil(lengths / 4)."""
        return (lengths + 3) // 4

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, orders * bins], [B] -> [B, ceil(T / 4), output_size], [B]."""
        x = features.unflatten(2, (-1, self.bins)).transpose(1, 2)  # [B, orders, T, bins]
        x = x.masked_fill(_past(lengths, x.shape[2]), 0.0)
        for convolution in (self.first, self.second):
            # Past the end 0, as the padding of the utterance alone would be. Channels last and in
            # place, by multiplying: these, the widest tensors of all, then cost a fifth.
            lengths = (lengths + 1) // 2
            weight = convolution.weight.to(memory_format=torch.channels_last)
            x = F.conv2d(x, weight, convolution.bias, stride=2, padding=1)
            x = x.mul_(_past(lengths, x.shape[2]).logical_not()).relu_()
        return x.transpose(1, 2).flatten(2), lengths


class StackSubsampling(nn.Module):
    """Frame stacking and skipping (Sak 2015)."""

    def __init__(self, size: int, stack: int, skip: int) -> None:
        super().__init__()
        self.stack = stack
        self.factor = skip
        self.output_size = size * stack

    def lengths(self, lengths: Tensor) -> Tensor:
        """Output frames, ceil(lengths / skip)."""
        return -(-lengths // self.factor)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D], [B] -> [B, ceil(T / skip), stack * D], [B]."""
        return stack_frames(features, lengths, self.stack, self.factor)


def _past(lengths: Tensor, size: int) -> Tensor:
    """[B] -> [B, 1, size, 1] bool: true past each utterance's end."""
    return (torch.arange(size, device=lengths.device) >= lengths[:, None])[:, None, :, None]


class RecurrentLayer(nn.Module):
    """One recurrent layer, its dense layer if the config has one, layer norm and dropout."""

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "batch_first": True,
            "bidirectional": config.bidirectional,
            "recurrent_dropout": config.recurrent_dropout,
        }
        recurrent: type[kernels.GRU | kernels.LSTM] = kernels.GRU
        if config.recurrent != "gru":
            recurrent = kernels.LSTM
            options |= {"cifg": config.recurrent == "cifg", "peephole": config.peephole}
        self.recurrent = recurrent(input_size, config.hidden_size, **options)
        size = config.hidden_size * (1 + config.bidirectional)
        self.output_size = config.dense_size or size
        self.dense = nn.Linear(size, config.dense_size) if config.dense_size else None
        self.norm = nn.LayerNorm(self.output_size) if config.layer_norm else None
        self.dropout = nn.Dropout(config.dropout)
        if config.recurrent != "gru":
            self._set_forget_bias(coupled=config.recurrent == "cifg")

    def _set_forget_bias(self, coupled: bool) -> None:
        """Forget gate open at first (Gers 2000): its bias sums to 1; coupled, that of i to -1."""
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("bias"):
                gates = parameter.data.chunk(3 if coupled else 4)  # i g o or i f g o
                value = -1.0 if coupled else 1.0
                gates[0 if coupled else 1].fill_(value if name.startswith("bias_ih") else 0.0)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, D], [B] -> [B, T, output_size]."""
        x, _ = self.recurrent(x, lengths=lengths)
        if self.dense is not None:
            x = F.relu(self.dense(x))
        if self.norm is not None:
            x = self.norm(x)
        out: Tensor = self.dropout(x)
        return out


class AcousticModel(nn.Module):
    """CMVN, subsampling, a stack of recurrent layers, an output layer.

    `cmvn_mean` and `cmvn_istd` [D] are buffers, set from the training features. The mean that is
    taken off an utterance is its own, mixed with the global one as if that had been seen in
    `cmn_prior` frames more: it adapts to microphone and loudness, less where there is little to
    go by. With inf it is the global one, with 0 the utterance's own.
    """

    cmvn_mean: Tensor
    cmvn_istd: Tensor

    def __init__(self, config: Config, num_units: int) -> None:
        super().__init__()
        orders = 1 + config.features.deltas
        size = config.features.num_mel_bins * orders
        self.register_buffer("cmvn_mean", torch.zeros(size))
        self.register_buffer("cmvn_istd", torch.ones(size))
        settings = config.model
        self.cmn_prior = settings.cmn_prior
        self.subsampling: ConvSubsampling | StackSubsampling
        if settings.subsampling == "conv4":
            self.subsampling = ConvSubsampling(
                config.features.num_mel_bins, orders, settings.conv_channels
            )
        else:
            self.subsampling = StackSubsampling(size, settings.stack, settings.skip)
        size = self.subsampling.output_size
        self.layers = nn.ModuleList()
        for _ in range(settings.num_layers):
            layer = RecurrentLayer(size, settings)
            self.layers.append(layer)
            size = layer.output_size
        self.output = nn.Linear(size, num_units)

    @property
    def frames_per_output(self) -> int:
        """Feature frames for one output frame."""
        return self.subsampling.factor

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames of so many feature frames; [B] int64."""
        return self.subsampling.lengths(lengths)

    def encode(
        self,
        features: Tensor,  # [B, T, D] float
        lengths: Tensor,  # [B] int64, valid frames
        masks: Tensor | None = None,  # [B, T, D] bool, features that are replaced by their mean
    ) -> tuple[Tensor, Tensor]:  # hidden [B, T', S], lengths [B]
        """What the output layer sees; losses that include this layer begin here."""
        x = (features - self._mean(features, lengths)) * self.cmvn_istd
        if masks is not None:
            x = x.masked_fill(masks, 0.0)
        x, lengths = self.subsampling(x, lengths)
        for layer in self.layers:
            x = layer(x, lengths)
        return x, lengths

    def _mean(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What is taken off the features: [D], or [B, 1, D]."""
        if self.cmn_prior == math.inf:
            return self.cmvn_mean
        past = _past(lengths, features.shape[1])[:, 0]  # [B, T, 1]
        own = features.masked_fill(past, 0.0).sum(1)
        frames = (lengths + self.cmn_prior).clamp(min=1.0)[:, None]
        return ((own + self.cmn_prior * self.cmvn_mean) / frames)[:, None]

    def forward(
        self,
        features: Tensor,  # [B, T, D] float
        lengths: Tensor,  # [B] int64, valid frames
    ) -> tuple[Tensor, Tensor]:  # log-probabilities [B, T', V] float32, lengths [B]
        """Log-probabilities of the units for every output frame."""
        hidden, lengths = self.encode(features, lengths)
        return self.output(hidden).float().log_softmax(-1), lengths
