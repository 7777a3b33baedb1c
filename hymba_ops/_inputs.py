"""Checks of the model's inputs, and where the rows of packed input come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hymba_ops.config import HymbaConfig

IGNORED_LABEL = -100

_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# ---- Rows of packed input ----


def sequence_of_rows(cu_seqlens: Tensor, length: int) -> Tensor:
    """int64 [length]: the sequence of each row; n for rows past the last of n sequences."""
    rows = torch.arange(length, device=cu_seqlens.device, dtype=torch.int32)
    return torch.searchsorted(cu_seqlens, rows, right=True) - 1


def source_rows(starts: Tensor, positions: Tensor, count: int) -> Tensor:
    """Where each row of packed input with memory tokens comes from, in cat(memory tokens, tokens).

    starts: int32 [n + 1], the sequences' boundaries with their `count` memory tokens; positions: int32 [rows], each
    row's place in its sequence. Returns int64 [rows].
    """
    sequences, rows = starts.shape[0] - 1, positions.shape[0]
    sequence = sequence_of_rows(starts, rows)
    is_memory = (positions < count) & (sequence < sequences)
    token = torch.arange(rows, device=starts.device) - count * (sequence + 1).clamp(max=sequences)
    return torch.where(is_memory, positions, count + token)


def shifted_labels(
    config: HymbaConfig,
    labels: Tensor,
    shape: torch.Size,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """int64 [B, T]: at t the label of t + 1 where both are tokens of one sequence, -100 elsewhere."""
    if labels.shape != shape:
        raise ValueError(f"labels must have the tokens' shape {list(shape)}, got {list(labels.shape)}")
    targets = nn.functional.pad(labels[:, 1:], (0, min(1, shape[1])), value=IGNORED_LABEL)
    if attention_mask is not None:
        present = attention_mask.bool()
        together = present & nn.functional.pad(present[:, 1:], (0, 1))
        targets = targets.masked_fill(~together, IGNORED_LABEL)
    if cu_seqlens is not None:
        sequence = sequence_of_rows(cu_seqlens, shape[1])
        following = nn.functional.pad(sequence[1:], (0, 1), value=-1)
        together = (sequence == following) & (sequence < cu_seqlens.shape[0] - 1)
        targets = targets.masked_fill(~together, IGNORED_LABEL)
    _check_values("labels", targets.masked_fill(targets == IGNORED_LABEL, 0), config.vocab_size)
    return targets


# ---- Checks ----


def _can_read(t: Tensor) -> bool:
    """Whether values may be checked: not on a GPU, which would have to wait, and not in a graph being compiled."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_values(name: str, ids: Tensor, vocab_size: int) -> None:
    if not _can_read(ids) or ids.numel() == 0:
        return
    lowest, highest = (bound.item() for bound in ids.aminmax())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} must be from 0 to {vocab_size - 1} (vocab_size {vocab_size}), got {wrong}")


def check_ids(config: HymbaConfig, ids: Tensor) -> Tensor:
    _check_values("input_ids", ids, config.vocab_size)
    return ids


def _check_tensor(name: str, t: object, kinds: tuple[torch.dtype, ...], shape: list[int | str]) -> None:
    """shape: expected sizes; a string stands for any size."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in kinds:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
        raise TypeError(f"{name} must be {names}, got {str(t.dtype).removeprefix('torch.')}")
    matches = t.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(t.shape, shape, strict=True)
    )
    if not matches:
        text = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{text}], got {list(t.shape)}")


def _check_device(name: str, t: Tensor, tokens: Tensor) -> None:
    if t.device != tokens.device:
        raise ValueError(f"{name} must be on the tokens' device {tokens.device}, got {t.device}")


def check_inputs(
    config: HymbaConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """The one of input_ids and inputs_embeds that is given, after all checks but those of the ids' values."""
    if (input_ids is None) == (inputs_embeds is None):
        both = "neither" if input_ids is None else "both"
        raise ValueError(f"exactly one of input_ids and inputs_embeds must be given, got {both}")
    if input_ids is not None:
        _check_tensor("input_ids", input_ids, (torch.int64, torch.int32), ["B", "T"])
        tokens = input_ids
    else:
        assert inputs_embeds is not None
        _check_tensor("inputs_embeds", inputs_embeds, _FLOATING, ["B", "T", config.hidden_size])
        tokens = inputs_embeds
    if attention_mask is not None and cu_seqlens is not None:
        raise ValueError("at most one of attention_mask and cu_seqlens may be given, got both")
    if attention_mask is not None:
        _check_mask(attention_mask, tokens)
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, tokens)
    return tokens


def _check_mask(mask: Tensor, tokens: Tensor) -> None:
    kinds = (torch.bool, torch.int64, torch.int32, torch.uint8)
    _check_tensor("attention_mask", mask, kinds, list(tokens.shape[:2]))
    _check_device("attention_mask", mask, tokens)


def rows_of_tokens(mask: Tensor) -> Tensor:
    """int64 [tokens]: where the mask has tokens, rows of the batch one after the other, after checks of its values.

    How many there are is the size of what follows: the host waits for it, once, and reads the checks with it.
    """
    present = mask.bool()
    first = present & ~nn.functional.pad(present[:, :-1], (1, 0))  # where a run of tokens begins
    runs = first.sum(1)
    counts = torch.stack([present.sum(), (present.to(mask.dtype) != mask).sum(), (runs == 0).sum(), (runs > 1).sum()])
    tokens, not_binary, empty, torn = counts.tolist()
    if not_binary:
        raise ValueError("attention_mask must hold 0 and 1 only")
    if empty:
        raise ValueError(f"attention_mask must have a token in every row, got none in row {runs.argmin().item()}")
    if torn:
        raise ValueError(
            "attention_mask must be one run of ones in every row (padding before or after it), "
            f"got a hole in row {runs.argmax().item()}"
        )
    return present.flatten().nonzero_static(size=tokens).squeeze(1)


def _check_cu_seqlens(cu_seqlens: Tensor, tokens: Tensor) -> None:
    _check_tensor("cu_seqlens", cu_seqlens, (torch.int32,), ["n + 1"])
    batch, length = tokens.shape[:2]
    if batch != 1:
        raise ValueError(f"cu_seqlens needs packed input with batch size 1, got batch size {batch}")
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens must have shape [n + 1], got [0]")
    _check_device("cu_seqlens", cu_seqlens, tokens)
    if not _can_read(cu_seqlens):
        return
    # The ops cannot see these errors: they get the boundaries with memory tokens added.
    values = cu_seqlens.tolist()
    if values[0] != 0 or values != sorted(values) or values[-1] > length:
        raise ValueError(f"cu_seqlens must start at 0, never decrease and end at most at T = {length}, got {values}")


def check_head_arguments(labels: Tensor | None, logits_to_keep: int) -> None:
    if not isinstance(logits_to_keep, int) or isinstance(logits_to_keep, bool):
        raise TypeError(f"logits_to_keep must be an int, got {type(logits_to_keep).__name__}")
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep must be at least 0, got {logits_to_keep}")
    if labels is None:
        return
    _check_tensor("labels", labels, (torch.int64,), ["B", "T"])
    if logits_to_keep > 0:
        raise ValueError(f"logits_to_keep must be 0 with labels (the loss needs every logit), got {logits_to_keep}")
