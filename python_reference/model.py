"""The whole model: memory tokens, layers that share keys and values, head, loss and greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from python_reference.cache import HymbaCache
from python_reference.config import HymbaConfig
from python_reference.mixer import HybridMixer, KeysValues, MixerState, RMSNorm, at_least_float32, init_linear
from python_reference.packing import sequences, tokens_present


class HymbaMLP(nn.Module):
    """down(silu(gate) * up), or with mlp_hidden_act "relu2" down(relu(up)^2), which has no gate."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False) if config.mlp_hidden_act == "silu" else None
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        for linear in self.children():
            init_linear(linear, config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size]. Returns the same shape."""
        if self.gate_proj is None:
            return self.down_proj(nn.functional.relu(self.up_proj(x)).square())
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class HymbaLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); no MLP when intermediate_size is 0."""

    def __init__(self, config: HymbaConfig, layer_index: int) -> None:
        super().__init__()
        self.mamba = HybridMixer(config, layer_index)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.moe = nn.ModuleDict({"experts": nn.ModuleList([HymbaMLP(config)])})
            self.pre_moe_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        kv: KeysValues | None = None,
        initial_state: MixerState | None = None,
    ) -> tuple[Tensor, KeysValues, MixerState]:
        """Arguments and results as `HybridMixer.forward`'s, on the residual stream."""
        mixed, kv, state = self.mamba(
            self.input_layernorm(hidden),
            positions=positions,
            cu_seqlens=cu_seqlens,
            kv=kv,
            initial_state=initial_state,
        )
        hidden = hidden + mixed
        if self.has_mlp:
            hidden = hidden + self.moe["experts"][0](self.pre_moe_layernorm(hidden))
        return hidden, kv, state


class HymbaModel(nn.Module):
    """Embedding, memory tokens, layers and final norm."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.config = config
        if config.num_memory_tokens > 0:
            self.memory_tokens = nn.Parameter(torch.randn(config.num_memory_tokens, config.hidden_size))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HymbaLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: HymbaCache | None = None,
    ) -> Tensor:
        """Final hidden states of the tokens; memory tokens are put before each sequence and dropped at the end.

        Args:
            input_ids: int [B, T]; or inputs_embeds: [B, T, hidden_size].
            attention_mask: [B, T], 1 at tokens and 0 at the padding before or after a row's tokens; a row without
                tokens, or with padding between them, is a ValueError.
            cu_seqlens: int32 [n + 1], packed input with B = 1, memory tokens not counted.
            cache: what came before these tokens; changed in place. Dense input only.

        Returns:
            [B, T, hidden_size]; zero at padding and past the last packed sequence.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("HymbaModel: exactly one of input_ids and inputs_embeds must be given")
        if (attention_mask is not None) + (cu_seqlens is not None) + (cache is not None) > 1:
            raise ValueError("HymbaModel: at most one of attention_mask, cu_seqlens and cache may be given")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            return self._forward_padded(embeds, tokens_present(attention_mask))
        if cu_seqlens is not None:
            return self._forward_packed(embeds, cu_seqlens)
        return self._forward_dense(embeds, HymbaCache() if cache is None else cache)

    def _memory(self, embeds: Tensor) -> Tensor:
        """[B, M, hidden_size]: the memory tokens, once for each row of embeds."""
        if self.config.num_memory_tokens == 0:
            return embeds[:, :0]
        return self.memory_tokens.to(embeds.dtype).expand(embeds.shape[0], -1, -1)

    def _forward_dense(self, embeds: Tensor, cache: HymbaCache) -> Tensor:
        memory = embeds[:, :0] if cache.started else self._memory(embeds)
        hidden = self._run_layers(torch.cat([memory, embeds], dim=1), None, cache)
        cache.length += embeds.shape[1]
        return hidden[:, memory.shape[1] :]

    def _forward_packed(self, embeds: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Memory tokens go before every sequence, an empty one too."""
        tokens, memory = sequences(cu_seqlens), self._memory(embeds)
        parts = [part for rows in tokens for part in (memory, embeds[:, rows])]
        with_memory = cu_seqlens + memory.shape[1] * torch.arange(
            len(cu_seqlens), device=cu_seqlens.device, dtype=cu_seqlens.dtype
        )
        hidden = self._run_layers(torch.cat([embeds[:, :0], *parts], dim=1), with_memory, HymbaCache())
        kept = [hidden[:, rows.start + memory.shape[1] : rows.stop] for rows in sequences(with_memory)]
        behind = torch.zeros_like(embeds[:, int(cu_seqlens[-1]) :])
        return torch.cat([*kept, behind], dim=1)

    def _forward_padded(self, embeds: Tensor, present: Tensor) -> Tensor:
        """Padding is taken out: the rows become packed sequences."""
        cu_seqlens = nn.functional.pad(present.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        packed = self._forward_packed(embeds[present][None], cu_seqlens)
        hidden = torch.zeros_like(embeds)
        hidden[present] = packed[0]
        return hidden

    def _run_layers(self, hidden: Tensor, cu_seqlens: Tensor | None, cache: HymbaCache) -> Tensor:
        """hidden: [B, T, hidden_size], memory tokens included. Returns it after the final norm."""
        for i, layer in enumerate(self.layers):
            producer = self.config.producer(i)
            hidden, kv, state = layer(
                hidden, cu_seqlens=cu_seqlens, kv=cache.kv.get(producer), initial_state=cache.states.get(i)
            )
            cache.kv[producer], cache.states[i] = kv, state
        return self.final_layernorm(hidden)


@dataclass(frozen=True)
class CausalLMOutput:
    """logits [B, T or logits_to_keep, vocab_size], float32 (float64 in a float64 model); loss, a scalar; the cache."""

    logits: Tensor
    loss: Tensor | None
    cache: HymbaCache | None


class HymbaForCausalLM(nn.Module):
    """`HymbaModel` with a language-model head, whose weight is the embedding's when config.tie_word_embeddings."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = HymbaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        init_linear(self.lm_head, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_load_state_dict_pre_hook(_add_tied_head)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        cache: HymbaCache | bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """Logits of every token, and the loss where labels are given.

        Args:
            input_ids, inputs_embeds, attention_mask, cu_seqlens: as in `HymbaModel.forward`.
            labels: int64 [B, T], unshifted; -100 and padding are ignored. The loss is the mean over predicted tokens.
            cache: True to start one, or that of an earlier call, which is changed in place.
            logits_to_keep: give only the last so many of the T positions (0: all).
        """
        if labels is not None and logits_to_keep > 0:
            raise ValueError("HymbaForCausalLM: labels need every logit, so logits_to_keep must be 0 with them")
        cache = HymbaCache() if cache is True else cache or None
        hidden = self.model(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, cu_seqlens=cu_seqlens, cache=cache
        )
        logits = at_least_float32(self.lm_head(hidden[:, -logits_to_keep:]))  # -0 is 0: all of them
        loss = None
        if labels is not None:
            targets = _shifted(labels, attention_mask, cu_seqlens)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return CausalLMOutput(logits, loss, cache)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """Greedy decoding, one token a step; a padded batch is decoded row by row.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], as in `HymbaModel.forward`; None when every row has T tokens.
            max_new_tokens: n.
            stop_token_ids: a row that makes one of these stops there and is filled with the pad id; None for the
                config's eos_token_id (null: never), () for never.

        Returns:
            [B, T + n], prompt included; shorter when every row has stopped.
        """
        if attention_mask is not None:
            rows = zip(input_ids, tokens_present(attention_mask), strict=True)
            prompts = [ids[present][None] for ids, present in rows]
            whole = [self.generate(p, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids)[0] for p in prompts]
            made = [tokens[prompt.shape[1] :] for tokens, prompt in zip(whole, prompts, strict=True)]
            new = nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=self.config.pad_token_id)
            return torch.cat([input_ids, new], dim=1)
        if stop_token_ids is None:
            eos = self.config.eos_token_id
            stop_token_ids = [] if eos is None else [eos] if isinstance(eos, int) else eos
        stops = torch.tensor(stop_token_ids, dtype=input_ids.dtype, device=input_ids.device)
        stopped = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        tokens, step, cache = input_ids, input_ids, HymbaCache()
        for _ in range(max_new_tokens):
            logits = self(step, cache=cache, logits_to_keep=1).logits[:, 0]
            new = logits.argmax(dim=-1).to(input_ids.dtype)
            if stopped.any():
                new = new.masked_fill(stopped, self.config.pad_token_id)
            step = new[:, None]
            tokens = torch.cat([tokens, step], dim=1)
            stopped |= torch.isin(new, stops)
            if stopped.all():
                break
        return tokens


def _shifted(labels: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """labels [B, T] to the target of each position: the next token's label in the same sequence, else -100."""
    targets = torch.full_like(labels, -100)
    if cu_seqlens is not None:
        for rows in sequences(cu_seqlens):
            targets[:, rows][:, :-1] = labels[:, rows][:, 1:]
        return targets
    targets[:, :-1] = labels[:, 1:]
    if attention_mask is not None:
        present = attention_mask.bool()
        targets[:, :-1].masked_fill_(~(present[:, :-1] & present[:, 1:]), -100)
    return targets


def _add_tied_head(model: HymbaForCausalLM, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A tied head may be left out of a state dict."""
    embedding = state_dict.get(f"{prefix}model.embed_tokens.weight")
    if model.config.tie_word_embeddings and embedding is not None:
        state_dict.setdefault(f"{prefix}lm_head.weight", embedding)
