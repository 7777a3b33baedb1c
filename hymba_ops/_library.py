"""Loads the shared object that registers torch.ops.hymba_ops.*, and says what to do when it cannot."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

_LIBRARY = Path(__file__).resolve().parent / "_C.abi3.so"
_OLDEST_TORCH = (2, 11)


def load() -> None:
    """Loads hymba_ops/_C.abi3.so.

    Raises:
        ImportError: torch is older than 2.11, or the shared object is missing or does not load.
    """
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < _OLDEST_TORCH:
        raise ImportError(
            f"hymba_ops needs torch >= {'.'.join(map(str, _OLDEST_TORCH))}, found {torch.__version__}: "
            "upgrade torch (pip install -U torch), then reinstall hymba_ops"
        )
    if not _LIBRARY.exists():
        raise ImportError(
            f"hymba_ops' shared object {_LIBRARY} does not exist: run 'pip install .' in the clone's root "
            "(it compiles the kernels and also leaves them beside the sources)"
        )
    try:
        if _is_truncated(_LIBRARY):
            raise OSError("the file is cut short")
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"hymba_ops' shared object {_LIBRARY} does not load with torch {torch.__version__}: {error}. "
            "Rebuild it for this machine: 'pip install --force-reinstall --no-deps .' in the clone's root"
        ) from error


def _is_truncated(library: Path) -> bool:
    """Whether a 64-bit ELF file ends before its section headers: the dynamic linker would crash on it."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False  # no such file at all: the linker says so itself
    (offset,) = struct.unpack_from("<Q", header, 0x28)
    size, count = struct.unpack_from("<HH", header, 0x3A)
    return library.stat().st_size < offset + size * count


load()
