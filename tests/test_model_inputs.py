"""Inputs that HymbaForCausalLM refuses, and what it says."""

from __future__ import annotations

import re

import pytest
import torch

from hymba_ops import HymbaConfig, HymbaForCausalLM

from kernel_cases import cu_seqlens
from model_cases import SMALL, randn, randomise, token_ids

BAD_INPUTS = [
    pytest.param({}, ValueError, "exactly one of input_ids and inputs_embeds must be given, got neither", id="neither"),
    pytest.param(
        {"input_ids": token_ids(1, 3), "inputs_embeds": randn(1, 3, 48)},
        ValueError,
        "exactly one of input_ids and inputs_embeds must be given, got both",
        id="both",
    ),
    pytest.param({"input_ids": [[1]]}, TypeError, "input_ids must be a tensor, got list", id="list"),
    pytest.param(
        {"input_ids": torch.ones(1, 3)}, TypeError, "input_ids must be int64 or int32, got float32", id="float_ids"
    ),
    pytest.param({"input_ids": token_ids(3)}, ValueError, "input_ids must have shape [B, T], got [3]", id="ids_rank"),
    pytest.param(
        {"input_ids": torch.tensor([[0, 61]])},
        ValueError,
        "input_ids must be from 0 to 60 (vocab_size 61), got 61",
        id="id_too_large",
    ),
    pytest.param(
        {"input_ids": torch.tensor([[0, -1]])}, ValueError, "input_ids must be from 0 to 60", id="id_negative"
    ),
    pytest.param(
        {"inputs_embeds": randn(1, 3, 47)},
        ValueError,
        "inputs_embeds must have shape [B, T, 48], got [1, 3, 47]",
        id="embeds_size",
    ),
    pytest.param(
        {"inputs_embeds": torch.ones(1, 3, 48, dtype=torch.int64)},
        TypeError,
        "inputs_embeds must be float32 or bfloat16 or float16 or float64, got int64",
        id="embeds_dtype",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.ones(2, 3, device="meta").long()},
        ValueError,
        "attention_mask must be on the tokens' device cpu, got meta",
        id="mask_device",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.ones(2, 4).long()},
        ValueError,
        "attention_mask must have shape [2, 3], got [2, 4]",
        id="mask_shape",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.ones(2, 3)},
        TypeError,
        "attention_mask must be bool or int64",
        id="mask_dtype",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.full((2, 3), 2)},
        ValueError,
        "attention_mask must hold 0 and 1 only",
        id="mask_values",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])},
        ValueError,
        "got a hole in row 1",
        id="mask_hole",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
        ValueError,
        "attention_mask must have a token in every row, got none in row 1",
        id="mask_empty_row",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "attention_mask": torch.ones(1, 3).long(), "cu_seqlens": cu_seqlens(3)},
        ValueError,
        "at most one of attention_mask and cu_seqlens may be given, got both",
        id="mask_and_cu_seqlens",
    ),
    pytest.param(
        {"input_ids": token_ids(2, 3), "cu_seqlens": cu_seqlens(3)},
        ValueError,
        "cu_seqlens needs packed input with batch size 1, got batch size 2",
        id="packed_batch",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "cu_seqlens": cu_seqlens(3).long()},
        TypeError,
        "cu_seqlens must be int32, got int64",
        id="cu_seqlens_dtype",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "cu_seqlens": cu_seqlens(3)[None]},
        ValueError,
        "cu_seqlens must have shape [n + 1], got [1, 2]",
        id="cu_seqlens_rank",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "cu_seqlens": cu_seqlens()[:0]},
        ValueError,
        "cu_seqlens must have shape [n + 1], got [0]",
        id="cu_seqlens_empty",
    ),
    *(
        pytest.param(
            {"input_ids": token_ids(1, 5), "cu_seqlens": torch.tensor(values, dtype=torch.int32)},
            ValueError,
            f"cu_seqlens must start at 0, never decrease and end at most at T = 5, got {values}",
            id=name,
        )
        for name, values in {
            "cu_seqlens_start": [1, 5],
            "cu_seqlens_decreases": [0, 4, 3, 5],
            "cu_seqlens_too_long": [0, 6],
        }.items()
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "labels": token_ids(1, 4)},
        ValueError,
        "labels must have the tokens' shape [1, 3], got [1, 4]",
        id="labels_shape",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "labels": token_ids(1, 3).int()},
        TypeError,
        "labels must be int64, got int32",
        id="labels_dtype",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "labels": torch.tensor([[1, 61, 2]])},
        ValueError,
        "labels must be from 0 to 60 (vocab_size 61), got 61",
        id="label_too_large",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "logits_to_keep": -1},
        ValueError,
        "logits_to_keep must be at least 0, got -1",
        id="logits_to_keep_negative",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "logits_to_keep": 1.0},
        TypeError,
        "logits_to_keep must be an int, got float",
        id="logits_to_keep_type",
    ),
    pytest.param(
        {"input_ids": token_ids(1, 3), "labels": token_ids(1, 3), "logits_to_keep": 1},
        ValueError,
        "logits_to_keep must be 0 with labels",
        id="logits_to_keep_with_labels",
    ),
]


@pytest.mark.parametrize("arguments, error, message", BAD_INPUTS)
def test_bad_inputs(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        randomise(HymbaForCausalLM(HymbaConfig(**SMALL)))(**arguments)
