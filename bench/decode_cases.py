"""Stacks of layers and their decode steps: hymba_ops', plain PyTorch's (bench/plain_step.py) and its other forms, on
the same weights and the same cached keys, values and states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import hymba_ops
from bench import decode_work, plain_step
from bench.cases import check_agreement
from bench.decode_work import PAGE
from bench.peers import compiled
from bench.plain_step import Attend, Cache, Place, Sizes, Weights
from hymba_ops import HymbaConfig
from hymba_ops.decoding import LayerCache, layer_step

KINDS = ("sliding", "global", "model")
STEP_OPS = ("norm_project", "decode_branches", "norm_average_project", "gated_mlp")  # what layer_step calls
PLAIN_FORMS = ("plain", "sdpa", "upcast", "compiled")

_SLACK = 1 << 28  # of memory: workspaces of libraries, activations


def stack_config(config: HymbaConfig, kind: str, count: int) -> HymbaConfig:
    """A stack as a model's configuration. sliding: pairs that share keys and values, as the presets pair such layers;
    global: each has its own, as the presets' have; model: the preset's first `count` layers."""
    if kind == "model":
        of_stack = [layer for layer in config.global_attn_idx if layer < count]
        groups = [[layer for layer in group if layer < count] for group in config.kv_reuse_group]
    else:
        of_stack = list(range(count)) if kind == "global" else []
        groups = [] if kind == "global" else [[i, i + 1] for i in range(0, count - 1, 2)]
    groups = [group for group in groups if len(group) > 1]
    return config.replace(
        num_hidden_layers=count, global_attn_idx=of_stack, kv_reuse_group=groups, layer_type=["h"] * count
    )


@dataclass
class Stack:
    """Layers with weights of their own, and the same weights as the plain forms take them: the same tensors."""

    config: HymbaConfig
    layers: list[hymba_ops.HymbaLayer]
    weights: list[Weights]

    @classmethod
    def make(cls, config: HymbaConfig, device: torch.device, dtype: torch.dtype) -> Stack:
        torch.manual_seed(0)
        layers, weights = [], []
        for index in range(config.num_hidden_layers):
            layer = hymba_ops.HymbaLayer(config, index, device=device, dtype=dtype).requires_grad_(False).eval()
            mlp = layer.moe["experts"][0]
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            for linear, half in zip((mlp.gate_proj, mlp.up_proj), gate_up.chunk(2), strict=True):
                linear.weight = torch.nn.Parameter(half, requires_grad=False)
            layers.append(layer)
            weights.append(Weights.of(layer, gate_up))
        return cls(config, layers, weights)


@dataclass(frozen=True)
class Size:
    """Of a step: rows, tokens that each has already (meta tokens not counted), new tokens of each."""

    batch: int
    context: int
    tokens: int


class Run(Protocol):
    """One implementation's step on caches of its own; what is cached is that of every other run's at the start."""

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        """hidden [B, n, H], not changed, through one layer."""

    def states(self, index: int) -> tuple[Tensor, Tensor]:
        """Conv state [B, K - 1, C] and SSM state [B, C, N] of a layer."""

    def new_keys(self, index: int) -> tuple[Tensor, Tensor]:
        """What stands where a step puts its keys and values: [B, Hkv, n, D]."""

    def step(self, hidden: Tensor) -> Tensor:
        """hidden through all layers."""


class Ours:
    """hymba_ops: layer_step. Rings in sliding layers, pages in random order in global ones; random contents."""

    def __init__(self, stack: Stack, size: Size) -> None:
        self.stack, self.size = stack, size
        weight = stack.layers[0].mamba.in_proj.weight
        pages = decode_work.page_count(size.context + size.tokens)
        count = size.batch * pages
        self.table = torch.randperm(count, device=weight.device).view(size.batch, pages).int()
        self.caches = [
            LayerCache.empty(layer.mamba, size.batch, step_tokens=size.tokens, pages=count, page=PAGE)
            for layer in stack.layers
        ]
        for cache in self.caches:
            for part in (cache.k, cache.v, cache.meta_k, cache.meta_v, cache.conv_state, cache.ssm_state):
                if part is not None:
                    part.normal_()
        self.lengths = torch.full((size.batch,), size.context, dtype=torch.int32, device=weight.device)

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        producer = self.stack.config.producer(index)
        return layer_step(
            self.stack.layers[index], hidden, self.caches[index], self.lengths, block_table=self.table,
            producer=self.caches[producer] if producer != index else None,
        )  # fmt: skip

    def step(self, hidden: Tensor) -> Tensor:
        for index in range(len(self.caches)):
            hidden = self.layer(index, hidden)
        return hidden

    def states(self, index: int) -> tuple[Tensor, Tensor]:
        return self.caches[index].conv_state, self.caches[index].ssm_state

    def new_keys(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(self.size.context, self.size.context + self.size.tokens, device=self.lengths.device)
        return self.keys_of(index, tokens)

    def keys_of(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these tokens, counted without the meta tokens, of every row: [B, Hkv, tokens, D]."""
        cache = self.caches[index]
        assert cache.k is not None and cache.v is not None and cache.meta_k is not None
        if self.stack.config.window(index) is None:
            place = self.table[:, tokens // PAGE].long(), (tokens % PAGE)[None]
        else:
            every_row = torch.arange(self.size.batch, device=tokens.device)[:, None]
            place = every_row, ((tokens + cache.meta_k.shape[0]) % cache.k.shape[1])[None]
        return cache.k[place].transpose(1, 2), cache.v[place].transpose(1, 2)


class Plain:
    """A form of bench/plain_step.py, with the contents of `ours` in its layout.

    dtype: of weights, caches and arithmetic, where it is not the stack's. keys_from: another plain run whose keys and
    values are used too. padded: keys have the value dim, filled up with zeros.
    """

    def __init__(
        self,
        stack: Stack,
        ours: Ours,
        *,
        attend: Attend = plain_step.products,
        one_layer: Callable[..., Tensor] = plain_step.layer_step,
        dtype: torch.dtype | None = None,
        keys_from: Plain | None = None,
        padded: bool = False,
    ) -> None:
        config, self.size = stack.config, ours.size
        self.attend, self.one_layer, self.lengths = attend, one_layer, ours.lengths
        self.weights = stack.weights if dtype is None else [weights.to(dtype) for weights in stack.weights]
        self.config, self.dtype, self.outer_dtype = config, self.weights[0].norm.dtype, stack.weights[0].norm.dtype
        self.sizes = [Sizes.of(config, index) for index in range(config.num_hidden_layers)]
        self.inv_freq = config.inv_freq().to(self.lengths.device)
        self.caches: list[Cache] = []
        for index in range(config.num_hidden_layers):
            producer = config.producer(index)
            if producer != index:
                k, v = self.caches[producer][:2]
            elif keys_from is not None and not padded:
                k, v = keys_from.caches[index][:2]
            elif keys_from is not None:
                k, v = keys_from.caches[index][:2]
                k = torch.nn.functional.pad(k, (0, v.shape[3] - k.shape[3]))
            else:
                k, v = self._taken_over(ours, index)
            conv_state, ssm_state = ours.states(index)
            self.caches.append(Cache(k, v, conv_state.to(self.dtype, copy=True), ssm_state.clone()))
        self.masks = {window: self._mask(window) for window in map(config.window, range(len(self.caches)))}
        self.places: dict[int | None, Place] = {}

    def _rows(self, window: int | None) -> int:
        """Of a cache, without the meta tokens': a ring's, or room for all that there are."""
        return self.size.tokens + (self.size.context if window is None else window)

    def _taken_over(self, ours: Ours, index: int) -> tuple[Tensor, Tensor]:
        cache, rows, context = ours.caches[index], self._rows(self.config.window(index)), self.size.context
        tokens = torch.arange(max(0, context - rows), context, device=self.lengths.device)
        meta, parts = self.config.num_memory_tokens, []
        for prefix, old in zip((cache.meta_k, cache.meta_v), ours.keys_of(index, tokens), strict=True):
            assert prefix is not None
            part = old.new_zeros(*old.shape[:2], meta + rows, old.shape[3], dtype=self.dtype)
            part[:, :, :meta].copy_(prefix.transpose(0, 1))
            part.index_copy_(2, meta + tokens % rows, old.to(self.dtype))
            parts.append(part)
        return parts[0], parts[1]

    def _mask(self, window: int | None) -> Tensor | None:
        """Place.mask: in a ring, and in a step of several tokens, some see less than what the slice holds."""
        count, rows, device = self.size.tokens, self._rows(window), self.lengths.device
        if count == 1:
            return None
        end = self.size.context + count
        held = torch.arange(max(0, end - rows), end, device=device)
        token = torch.arange(end - count, end, device=device)[:, None]
        hidden = held > token
        if window is not None:
            hidden |= held < token - window
        meta = self.config.num_memory_tokens
        mask = torch.zeros(count, meta + len(held), dtype=torch.bool, device=device)
        mask.index_copy_(1, meta + held % rows, hidden)
        return mask.repeat(self.config.num_attention_heads // self.config.num_key_value_heads, 1)

    def _begin(self) -> None:
        """What a step makes for all layers."""
        meta, count = self.config.num_memory_tokens, self.size.tokens
        cos, sin = plain_step.angles(self.lengths, count, self.inv_freq, meta, self.dtype)
        for window, mask in self.masks.items():
            rows = self._rows(window)
            visible = meta + min(self.size.context + count, rows)
            new = (self.lengths[:1] + torch.arange(count, device=cos.device)) % rows + meta
            self.places[window] = Place(cos, sin, new.long(), visible, mask)

    def _through(self, index: int, hidden: Tensor) -> Tensor:
        place, sizes = self.places[self.config.window(index)], self.sizes[index]
        return self.one_layer(self.weights[index], hidden, self.caches[index], place, sizes, self.attend)

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        self._begin()
        return self._through(index, hidden.to(self.dtype, copy=True)).to(self.outer_dtype)

    def step(self, hidden: Tensor) -> Tensor:
        self._begin()
        hidden = hidden.to(self.dtype, copy=True)  # layers change it
        for index in range(len(self.caches)):
            hidden = self._through(index, hidden)
        return hidden.to(self.outer_dtype)

    def states(self, index: int) -> tuple[Tensor, Tensor]:
        return self.caches[index].conv_state, self.caches[index].ssm_state

    def new_keys(self, index: int) -> tuple[Tensor, Tensor]:
        rows = self.places[self.config.window(index)].rows
        k, v, *_ = self.caches[index]
        return k[:, :, rows, : self.config.head_dim], v[:, :, rows]


@dataclass
class Case:
    """A step of a stack: its runs by name (plain always among them), and what they start from."""

    stack: Stack
    size: Size
    hidden: Tensor
    runs: dict[str, Run]
    first_states: list[tuple[Tensor, Tensor]]

    @classmethod
    def make(cls, stack: Stack, size: Size, implementations: list[str]) -> Case:
        torch.manual_seed(1)
        weight = stack.weights[0].norm
        ours = Ours(stack, size)
        plain = Plain(stack, ours)
        runs: dict[str, Run] = {"plain": plain, "hymba_ops": ours}
        if "sdpa" in implementations:
            runs["sdpa"] = Plain(stack, ours, attend=plain_step.padded_sdpa, keys_from=plain, padded=True)
        if "upcast" in implementations:
            runs["upcast"] = Plain(stack, ours, dtype=torch.float32)
        if "compiled" in implementations:
            runs["compiled"] = Plain(stack, ours, one_layer=compiled(plain_step.layer_step), keys_from=plain)
        hidden = torch.randn(size.batch, size.tokens, stack.config.hidden_size, device=weight.device).to(weight.dtype)
        layers = range(stack.config.num_hidden_layers)
        first_states = [(conv.clone(), ssm.clone()) for conv, ssm in map(ours.states, layers)]
        return cls(stack, size, hidden, runs, first_states)

    def reset(self, name: str) -> None:
        """The states as they were at first. Keys need none: a step writes its own before it reads them."""
        for index, first in enumerate(self.first_states):
            for state, value in zip(self.runs[name].states(index), first, strict=True):
                state.copy_(value)

    def compare(self, name: str) -> float:
        """Layer by layer on plain's hidden states: outputs, states and new keys and values. Returns the largest
        relative rms of an output's difference; raises WrongOutput where one is larger than rounding."""
        plain, run, hidden, worst = self.runs["plain"], self.runs[name], self.hidden, 0.0
        self.reset("plain")
        self.reset(name)
        for index in range(len(self.first_states)):
            expected, actual = plain.layer(index, hidden), run.layer(index, hidden)
            where = f"{name} differs from plain in layer {index}"
            worst = max(worst, check_agreement(where, actual, expected))
            kept = list(zip(("conv state", "SSM state"), run.states(index), plain.states(index), strict=True))
            if self.stack.config.producer(index) == index:
                kept += zip(("new keys", "new values"), run.new_keys(index), plain.new_keys(index), strict=True)
            for what, of_run, of_plain in kept:
                check_agreement(f"{where}, {what}", of_run.to(expected.dtype), of_plain.to(expected.dtype))
            hidden = expected
        return worst


def needed_bytes(config: HymbaConfig, size: Size, implementations: list[str], itemsize: int) -> int:
    """An estimate of the memory that a case takes beside the stack's weights."""
    heads, key_dim, value_dim = config.num_key_value_heads, config.head_dim, config.value_head_dim
    kept = {False: 0, True: 0}  # rows of keys and values of all layers: ours, the plain forms'
    largest = 0
    for layer in range(config.num_hidden_layers):
        for meta_each in kept:
            rows = decode_work.cached_rows(
                config, layer, batch=size.batch, context=size.context, tokens=size.tokens, meta_each=meta_each
            )
            kept[meta_each] += rows
            largest = max(largest, rows)
    both = key_dim + value_dim
    numbers = itemsize * (kept[False] + kept[True]) * both
    numbers += itemsize * kept[True] * value_dim * ("sdpa" in implementations)
    widest = itemsize
    extra = 0
    if "upcast" in implementations:
        widest = 4
        numbers += 4 * kept[True] * both
        extra = 4 * sum(sum(decode_work.weight_elements(config, i)) for i in range(config.num_hidden_layers))
    numbers += widest * largest * both  # on the way from one layout to the other
    states = decode_work.state_bytes(config, batch=size.batch, itemsize=widest)
    return heads * numbers + extra + (len({*implementations, "plain", "hymba_ops"}) + 1) * states + _SLACK
