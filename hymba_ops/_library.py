"""Loads the shared object that registers torch.ops.hymba_ops.*, and says what to do when it cannot."""

from __future__ import annotations

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
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"hymba_ops' shared object {_LIBRARY} does not load with torch {torch.__version__}: {error}. "
            "Rebuild it for this machine: 'pip install --force-reinstall --no-deps .' in the clone's root"
        ) from error


load()
