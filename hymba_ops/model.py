"""The whole model: memory tokens, layers with shared keys and values, head and loss.

Dense, packed and padded input end in the same layers: a padded batch is packed first, and what comes out is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from hymba_ops import checkpoint
from hymba_ops._inputs import (
    check_head_arguments,
    check_ids,
    check_inputs,
    rows_of_tokens,
    sequence_of_rows,
    shifted_labels,
    source_rows,
)
from hymba_ops.config import HymbaConfig
from hymba_ops.mixer_call import KeysValues, default_positions
from hymba_ops.modules import HymbaLayer
from hymba_ops.norms import RMSNorm
from hymba_ops.projection import Linear

_LAYER_KINDS = {"h": HymbaLayer}  # by the config's layer_type


@dataclass(frozen=True)
class CausalLMOutput:
    """What `HymbaForCausalLM` returns.

    logits: [B, T, vocab_size], or [B, logits_to_keep, vocab_size]; float32 (float64 in a float64 model).
    loss: mean cross entropy of the labels, a scalar; None without labels.
    """

    logits: Tensor
    loss: Tensor | None = None


class HymbaModel(nn.Module):
    """Embedding, memory tokens, layers and final norm.

    Args:
        config: the model's configuration.
        device, dtype: of the parameters.
    """

    def __init__(
        self, config: HymbaConfig, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if config.num_memory_tokens > 0:
            self.memory_tokens = nn.Parameter(torch.randn(config.num_memory_tokens, config.hidden_size, **factory))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **factory)
        kinds = config.layer_type or ["h"] * config.num_hidden_layers
        self.layers = nn.ModuleList(_LAYER_KINDS[kind](config, index, **factory) for index, kind in enumerate(kinds))
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self._producers = [config.producer(index) for index in range(config.num_hidden_layers)]
        nn.init.normal_(self.embed_tokens.weight, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states of the tokens; memory tokens are put before each sequence and dropped at the end.

        Args:
            input_ids: int64 or int32 [B, T]. Exactly one of input_ids and inputs_embeds is given.
            inputs_embeds: [B, T, hidden_size].
            attention_mask: bool or integer [B, T], 1 at tokens and 0 at padding, which stands before or after a
                row's tokens. On a GPU the host waits for their number, once a call.
            cu_seqlens: int32 [n + 1], packed input with B = 1: sequence i has the tokens cu_seqlens[i] to
                cu_seqlens[i + 1]. Memory tokens are not counted.

        Returns:
            [B, T, hidden_size]; zero at padding and past the last packed sequence.
        """
        tokens = check_inputs(self.config, input_ids, inputs_embeds, attention_mask, cu_seqlens)
        batch, length = tokens.shape[:2]
        if attention_mask is not None:
            rows = rows_of_tokens(attention_mask)
            tokens = tokens.flatten(0, 1)[rows].unsqueeze(0)
            lengths = attention_mask.bool().sum(1, dtype=torch.int32)
            cu_seqlens = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))

        embeds = self.embed_tokens(check_ids(self.config, tokens)) if inputs_embeds is None else tokens
        hidden = self._run_dense(embeds) if cu_seqlens is None else self._run_packed(embeds, cu_seqlens)

        if attention_mask is not None:
            padded = hidden.new_zeros(batch * length, hidden.shape[2])
            hidden = padded.index_copy(0, rows, hidden[0]).view(batch, length, -1)
        return hidden

    def _run_dense(self, embeds: Tensor) -> Tensor:
        count = self.config.num_memory_tokens
        if count > 0:
            memory = self.memory_tokens.to(embeds.dtype).expand(embeds.shape[0], -1, -1)
            embeds = torch.cat([memory, embeds], dim=1)
        positions = default_positions(embeds.shape[1], None, embeds.device)
        return self._run_layers(embeds, positions, None)[:, count:]

    def _run_packed(self, embeds: Tensor, cu_seqlens: Tensor) -> Tensor:
        count = self.config.num_memory_tokens
        sequences, length = cu_seqlens.shape[0] - 1, embeds.shape[1]
        # Where the device's values cannot be checked without a wait, wrong ones must not index out of bounds.
        cu_seqlens = cu_seqlens.clamp(0, length)
        starts = cu_seqlens + count * torch.arange(sequences + 1, device=embeds.device, dtype=torch.int32)
        total = length + count * sequences
        positions = default_positions(total, starts, embeds.device)
        sequence = sequence_of_rows(cu_seqlens, length)
        token_rows = torch.arange(length, device=embeds.device) + count * (sequence + 1).clamp(max=sequences)
        if count > 0:
            source = source_rows(starts, positions, count)
            embeds = torch.cat([self.memory_tokens.to(embeds.dtype), embeds[0]])[source].unsqueeze(0)
        hidden = self._run_layers(embeds, positions, starts)[:, token_rows]
        return hidden.masked_fill((sequence == sequences)[:, None], 0)

    def _run_layers(self, hidden: Tensor, positions: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """hidden: [B, M + T, hidden_size] or packed, memory tokens included. Returns it after the final norm."""
        shared: dict[int, KeysValues] = {}
        for index, layer in enumerate(self.layers):
            producer = self._producers[index]
            hidden, kv, _ = layer(hidden, positions=positions, cu_seqlens=cu_seqlens, kv=shared.get(producer))
            # Kept while a later layer borrows them: they hold on to the producer's whole in_proj output.
            if producer in self._producers[index + 1 :]:
                shared[producer] = kv
            else:
                shared.pop(producer, None)
        return self.final_layernorm(hidden)


class HymbaForCausalLM(nn.Module):
    """`HymbaModel` with a language-model head, whose weight is the embedding's when config.tie_word_embeddings.

    Args:
        config, device, dtype: as in `HymbaModel`.
    """

    def __init__(
        self, config: HymbaConfig, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.model = HymbaModel(config, device=device, dtype=dtype)
        head_device = "meta" if config.tie_word_embeddings else device
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, device=head_device, dtype=dtype)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        self._tie()
        self.register_load_state_dict_pre_hook(_add_tied_head)
        self.register_load_state_dict_post_hook(_tie_again)

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HymbaForCausalLM:
        super()._apply(fn, recurse)
        self._tie()  # leaving the meta device makes new parameters, one by one
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """Logits of every token, and the loss where labels are given.

        Args:
            input_ids, inputs_embeds, attention_mask, cu_seqlens: as in `HymbaModel.forward`.
            labels: int64 [B, T], unshifted: the label at t is the token at t, predicted from the one before it in the
                same sequence. -100 and padding are ignored.
            logits_to_keep: give only the last so many of the T positions (0: all). Not together with labels.

        Returns:
            `CausalLMOutput`; logits at padding and past the last packed sequence are zero.
        """
        check_head_arguments(labels, logits_to_keep)
        hidden = self.model(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, cu_seqlens=cu_seqlens
        )
        if logits_to_keep > 0:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if labels is None:
            return CausalLMOutput(logits)
        targets = shifted_labels(self.config, labels, hidden.shape[:2], attention_mask, cu_seqlens)
        return CausalLMOutput(logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> HymbaForCausalLM:
        """The model of a folder with config.json and model.safetensors, or shards and their index.

        Args:
            folder: as published, or written by `save_pretrained`.
            device: where the weights go; None for the CPU.
            dtype: of the weights; None to keep each as stored.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: tensors are missing, unexpected or of another shape than the configuration's; they are named.
        """
        config = HymbaConfig.from_pretrained(folder)
        model = cls(config, device=torch.device("meta"))
        checkpoint.load(model, folder, device=device, dtype=dtype)
        return model

    def save_pretrained(self, folder: str | PathLike[str], *, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes config.json and the weights, in shards with an index when they exceed max_shard_bytes.

        A checkpoint that the folder already holds stays whole until the new one is complete.
        """
        checkpoint.save(self, folder, max_shard_bytes=max_shard_bytes)


def _add_tied_head(model: HymbaForCausalLM, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A tied head may be left out of a state dict."""
    embedding = state_dict.get(f"{prefix}model.embed_tokens.weight")
    if model.config.tie_word_embeddings and embedding is not None:
        state_dict.setdefault(f"{prefix}lm_head.weight", embedding)


def _tie_again(model: HymbaForCausalLM, _: object) -> None:
    """Loading with assign=True makes new parameters, one by one."""
    model._tie()
