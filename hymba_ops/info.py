"""What was built and what this machine selects of it."""

from __future__ import annotations

import torch

from hymba_ops import _ops

__version__ = "0.1.0"


def build_info() -> dict[str, str | bool]:
    """Facts for bug reports.

    Returns:
        version, torch: versions.
        compiler: of the shared object.
        cpu_isas: instruction sets that the CPU kernels were compiled for, best first.
        cpu_isa_selected: the one that this machine runs (HYMBA_OPS_CPU_ISA overrides it).
        cpu_library_products: dtypes whose products this CPU leaves to torch's library, "" for none
            (HYMBA_OPS_CPU_PRODUCTS overrides it).
        cuda_architectures: what the CUDA kernels were compiled for; "" where there was no nvcc.
        cuda_available: whether torch sees a GPU.
        cuda_capability: of the current GPU, as "9.0"; "" without one.
        selected: the kernels that this machine's best device runs: "cuda sm_80", "cpu avx512" and the like.

    Raises:
        ValueError: HYMBA_OPS_CPU_ISA names an instruction set that was not built or that this CPU lacks, or
            HYMBA_OPS_CPU_PRODUCTS is neither own nor library.
    """
    compiled = _ops.build_info()
    available = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if available else None
    return {
        "version": __version__,
        "torch": torch.__version__,
        **compiled,
        "cuda_available": available,
        "cuda_capability": "" if capability is None else "{}.{}".format(*capability),
        "selected": _selected(compiled, capability),
    }


def _selected(compiled: dict[str, str], capability: tuple[int, int] | None) -> str:
    cpu = f"cpu {compiled['cpu_isa_selected']}"
    if capability is None:
        return cpu
    if not compiled["cuda_architectures"]:
        return f"{cpu} (the GPU is not used: built without nvcc)"
    if capability < (8, 0):
        return f"{cpu} (the GPU is not used: its capability is below 8.0)"
    # sm_80 code runs on every 8.x GPU, its PTX is compiled by the driver for later ones.
    return "cuda sm_80" if capability[0] == 8 else "cuda compute_80 PTX"
