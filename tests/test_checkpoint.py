"""Reading and writing checkpoints, their errors, and that an interrupted save loses nothing."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hymba_ops import HymbaConfig, HymbaForCausalLM

from model_cases import SMALL, randomise, token_ids

WHOLE, SHARDED = 10**9, 20_000
INDEX = "model.safetensors.index.json"
LAYOUTS = [pytest.param(WHOLE, id="whole"), pytest.param(SHARDED, id="sharded")]


def model(seed=0, **changes):
    return randomise(HymbaForCausalLM(HymbaConfig(**SMALL | changes)), seed)


def logits(m):
    return m(token_ids(2, 9)).logits


def saved(folder, size=WHOLE, seed=0, **changes):
    m = model(seed, **changes)
    m.save_pretrained(folder, max_shard_bytes=size)
    return m


def edit_weights(folder, change):
    """Applies change to the state dict of a folder with one weight file."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", LAYOUTS)
def test_round_trip(tmp_path, size, tied):
    m = saved(tmp_path, size, tie_word_embeddings=tied)
    again = HymbaForCausalLM.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    for (name, a), (other, b) in zip(m.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    assert torch.equal(logits(again), logits(m))
    assert again.config.sliding_window == SMALL["sliding_window"]


def test_whole_file_is_as_published(tmp_path):
    m = saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(m.state_dict()) - {"lm_head.weight"}


def test_shards_are_as_published(tmp_path):
    m = saved(tmp_path, SHARDED)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3
    assert set(index["weight_map"]) == set(m.state_dict()) - {"lm_head.weight"}
    shards = {file: load_file(tmp_path / file) for file in files}
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in shards.values() for t in shard.values())
    for file, shard in shards.items():
        assert {name for name, at in index["weight_map"].items() if at == file} == set(shard)
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= SHARDED


@pytest.mark.parametrize("size", LAYOUTS)
def test_dtype(tmp_path, size):
    m = model().to(torch.bfloat16)
    m.model.layers[0].mamba.A_log[0].data = m.model.layers[0].mamba.A_log[0].data.float()
    m.save_pretrained(tmp_path, max_shard_bytes=size)
    as_stored = HymbaForCausalLM.from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in as_stored.named_parameters()} == {n: p.dtype for n, p in m.named_parameters()}
    for dtype in (torch.float32, torch.float64):
        loaded = HymbaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert loaded.model.layers[0].mamba.inv_freq.dtype == torch.float32
        assert torch.equal(loaded.model.embed_tokens.weight, m.model.embed_tokens.weight.to(dtype))


def test_dtype_must_be_floating(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type or None, got torch\.int8"):
        HymbaForCausalLM.from_pretrained(tmp_path, dtype=torch.int8)


def test_loaded_weights_can_be_trained(tmp_path):
    saved(tmp_path)
    assert all(parameter.requires_grad for parameter in HymbaForCausalLM.from_pretrained(tmp_path).parameters())


def test_stored_tied_head_is_accepted_when_equal(tmp_path):
    m = saved(tmp_path)
    edit_weights(tmp_path, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(HymbaForCausalLM.from_pretrained(tmp_path)), logits(m))
    edit_weights(tmp_path, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        HymbaForCausalLM.from_pretrained(tmp_path)


# ---- What does not fit ----

NAME = "model.layers.1.mamba.in_proj.weight"


def rename(state):
    state["model.layers.1.mamba.surprise"] = state.pop(NAME)


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(lambda s: s.pop(NAME), f"missing tensors: {NAME}", id="missing"),
        pytest.param(
            rename, f"missing tensors: {NAME}; unexpected tensors: model.layers.1.mamba.surprise", id="renamed"
        ),
        pytest.param(
            lambda s: s.update({NAME: s[NAME][1:].clone()}),
            f"tensors of another shape or kind: {NAME} (expected [288, 48], got [287, 48])",
            id="shape",
        ),
        pytest.param(
            lambda s: s.update({NAME: s[NAME].to(torch.int8)}),
            f"tensors of another shape or kind: {NAME} (expected floating point, got I8)",
            id="integers",
        ),
        pytest.param(lambda s: s.update(extra=torch.ones(1)), "unexpected tensors: extra", id="unexpected"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    saved(tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda s: [s.pop(name) for name in list(s) if "layers.0" in name])
    with pytest.raises(ValueError, match=r"missing tensors: model\.layers\.0\.\S+, .* and \d+ more$"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_untied_head_is_required(tmp_path):
    saved(tmp_path, tie_word_embeddings=False)
    edit_weights(tmp_path, lambda s: s.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing tensors: lm_head\.weight"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_no_weights(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds neither model\.safetensors nor {re.escape(INDEX)}"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_no_config(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_missing_shard(tmp_path):
    saved(tmp_path, SHARDED)
    shard = sorted(tmp_path.glob("model-*"))[2]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{re.escape(INDEX)} names {shard.name}, which does not exist"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_index_that_places_a_tensor_wrongly(tmp_path):
    saved(tmp_path, SHARDED)
    files = sorted(path.name for path in tmp_path.glob("model-*"))

    def change(index):
        index["weight_map"][NAME] = files[0] if index["weight_map"][NAME] != files[0] else files[1]

    edit_index(tmp_path, change)
    with pytest.raises(ValueError, match=f"lacks tensors that {re.escape(INDEX)} places there: {re.escape(NAME)}"):
        HymbaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'],
    ids=["empty", "list", "no_map", "number", "values"],
)
def test_broken_index(tmp_path, content):
    saved(tmp_path, SHARDED)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match="is not an index of safetensors shards"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_index_may_not_leave_its_folder(tmp_path):
    saved(tmp_path, SHARDED)
    edit_index(tmp_path, lambda index: index["weight_map"].update({NAME: "../elsewhere.safetensors"}))
    with pytest.raises(ValueError, match="names files outside its folder"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_truncated_weights(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        HymbaForCausalLM.from_pretrained(tmp_path)


def test_meta_model_cannot_be_saved(tmp_path):
    m = HymbaForCausalLM(HymbaConfig(**SMALL), device="meta")
    with pytest.raises(ValueError, match=r"meta device have no values to save: model\.memory_tokens, .* more"):
        m.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_shard_size_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="max_shard_bytes must be positive, got 0"):
        model().save_pretrained(tmp_path, max_shard_bytes=0)


# ---- Overwriting ----


@pytest.mark.parametrize("new", LAYOUTS)
@pytest.mark.parametrize("old", LAYOUTS)
def test_overwrites_what_is_there(tmp_path, old, new):
    saved(tmp_path, old)
    (tmp_path / "tokenizer.json").write_text("{}")
    for seed in (1, 2):
        m = saved(tmp_path, new, seed=seed)
        assert torch.equal(logits(HymbaForCausalLM.from_pretrained(tmp_path)), logits(m))
    files = {path.name for path in tmp_path.iterdir()}
    assert "tokenizer.json" in files
    assert not [name for name in files if name.startswith(".")]
    index = tmp_path / INDEX
    named = set(json.loads(index.read_text())["weight_map"].values()) | {INDEX} if index.exists() else set()
    assert files - named == {"config.json", "tokenizer.json"} | ({"model.safetensors"} if new == WHOLE else set())


FEW_FILES = [pytest.param(WHOLE, id="whole"), pytest.param(200_000, id="sharded")]


@pytest.mark.parametrize("new", FEW_FILES)
@pytest.mark.parametrize("old", FEW_FILES)
def test_interrupted_anywhere_leaves_a_whole_checkpoint(tmp_path, monkeypatch, old, new):
    """Every call that changes the folder fails in turn; what is there then loads, and is the old or the new model."""
    before, after = logits(model()), logits(model(1))
    outcomes = []
    for failing in range(100):
        folder = tmp_path / str(failing)
        saved(folder, old)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, failing)
            with contextlib.suppress(KeyboardInterrupt):
                saved(folder, new, seed=1)
        found = logits(HymbaForCausalLM.from_pretrained(folder))
        outcomes.append("old" if torch.equal(found, before) else "new" if torch.equal(found, after) else "broken")
        if len(calls) <= failing:
            break
    assert "broken" not in outcomes
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert outcomes == sorted(outcomes, reverse=True), "once the new one counts, the old one does not come back"


def fail_at(patch, failing):
    """Makes the failing-th rename, deletion or write raise KeyboardInterrupt. Returns the list of calls so far."""
    import safetensors.torch

    calls = []

    def counted(owner, name):
        original = getattr(owner, name)

        def function(*args, **kwargs):
            calls.append(name)
            if len(calls) - 1 == failing:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        patch.setattr(owner, name, function)

    counted(Path, "replace")
    counted(Path, "unlink")
    counted(Path, "write_text")
    counted(safetensors.torch, "save_file")
    return calls
