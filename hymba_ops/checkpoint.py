"""Reading and writing checkpoints: config.json with model.safetensors, or with shards and model.safetensors.index.json.

Weights are read one tensor at a time and checked against the model's names and shapes before anything is read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from safetensors import safe_open

    from hymba_ops.model import HymbaForCausalLM

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

_NAMED = 8  # tensors that an error names before it counts the rest
_FLOATING = {"F64", "F32", "F16", "BF16"}


def load(
    model: HymbaForCausalLM,
    folder: str | PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Puts the weights of `folder` in place of the model's (which may be on the meta device).

    Args:
        device: where they go; None for the CPU.
        dtype: theirs; None to keep each as stored.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: tensors are missing, unexpected or of another shape or kind; they are named.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type or None, got {dtype}")
    shards = _shards(Path(folder))
    _check(model, Path(folder), shards)
    tied_head = None
    for path, names in shards.items():
        with _open(path) as shard:
            tensors = {name: shard.get_tensor(name).to(device=device or "cpu", dtype=dtype) for name in names}
        if model.config.tie_word_embeddings:
            tied_head = tensors.pop("lm_head.weight", tied_head)
        model.load_state_dict(tensors, strict=False, assign=True)
    if tied_head is not None and not torch.equal(tied_head, model.lm_head.weight):
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: tie_word_embeddings is true, "
            "but lm_head.weight differs from model.embed_tokens.weight"
        )
    model.to(device=device or "cpu")  # the RoPE frequencies, which no file holds


def save(model: HymbaForCausalLM, folder: str | PathLike[str], *, max_shard_bytes: int) -> None:
    """Writes config.json and the weights; a tied head is left out, as in published checkpoints.

    Everything is written to a temporary folder inside `folder` first and then moved. Shards never take the names of
    files that are there, so the old checkpoint is whole until one rename (of model.safetensors, or of the index) puts
    the new one in its place; config.json is moved just before that.

    Raises:
        ValueError: the model has parameters on the meta device, or max_shard_bytes is not positive.
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    on_meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if on_meta:
        raise ValueError(f"parameters on the meta device have no values to save: {_some(on_meta)}")

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = _weight_files(folder)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        model.config.save_pretrained(staging)
        new = _write_weights(tensors, staging, max_shard_bytes, taken=set(os.listdir(folder)))
        for path in staging.iterdir():
            _flush(path)
        _move(staging, folder, new)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for name in old - set(new):
        (folder / name).unlink(missing_ok=True)


def _move(staging: Path, folder: Path, names: list[str]) -> None:
    """Moves config.json and the files of `names`; the last of these is the one that makes them count."""
    *shards, decisive = names
    for name in [*shards, CONFIG, decisive]:
        (staging / name).replace(folder / name)
    if decisive == INDEX:
        (folder / WEIGHTS).unlink(missing_ok=True)  # readers prefer it to an index
    _flush(folder)


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int, taken: set[str]) -> list[str]:
    """Writes the tensors to `folder`, shards under names not in `taken`. Returns the files, the decisive one last."""
    from safetensors.torch import save_file

    def write(names: Iterable[str], file: str) -> None:
        part = {name: tensors[name].detach().contiguous() for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})

    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write(shards[0], WEIGHTS)
        return [WEIGHTS]
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if taken & set(files):
        files = [file.replace("model", f"model{folder.name}", 1) for file in files]  # a random name, used once
    for names, file in zip(shards, files, strict=True):
        write(names, file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for names, file in zip(shards, files, strict=True) for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*files, INDEX]


def _split(tensors: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names in order, in runs of at most max_bytes (a larger tensor gets a run of its own)."""
    runs: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if runs[-1] and size + tensor.nbytes > max_bytes:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += tensor.nbytes
    return runs


def _weight_files(folder: Path) -> set[str]:
    """The weight files, index included, of the checkpoint that `folder` holds now."""
    files = {name for name in (WEIGHTS, INDEX) if (folder / name).exists()}
    if INDEX in files:
        files |= set(_read_index(folder / INDEX).values())
    return files


def _shards(folder: Path) -> dict[Path, list[str]]:
    """The folder's weight files and the tensors to take from each."""
    if (folder / WEIGHTS).exists():
        with _open(folder / WEIGHTS) as file:
            return {folder / WEIGHTS: list(file.keys())}
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    shards: dict[Path, list[str]] = {}
    for name, file in _read_index(folder / INDEX).items():
        shards.setdefault(folder / file, []).append(name)
    for path, names in shards.items():
        if not path.exists():
            raise FileNotFoundError(f"{folder / INDEX} names {path.name}, which does not exist")
        with _open(path) as file:
            absent = sorted(set(names) - set(file.keys()))
        if absent:
            raise ValueError(f"{path} lacks tensors that {INDEX} places there: {_some(absent)}")
    return shards


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def _read_index(path: Path) -> dict[str, str]:
    """The index's weight_map: tensor name to file name."""
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        plain_names = all(Path(file).name == file for file in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of safetensors shards: {error!r}") from None
    if not plain_names:
        raise ValueError(f"{path} names files outside its folder")
    return weight_map


def _check(model: HymbaForCausalLM, folder: Path, shards: dict[Path, list[str]]) -> None:
    """Raises ValueError unless the files hold exactly the model's tensors (but for a tied head, left out or equal)."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found, wrong = set(), []
    for path, names in shards.items():
        with _open(path) as shard:
            for name in names:
                part = shard.get_slice(name)
                found.add(name)
                if name in expected and part.get_shape() != expected[name]:
                    wrong.append(f"{name} (expected {expected[name]}, got {part.get_shape()})")
                elif part.get_dtype() not in _FLOATING:
                    wrong.append(f"{name} (expected floating point, got {part.get_dtype()})")
    optional = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    problems = {
        "missing tensors": sorted(expected.keys() - found - optional),
        "unexpected tensors": sorted(found - expected.keys()),
        "tensors of another shape or kind": wrong,
    }
    text = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if text:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {text}")


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _flush(path: Path) -> None:
    """Waits until a file's or folder's contents are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
