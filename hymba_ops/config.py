"""HymbaConfig: the published config.json, validated."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Field(NamedTuple):
    default: Any
    accepts: Callable[[Any], bool]
    expected: str


def _integer(lowest: int, highest: int | None = None) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and value >= lowest and (highest is None or value <= highest)

    return accepts


def _optional(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _positive_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e308  # float() takes it


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(value == a and type(value) is type(a) for a in allowed)


def _integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_integer(0), value))


_POSITIVE = "a positive integer"
_FLAG = "true or false"
_TOKEN = "a token id (or null)"

# Every field that changes what the model computes. Defaults are those of the published configuration class.
_FIELDS = {
    "vocab_size": _Field(65536, _integer(1), _POSITIVE),
    "hidden_size": _Field(4096, _integer(1), _POSITIVE),
    "intermediate_size": _Field(14336, _integer(0), "an integer of at least 0 (0: no MLP)"),
    "num_hidden_layers": _Field(32, _integer(1), _POSITIVE),
    "num_attention_heads": _Field(32, _integer(1), _POSITIVE),
    "num_key_value_heads": _Field(8, _integer(1), _POSITIVE),
    "attn_hidden_size": _Field(-1, _integer(-1), "-1 or hidden_size"),
    "kq_head_dim": _Field(-1, _integer(-1), "-1 or hidden_size / num_attention_heads"),
    "v_head_dim": _Field(None, _optional(_integer(-1)), "mamba_expand * hidden_size / num_attention_heads"),
    "kq_norm": _Field("none", _one_of("none", "rms", "perhead-rms"), "'none', 'rms' or 'perhead-rms'"),
    "tie_word_embeddings": _Field(False, _flag, _FLAG),
    "rms_norm_eps": _Field(1e-6, _positive_number, "a positive number"),
    "initializer_range": _Field(0.02, _positive_number, "a positive number"),
    "mlp_hidden_act": _Field("silu", _one_of("silu", "relu2"), "'silu' or 'relu2'"),
    "sliding_window": _Field(None, _optional(_integer(1)), "a positive integer, or null for none"),
    "global_attn_idx": _Field(None, _optional(_integers), "a list of layer indices, or null"),
    "num_memory_tokens": _Field(0, _integer(0), "an integer of at least 0"),
    "memory_tokens_interspersed_every": _Field(0, _one_of(0), "0: interspersed memory tokens are not supported"),
    "kv_reuse_group": _Field(
        None,
        _optional(lambda value: isinstance(value, (list, tuple)) and all(map(_integers, value))),
        "a list of groups of layer indices, or null",
    ),
    "kv_reuse_every_i_layer": _Field(-1, _integer(-1), "-1, 0 or a positive integer"),
    "kv_weight_reuse": _Field(False, _one_of(False), "false: sharing K/V weights is not supported"),
    "layer_type": _Field(
        None,
        _optional(lambda value: isinstance(value, (list, tuple)) and all(kind == "h" for kind in value)),
        "a list of 'h' (hybrid), one for each layer",
    ),
    "rope": _Field(False, _flag, _FLAG),
    "rope_theta": _Field(10000.0, _positive_number, "a positive number"),
    "rope_type": _Field(
        None,
        _one_of(None, "default", "ntk"),
        "null, 'default' or 'ntk' ('dynamic_ntk' depends on the longest position seen, so decode could not equal "
        "the forward)",
    ),
    "max_position_embeddings": _Field(262144, _integer(1), _POSITIVE),
    "orig_max_position_embeddings": _Field(None, _optional(_integer(1)), _POSITIVE),
    "mamba_d_state": _Field(16, _integer(1, 256), "an integer from 1 to 256"),
    "mamba_d_conv": _Field(4, _integer(1, 8), "an integer from 1 to 8"),
    "mamba_expand": _Field(2, _integer(1), _POSITIVE),
    "mamba_dt_rank": _Field("auto", lambda v: v == "auto" or _integer(1)(v), "'auto' or a positive integer"),
    "mamba_conv_bias": _Field(True, _flag, _FLAG),
    "mamba_proj_bias": _Field(False, _flag, _FLAG),
    "mamba_inner_layernorms": _Field(True, _flag, _FLAG),
    "num_mamba": _Field(1, _one_of(1), "1: more than one Mamba head group is not supported"),
    "num_experts": _Field(1, _one_of(1), "1: mixtures of experts are not supported"),
    "attention_dropout": _Field(0.0, lambda v: v == 0 and not isinstance(v, bool), "0: dropout is not supported"),
    "pad_token_id": _Field(0, _optional(_integer(0)), _TOKEN),
    "bos_token_id": _Field(1, _optional(_integer(0)), _TOKEN),
    "eos_token_id": _Field(
        2, _optional(lambda v: _integer(0)(v) or _integers(v)), "a token id, a list of them or null"
    ),
}

# Fields of published files that change nothing here.
_WITHOUT_EFFECT = {
    "architectures", "attn_implementation", "attn_implementation_new", "auto_map", "calc_logits_for_entire_prompt",
    "conv_dim", "hidden_act", "model_type", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
    "seq_length", "torch_dtype", "dtype", "transformers_version", "use_cache", "use_mamba_kernels", "_name_or_path",
}  # fmt: skip


class HymbaConfig:
    """A Hymba model's configuration: the fields of the published config.json, as read-only attributes.

    Fields that are left out have the published class's defaults; lists become tuples. Unknown fields are kept for
    `to_dict` and `save_pretrained`, and named in one warning.

    Raises:
        ValueError: a field has a value that is not supported, or two fields disagree; the text names field, expected
            and got.
    """

    def __init__(self, /, **fields: Any) -> None:
        unknown = [name for name in fields if name not in _FIELDS and name not in _WITHOUT_EFFECT]
        if unknown:
            warnings.warn(f"HymbaConfig: unknown fields, kept without effect: {', '.join(unknown)}", stacklevel=2)
        self._assign(fields)

    def _assign(self, fields: dict[str, Any]) -> None:
        values = {name: fields.get(name, field.default) for name, field in _FIELDS.items()}
        for name, field in _FIELDS.items():
            if not field.accepts(values[name]):
                raise _error(name, field.expected, repr(values[name]))
        self.__dict__.update({name: _frozen(value) for name, value in values.items()})
        self.__dict__["_given"] = copy.deepcopy(fields)
        self._check_sizes()
        self._check_layers()
        self._check_rope()

    def __getattr__(self, name: str) -> Any:  # for type checkers: fields are set in _assign
        raise AttributeError(f"HymbaConfig has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"HymbaConfig is read-only: use config.replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"HymbaConfig is read-only: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HymbaConfig):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __hash__(self) -> int:
        return hash((self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.vocab_size))

    def __repr__(self) -> str:
        return f"HymbaConfig({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"

    # ---- Files ----

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> HymbaConfig:
        """Reads a published config.json.

        Args:
            path: the file, or a folder that holds config.json.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a JSON object, or a value is not supported.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"HymbaConfig: {file} does not exist (a config.json or a folder with one)")
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # the latter: brackets nested too deep
            raise ValueError(f"HymbaConfig: {file} must be JSON, got: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"HymbaConfig: {file} must hold a JSON object, got {type(fields).__name__}")
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{error} (in {file})") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes folder/config.json (the folder is made if need be); an existing file is replaced in one step."""
        target = Path(folder) / "config.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"config.json.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(target)

    def to_dict(self) -> dict[str, Any]:
        """The fields that were given, in their order, unknown ones included; and model_type."""
        return copy.deepcopy(self._given | {"model_type": self._given.get("model_type", "hymba")})

    def replace(self, /, **changes: Any) -> HymbaConfig:
        """A validated copy with some fields changed."""
        known = _FIELDS.keys() | _WITHOUT_EFFECT | self._given.keys()
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise TypeError(f"HymbaConfig.replace: unknown fields {', '.join(unknown)}")
        changed = object.__new__(HymbaConfig)
        changed._assign(self._given | changes)
        return changed

    # ---- Presets ----

    @classmethod
    def hymba_125m(cls) -> HymbaConfig:
        """24 layers, hidden 512."""
        return cls._preset(layers=24, hidden=512, heads=8, kv_heads=4, mlp=1664)

    @classmethod
    def hymba_350m(cls) -> HymbaConfig:
        """32 layers, hidden 768."""
        return cls._preset(layers=32, hidden=768, heads=12, kv_heads=4, mlp=2432)

    @classmethod
    def hymba_1_5b(cls) -> HymbaConfig:
        """32 layers, hidden 1600: the published Hymba-1.5B."""
        return cls._preset(layers=32, hidden=1600, heads=25, kv_heads=5, mlp=5504)

    @classmethod
    def _preset(cls, *, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int) -> HymbaConfig:
        global_layers = [0, (layers - 1) // 2, layers - 1]
        return cls(
            architectures=["HymbaForCausalLM"],
            model_type="hymba",
            vocab_size=32001,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            v_head_dim=2 * hidden // heads,
            tie_word_embeddings=True,
            sliding_window=1024,
            global_attn_idx=global_layers,
            num_memory_tokens=128,
            kv_reuse_group=_pairs_between(global_layers),
            rope=True,
            rope_type="ntk",
            max_position_embeddings=8192,
            orig_max_position_embeddings=2048,
            mamba_dt_rank=math.ceil(hidden / 16),
            layer_type=["h"] * layers,
        )

    # ---- What follows from the fields ----

    @property
    def head_dim(self) -> int:
        """Of queries and keys."""
        return self.hidden_size // self.num_attention_heads

    @property
    def inner_size(self) -> int:
        """Channels of the SSM branch, and the width of the attention branch's output."""
        return self.mamba_expand * self.hidden_size

    @property
    def value_head_dim(self) -> int:
        """Of values."""
        return self.inner_size // self.num_attention_heads

    @property
    def dt_rank(self) -> int:
        """Rank of the projection to dt; "auto" is ceil(hidden_size / 16)."""
        return math.ceil(self.hidden_size / 16) if self.mamba_dt_rank == "auto" else self.mamba_dt_rank

    @property
    def attention_scale(self) -> float:
        """Factor on q k^T."""
        return self.head_dim**-0.5

    def is_global(self, layer: int) -> bool:
        """Whether every earlier key is visible in this layer."""
        return self.window(layer) is None

    def window(self, layer: int) -> int | None:
        """Keys visible before the query's own; None for all."""
        return None if layer in (self.global_attn_idx or ()) else self.sliding_window

    def producer(self, layer: int) -> int:
        """Index of the layer whose keys and values this one uses: its own when it makes them."""
        if self.kv_reuse_group is not None:
            return next((group[0] for group in self.kv_reuse_group if layer in group), layer)
        every = self.kv_reuse_every_i_layer
        return layer - layer % every if every > 0 else layer

    def inv_freq(self) -> Tensor | None:
        """RoPE's frequencies, float32 [head_dim / 2]; None without RoPE.

        "ntk" stretches the base by a fixed factor whatever the actual length; the 2 in it is published so.
        """
        if not self.rope:
            return None
        base, dim = self.rope_theta, self.head_dim
        if self.rope_type == "ntk":
            stretch = 2 * self.max_position_embeddings / self.orig_max_position_embeddings - 1
            base = base * stretch ** (dim / (dim - 2))
        return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)

    # ---- Checks between fields ----

    def _check_sizes(self) -> None:
        hidden, heads = self.hidden_size, self.num_attention_heads
        if hidden % heads:
            raise _error("hidden_size", f"a multiple of num_attention_heads = {heads}", hidden)
        if heads % self.num_key_value_heads:
            raise _error(
                "num_attention_heads", f"a multiple of num_key_value_heads = {self.num_key_value_heads}", heads
            )
        for name, expected in (
            ("attn_hidden_size", hidden),
            ("kq_head_dim", self.head_dim),
            ("v_head_dim", self.value_head_dim),
        ):
            if getattr(self, name) not in (-1, None, expected):
                raise _error(name, f"{expected} ({_FIELDS[name].expected})", getattr(self, name))
        if self.value_head_dim > 256:
            raise _error("hidden_size", "such that head dims are at most 256", f"value head dim {self.value_head_dim}")

    def _check_layers(self) -> None:
        layers = self.num_hidden_layers
        if self.layer_type is not None and len(self.layer_type) != layers:
            raise _error("layer_type", f"one entry for each of the {layers} layers", f"{len(self.layer_type)} entries")
        for layer in self.global_attn_idx or ():
            if layer >= layers:
                raise _error("global_attn_idx", f"indices below num_hidden_layers = {layers}", layer)
        seen: set[int] = set()
        for group in self.kv_reuse_group or ():
            if not group or any(late <= early for early, late in zip(group, group[1:], strict=False)):
                raise _error("kv_reuse_group", "groups in ascending order (the first layer makes K/V)", list(group))
            if group[-1] >= layers:
                raise _error("kv_reuse_group", f"indices below num_hidden_layers = {layers}", list(group))
            if seen & set(group):
                raise _error("kv_reuse_group", "groups that share no layer", list(group))
            seen |= set(group)
        name = "kv_reuse_every_i_layer" if self.kv_reuse_group is None else "kv_reuse_group"
        for layer in range(layers):
            producer = self.producer(layer)
            if self.is_global(producer) != self.is_global(layer):
                raise _error(
                    name,
                    "such that global and sliding layers share no keys and values",
                    f"{getattr(self, name)}, where layer {layer} would use those of layer {producer}",
                )

    def _check_rope(self) -> None:
        if not self.rope:
            return
        if self.head_dim % 2:
            raise _error("rope", "false where head dims are odd", f"true with head dim {self.head_dim}")
        if self.rope_type == "ntk":
            if self.head_dim == 2:
                raise _error("rope_type", "null or 'default' where the head dim is 2", "'ntk'")
            original = self.orig_max_position_embeddings
            if original is None or original > 2 * self.max_position_embeddings - 1:
                expected = "a positive integer below 2 * max_position_embeddings with rope_type 'ntk'"
                raise _error("orig_max_position_embeddings", expected, original)


def _error(name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"HymbaConfig: {name} must be {expected}, got {got}")


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that nobody changes a validated value."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _pairs_between(global_layers: list[int]) -> list[list[int]]:
    """Neighbouring layers between two global ones in pairs; an odd run begins with a triple, as published."""
    groups: list[list[int]] = []
    for before, after in zip(global_layers, global_layers[1:], strict=False):
        run = list(range(before + 1, after))
        odd = len(run) % 2
        pairs = [run[i : i + 2] for i in range(odd, len(run) - 1, 2)]
        if odd and pairs:
            pairs[0].insert(0, run[0])
        groups += pairs
    return groups
