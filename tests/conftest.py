"""Makes the clone's packages importable and uninitialised memory visible; chooses what the kernel tests run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from emulator.client import MODES, Client  # noqa: E402
from emulator.ops import EmulatedOps  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("emulated CUDA kernels")
    group.addoption("--emulator-mode", default="ascending", choices=MODES, help="see tests/emulator/README.md")
    group.addoption("--no-emulator", action="store_true", help="leave them out, where they cannot be built")


@pytest.fixture(autouse=True)
def nan_in_empty_tensors():
    """torch.empty gives NaN, so that a result which is not written shows."""
    settings = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    settings.fill_uninitialized_memory = before[2]


@pytest.fixture(scope="session")
def emulated_ops(request):
    """The public functions on emulated CUDA kernels, in the mode of --emulator-mode."""
    if request.config.getoption("--no-emulator"):
        pytest.skip("--no-emulator")
    yield EmulatedOps(MODES[request.config.getoption("--emulator-mode")])
    Client.stop_workers()


@pytest.fixture(params=["native", pytest.param("emulated", marks=pytest.mark.emulated)])
def ops(request):
    """The public functions as a kernel-against-reference test calls them: hymba_ops.functional on kernel_cases.DEVICE,
    or the emulated CUDA kernels on CPU tensors."""
    from hymba_ops import functional

    from kernel_cases import DEVICE

    if request.param == "native":
        return functional
    if DEVICE != "cpu":
        pytest.skip("the emulated kernels take CPU tensors")
    return request.getfixturevalue("emulated_ops")
