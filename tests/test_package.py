"""The package as it is installed: imports, its errors, and what it exports."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hymba_ops

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(hymba_ops.__file__).resolve().parent
LIBRARY = PACKAGE / "_C.abi3.so"
PUBLIC = {
    "attention", "causal_conv1d", "causal_conv1d_update", "decode_attention", "norm_average", "norm_average_project", "norm_project", "rms_norm", "rotary",
    "selective_scan", "selective_state_update", "HymbaConfig", "HybridMixer", "HymbaLayer", "HymbaModel",
    "HymbaForCausalLM", "decode_branches", "gated_linear", "gated_mlp", "linear", "mamba_update", "build_info", "__version__",
}  # fmt: skip


def python(code, *, cwd, **environment):
    """Runs code in a fresh interpreter that sees cwd first and nothing of this one's path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def copied_package(folder):
    """The package without its shared object, alone in a folder."""
    shutil.copytree(PACKAGE, folder / "hymba_ops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder / "hymba_ops"


WHERE_AND_RUN = """
import hymba_ops, torch
one = torch.ones(2, 8)
out = hymba_ops.norm_average(one, one, one[0], one[0])
assert torch.allclose(out, one, atol=1e-5), out
print(hymba_ops.__file__)
"""


def test_imports_from_the_clones_root():
    done = python(WHERE_AND_RUN, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "hymba_ops"


def test_imports_from_another_place(tmp_path):
    shutil.copy2(LIBRARY, copied_package(tmp_path))
    done = python(WHERE_AND_RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "hymba_ops"


def test_imports_as_installed(tmp_path):
    try:
        importlib.metadata.distribution("hymba_ops")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("hymba_ops is not installed here, only built in place")
    done = python(WHERE_AND_RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_import_stays_light():
    """What takes long to import is imported where it is used."""
    heavy = "torch._dynamo", "torch._inductor", "safetensors", "sympy", "transformers", "importlib.metadata"
    code = f"""
import sys, torch
before = set(sys.modules)
import hymba_ops
print(sorted((set(sys.modules) - before) & set({heavy!r})))
"""
    done = python(code, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_missing_shared_object_says_what_to_do(tmp_path):
    copied_package(tmp_path)
    done = python("import hymba_ops", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"ImportError: .*_C\.abi3\.so does not exist: run 'pip install \.'", done.stderr), done.stderr


@pytest.mark.parametrize(
    "content", [pytest.param(b"", id="empty"), pytest.param(b"not a library\n" * 100, id="text"), "truncated"]
)
def test_corrupt_shared_object_says_what_to_do(tmp_path, content):
    if content == "truncated":
        content = LIBRARY.read_bytes()[:4096]
    (copied_package(tmp_path) / LIBRARY.name).write_bytes(content)
    done = python("import hymba_ops", cwd=tmp_path)
    assert done.returncode == 1, done
    assert re.search(r"ImportError: .*does not load with torch .*Rebuild it .*'pip install", done.stderr), done.stderr


def test_old_torch_is_refused():
    done = python("import torch; torch.__version__ = '2.9.1+cpu'; import hymba_ops", cwd=PACKAGE.parent)
    assert done.returncode == 1
    assert "ImportError: hymba_ops needs torch >= 2.11, found 2.9.1+cpu" in done.stderr


def test_unknown_instruction_set_is_a_clear_error():
    done = python(WHERE_AND_RUN, cwd=PACKAGE.parent, HYMBA_OPS_CPU_ISA="nonsense")
    assert done.returncode == 1, done
    assert re.search(r"ValueError: .*HYMBA_OPS_CPU_ISA must name an instruction set.*'nonsense'", done.stderr)


def test_baseline_instruction_set_can_be_chosen():
    code = WHERE_AND_RUN + "print(hymba_ops.build_info()['cpu_isa_selected'])"
    done = python(code, cwd=PACKAGE.parent, HYMBA_OPS_CPU_ISA="baseline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "baseline"


def test_every_op_runs_on_every_back_end():
    registered = {name.removeprefix("hymba_ops::") for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("hymba_ops::")}  # fmt: skip
    ops = {name for name in registered if not name.startswith("_")} - {"build_info"}
    assert len(ops) >= 11
    for op in ops:
        for key in ("CPU", "CUDA", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hymba_ops::{op}", key), f"{op} has no {key} kernel"


def test_exports():
    assert set(hymba_ops.__all__) == PUBLIC
    for name in PUBLIC - {"__version__"}:
        assert getattr(hymba_ops, name).__doc__, f"{name} has no docstring"


def test_version_is_the_installed_one():
    try:
        installed = importlib.metadata.version("hymba_ops")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("hymba_ops is not installed here, only built in place")
    assert hymba_ops.__version__ == installed


def test_build_info():
    info = hymba_ops.build_info()
    assert info["version"] == hymba_ops.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu_isa_selected"] in info["cpu_isas"].split()
    assert "baseline" in info["cpu_isas"].split()
    assert set(info["cpu_library_products"].split()) <= {"float32", "bfloat16", "float16", "float64"}
    assert info["cuda_available"] == torch.cuda.is_available()
    if not torch.cuda.is_available():
        assert info["cuda_capability"] == ""
        assert info["selected"] == f"cpu {info['cpu_isa_selected']}"
    assert {"compiler", "cuda_architectures"} <= info.keys()
