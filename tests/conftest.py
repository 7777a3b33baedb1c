"""Makes the clone's packages importable and uninitialised memory visible; chooses what the kernel tests run on."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from hymba_ops import functional  # noqa: E402

from emulator.client import MODES, Client  # noqa: E402
from emulator.ops import EmulatedOps  # noqa: E402
from kernel_cases import DEVICE  # noqa: E402

SM90 = "-sm90"


def emulator_modes(text: str) -> list[str]:
    """The modes of the option --emulator-mode."""
    modes = text.split(",")
    if unknown := set(modes) - set(MODES):
        raise ValueError(
            f"--emulator-mode: no mode is named {', '.join(sorted(unknown))}; there are {', '.join(MODES)}"
        )
    return modes


def pytest_addoption(parser):
    group = parser.getgroup("emulated CUDA kernels (tests/emulator/README.md)")
    group.addoption(
        "--emulator-mode", type=emulator_modes, default="ascending", help=f"how they run: of {', '.join(MODES)}"
    )
    group.addoption("--no-emulator", action="store_true", help="leave them out, where they cannot be built")
    group.addoption("--all-faults", action="store_true", help="tests/test_planted_faults.py plants all it has")
    parser.addoption(
        "--of-each-file",
        type=int,
        metavar="N",
        help="at most N tests of each file, spread over it (tools/gpu_check.sh)",
    )


def pytest_generate_tests(metafunc):
    modes = metafunc.config.getoption("--emulator-mode")
    emulated = [pytest.param(mode, marks=pytest.mark.emulated) for mode in modes]
    if "ops" in metafunc.fixturenames:
        if sm90 := metafunc.definition.get_closest_marker("sm90"):
            hopper = [pytest.param(mode + SM90, marks=pytest.mark.emulated) for mode in modes]
            emulated = hopper if sm90.kwargs.get("only") else [*emulated, *hopper]
        metafunc.parametrize("ops", ["native", *emulated], indirect=True)
    if "emulator_mode" in metafunc.fixturenames:
        metafunc.parametrize("emulator_mode", emulated)


def has_no_sm90_kernel(item) -> bool:
    """Of a test of kernels for Hopper: those are for 16-bit types."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return str(params.get("ops")).endswith(SM90) and params.get("dtype") in (torch.float32, torch.float64)


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    items[:] = [item for item in items if not has_no_sm90_kernel(item)]
    if (most := config.getoption("--of-each-file")) is not None:
        files = [list(of_file) for _, of_file in itertools.groupby(items, key=lambda item: item.path)]
        kept = [item for of_file in files for item in of_file[:: -(-len(of_file) // most)]]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    reason = "--no-emulator" if config.getoption("--no-emulator") else ""
    if DEVICE != "cpu":
        reason = "the emulated kernels take CPU tensors"
    for item in items if reason else []:
        if item.get_closest_marker("emulated"):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish():
    Client.stop_workers()


@pytest.fixture(autouse=True)
def tensors_on_the_device():
    """What a test makes is on kernel_cases.DEVICE; the arguments in a table of bad input are on the CPU."""
    with contextlib.nullcontext() if DEVICE == "cpu" else torch.device(DEVICE):
        yield


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


@pytest.fixture(autouse=True)
def gpu_still_works(request):
    """A kernel that faults leaves its process without a GPU: the process ends with the test that it happened in, and
    pytest-xdist gives the rest to a new one."""
    yield
    if DEVICE == "cuda":
        stop_if_broken(request.node.nodeid, os.environ.get("PYTEST_XDIST_WORKER"))


def stop_if_broken(test: str, worker: str | None) -> None:
    """worker: of pytest-xdist; None where all tests run in this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        complaint = f"{test} left the GPU unusable for this process: {error}"
        if worker is None:
            pytest.exit(complaint, returncode=3)
        print(complaint, file=sys.__stderr__, flush=True)
        os._exit(3)


@pytest.fixture
def ops(request):
    """The public functions as a kernel-against-reference test calls them: hymba_ops.functional on kernel_cases.DEVICE,
    or the emulated CUDA kernels on CPU tensors, in each mode of --emulator-mode; behind a mode's name "-sm90" are those
    for Hopper."""
    if request.param == "native":
        return functional
    mode = MODES[request.param.removesuffix(SM90)]
    return EmulatedOps(replace(mode, capability=90) if request.param.endswith(SM90) else mode)
