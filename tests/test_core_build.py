"""The C++ driver of the sanitizer builds (tests/cpp/test_kernels.cpp) knows every CPU kernel.

CI runs the driver itself; here it is only read, since a new kernel without a case would go unnoticed there.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_driver_has_a_case_for_every_cpu_kernel():
    declared = {
        name
        for header in sorted((ROOT / "csrc" / "ops").glob("*.h"))
        for name in re.findall(r"^HYMBA_CPU_KERNEL\((\w+), \w+\)", header.read_text(), re.MULTILINE)
    }
    driver = (ROOT / "tests" / "cpp" / "test_kernels.cpp").read_text()
    covered = dict(re.findall(r'^ *\{"(\w+)", (\w+)\},', driver, re.MULTILINE))
    assert covered == {name: f"{name}_case" for name in declared}
