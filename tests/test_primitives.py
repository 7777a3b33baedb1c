"""The emulation of csrc/cuda/primitives: against numpy, and against what a GPU gave (tools/capture_primitives.py)."""

from __future__ import annotations

import numpy as np
import pytest
from primitives.cases import CASES, assert_agrees, assert_agrees_with_capture, capture

from emulator.client import MODES, Client
from emulator.shipped import Shipped
from golden_data import GOLDEN

pytestmark = pytest.mark.emulated


@pytest.fixture
def emulated(emulator_mode):
    """run(name, inputs, like) -> outputs of the emulated probe, of like's shape and dtype."""
    client = Client(MODES[emulator_mode])

    def run(name: str, inputs: np.ndarray, like: np.ndarray) -> np.ndarray:
        bytes_of_items = inputs.view(np.uint8).reshape(len(inputs), -1)
        (out,), _ = client.run("run_probe", [("name", name), ("in", Shipped.contiguous(bytes_of_items))], set())
        return np.frombuffer(out.memory, like.dtype).reshape(like.shape)

    return run


@pytest.mark.parametrize("name", CASES)
def test_emulation_matches_numpy(emulated, name):
    inputs = CASES[name].inputs
    expected = CASES[name].expected(inputs)
    assert_agrees(name, emulated(name, inputs, expected), expected)


def test_every_probe_has_a_case(emulator_mode):
    (names,), _ = Client(MODES[emulator_mode]).run("probe_names", [], set())
    assert sorted(names) == sorted(CASES)


def test_emulation_agrees_with_captures(emulated, tmp_path):
    """With every capture of a GPU that is kept, and with one of the emulator's own, which shows that the way there works."""
    own = tmp_path / "emulated.npz"
    capture(emulated, own, "emulated")
    for file in [own, *sorted((GOLDEN / "primitives").glob("*.npz"))]:
        assert_agrees_with_capture(emulated, file)


@pytest.mark.parametrize("name", ["exp2_approx", "narrow_bf16", "copy_async_8"])
def test_a_capture_that_differs_is_refused(emulated, tmp_path, name):
    file = tmp_path / "other.npz"
    capture(emulated, file, "emulated")
    arrays = dict(np.load(file))
    bits = arrays[f"{name}.out"].view(np.uint8).reshape(len(arrays[f"{name}.out"]), -1)
    bits[17] ^= 4  # of each byte: too much even for an approximation
    np.savez(file, **arrays)
    with pytest.raises(AssertionError, match=f"{name}: item "):
        assert_agrees_with_capture(emulated, file)
