"""Which product linear and gated_linear use, and what each promises. HYMBA_OPS_CPU_PRODUCTS is read once in a process, so
these checks have one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_linear import OPS, ROWS, check, make_arguments, make_inputs

from hymba_ops import functional as F

from kernel_cases import DEVICE


def run_with_products(products, *functions):
    """Calls this file's functions in a new process with HYMBA_OPS_CPU_PRODUCTS=products, None for neither; returns the
    process."""
    tests = Path(__file__).resolve().parent
    calls = "; ".join(f"t.{function}()" for function in functions)
    code = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]; import test_products as t; {calls}"
    environment = {name: value for name, value in os.environ.items() if name != "HYMBA_OPS_CPU_PRODUCTS"}
    environment |= {} if products is None else {"HYMBA_OPS_CPU_PRODUCTS": products}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def check_rows_do_not_depend_on_others():
    """Every row alone, and every smaller batch, has the bits that it has in the whole one."""
    for name in OPS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for inner, outputs in ((9, 33), (650, 65)):
                args, kwargs = make_arguments(name, 1020, inner, outputs=outputs, dtype=dtype)
                op = getattr(F, name)

                def part(rows, op=op, args=args, kwargs=kwargs):
                    return op(args[0][rows], *args[1:], **{key: t[rows] for key, t in kwargs.items()})

                whole = part(slice(None))
                for start in (*range(20), 503, 504, 505, 1019):
                    assert torch.equal(part(slice(start, start + 1)), whole[start : start + 1]), (name, dtype, start)
                for count in ROWS:
                    assert torch.equal(part(slice(3, 3 + count)), whole[3 : 3 + count]), (name, dtype, count)


def check_against_reference_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shape, outputs in (((40,), 17), ((2, 3, 330), 33), ((70, 90), 65), ((2, 8), 0), ((0, 8), 5)):
            for name in OPS:
                check(name, *make_arguments(name, *shape, outputs=outputs, dtype=dtype), dtype)


def check_the_library_is_used():
    x, weight, extras = make_inputs(64, 650, outputs=65, bias=True)
    assert torch.equal(F.linear(x, weight), torch.mm(x, weight.T))
    assert torch.equal(F.linear(x, weight, extras["bias"]), torch.addmm(extras["bias"], x, weight.T))


def check_autocast_leaves_the_dtype_alone():
    for name in OPS:
        args, kwargs = make_arguments(name, 3, 40, outputs=17)
        expected = getattr(F, name)(*args, **kwargs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(getattr(F, name)(*args, **kwargs), expected)


def check_own_products_are_used():
    x, weight, _ = make_inputs(64, 650, outputs=65)
    assert not torch.equal(F.linear(x, weight), torch.mm(x, weight.T))


def print_few_rows_of_a_step():
    """Of the ops that only a decode step calls, in bits."""
    x, weight, _ = make_inputs(4, 650, outputs=65, dtype=torch.bfloat16)
    norm = torch.ones(650, dtype=torch.bfloat16)
    down = make_inputs(1, 65, outputs=40, dtype=torch.bfloat16)[1]
    for count in range(1, 5):
        for out in (F.norm_project(x[:count], norm, weight), F.gated_mlp(x[:count], norm, weight, weight, down)):
            print(out.view(torch.int16).tolist())


def print_refusal():
    for name in OPS:
        args, kwargs = make_arguments(name, 3, 8, outputs=5)
        try:
            getattr(F, name)(*args, **kwargs)
        except ValueError as error:
            print(error)


PRODUCT_CHECKS = {
    "own": (check_own_products_are_used, check_against_reference_in_every_dtype, check_rows_do_not_depend_on_others),
    "library": (
        check_the_library_is_used,
        check_against_reference_in_every_dtype,
        check_autocast_leaves_the_dtype_alone,
    ),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's choice")
@pytest.mark.parametrize("products", PRODUCT_CHECKS)
def test_products(products):
    done = run_with_products(products, *(check.__name__ for check in PRODUCT_CHECKS[products]))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's choice")
@pytest.mark.parametrize("products", ["mkl", "", "OWN"])
def test_other_products_are_refused(products):
    done = run_with_products(products, "print_refusal")
    refusal = f"HYMBA_OPS_CPU_PRODUCTS must be own or library, got '{products}'"
    assert done.stdout.count(refusal) == len(OPS), done.stdout + done.stderr


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's choice")
def test_few_rows_of_a_step_are_never_left_to_the_library():
    """In bfloat16, where the CPU has fast products of it too: reading the weight bounds them."""
    chosen, own, library = (run_with_products(which, "print_few_rows_of_a_step") for which in (None, "own", "library"))
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout == own.stdout != library.stdout
