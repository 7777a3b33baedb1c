"""The one tolerance policy: a kernel may err about as much as the plain PyTorch form in the same dtype does.

error against the float64 reference <= factor * (error of the plain form) + floor * (rms of the reference), where the
error is the largest absolute one and factor is 2 (3 for gradients). NaN and infinity must stand at equal positions.
"""

from __future__ import annotations

import torch

FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 2e-4, torch.float64: 1e-12}


def to_float64(value):
    """Floating tensors in float64 (nested in tuples, lists and dicts too), everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: to_float64(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(to_float64(item) for item in value)
    return value


def assert_close(actual, plain, exact, *, dtype, name="out", factor=2.0):
    """actual: the kernel's result; plain: the reference's in the same dtype; exact: the reference's in float64.

    `dtype` is the inputs' dtype (a float32 state of a bfloat16 op is judged as bfloat16 input allows).
    """
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, the plain form has {plain.dtype}"
    actual, plain, exact = actual.double(), plain.double(), exact.double()
    finite = torch.isfinite(exact) & torch.isfinite(plain)
    for kind, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        differing = (test(actual) != test(plain)).sum().item()
        assert differing == 0, f"{name}: {kind} at {differing} other positions than in the plain form"
    if not finite.any():
        return
    rms = exact[finite].square().mean().sqrt().item()
    error = (actual - exact)[finite].abs().max().item()
    plain_error = (plain - exact)[finite].abs().max().item()
    allowed = factor * plain_error + FLOOR[dtype] * rms
    assert error <= allowed, (
        f"{name}: error {error:.3e} against float64, allowed {allowed:.3e} "
        f"(the plain form's {plain_error:.3e}, rms {rms:.3e})"
    )


def check_against_reference(op, reference, *args, dtype, names=("out",), **kwargs):
    """Runs op and reference on the same arguments and compares every output by `assert_close`; returns op's outputs."""
    actual = op(*args, **kwargs)
    plain = reference(*args, **kwargs)
    exact = reference(*to_float64(args), **to_float64(kwargs))
    as_tuple = lambda value: value if isinstance(value, tuple) else (value,)  # noqa: E731
    for name, a, p, e in zip(names, as_tuple(actual), as_tuple(plain), as_tuple(exact), strict=True):
        assert_close(a, p, e, dtype=dtype, name=name)
    return actual
