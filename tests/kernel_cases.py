"""What the kernel tests share: dtypes, seeded inputs, and memory layouts that kernels must read in place."""

from __future__ import annotations

import functools
import os

import pytest
import torch
import torch._dynamo.testing

from hymba_ops import functional as F

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.float64, id="fp64"),
]
# The device that the kernel tests run on, and that tests/conftest.py makes the default; tools/gpu_check.sh sets "cuda".
DEVICE = os.environ.get("HYMBA_OPS_TEST_DEVICE", "cpu")


def randn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Seeded normal numbers, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(hash((seed, *shape)) % 2**31)
    return (torch.randn(shape, generator=generator, device="cpu") * scale).to(dtype).to(DEVICE)


def dense(x):
    return x


def strided(x):
    """x as a slice of a wider tensor: the last dimension stays contiguous, the others do not."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 24), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., 8 : 8 + x.shape[-1]] = x
    return wide[..., 8 : 8 + x.shape[-1]]


def unaligned(x):
    """x in rows of an odd length whose base is not 16-byte aligned."""
    odd = x.shape[-1] + 1 + x.shape[-1] % 2
    wide = torch.full((x[..., 0].numel() * odd + 1,), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[1:].view(*x.shape[:-1], odd)[..., : x.shape[-1]]
    view.copy_(x)
    return view


def odd_rows(x):
    """x in rows of an odd length: the base is aligned, most rows are not."""
    odd = x.shape[-1] + 1 + x.shape[-1] % 2
    return torch.full((*x.shape[:-1], odd), float("nan"), dtype=x.dtype, device=x.device)[..., : x.shape[-1]].copy_(x)


LAYOUTS = [pytest.param(f, id=f.__name__) for f in (dense, strided, unaligned)]


def cu_seqlens(*lengths):
    """int32 boundaries of packed sequences of these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@functools.cache
def own_products(dtype):
    """Whether linear uses the kernels' own product on this CPU, whose sums have other roundings than the library's."""
    x, weight = randn(256, 999, dtype=dtype), randn(256, 999, dtype=dtype, seed=1)
    return not torch.equal(F.linear(x, weight), torch.mm(x, weight.T))


def bad_input(change, error, message):
    """A parametrised case: the arguments to replace, the exception and the text that names tensor, expected and got."""
    name = message.replace("\\", "").split(" got")[0].strip(" .*,")
    on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="the arguments are CPU tensors")
    return pytest.param(change, error, message, id="-".join(name.split())[:60], marks=on_cpu)


def skip_if_the_cpus_library_decides(ops):
    """Its products are rounded before the gate, by which a few values may be further off than the plain form's are by
    luck (tests/test_fuzz.py)."""
    if getattr(ops, "mode", None) is None and DEVICE == "cpu" and not own_products(torch.bfloat16):
        pytest.skip("the CPU's library product, judged on more values in other tests")


def skip_unless_values_go_unread(ops):
    """For tests of lengths, slots and the like that cannot be: the CPU's ops refuse them, and where rows come to share
    memory through them, two writes of it are no fault of the kernel."""
    mode = getattr(ops, "mode", None)  # of emulated ones
    if mode is None and DEVICE == "cpu":
        pytest.skip("refused: other tests show it")
    if mode is not None and mode.flavour == "races":
        pytest.skip("rows that share memory race")


def assert_compiles_once(function, make_args, lengths):
    """torch.compile(fullgraph, dynamic) of `function` serves every length with one graph and changes no bit."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    # Within its first call torch may start over (a float argument turned constant); later calls must reuse the graph.
    backend_calls = []
    for length in lengths:
        for actual, expected in zip(compiled(*make_args(length)), function(*make_args(length)), strict=True):
            assert torch.equal(actual, expected)
        backend_calls.append(counter.frame_count)
    assert backend_calls[0] >= 1 and len(set(backend_calls)) == 1, backend_calls


def assert_threads_do_not_matter(function):
    """function() -> tensor gives the same bits on 1, 2 and 3 threads."""
    if DEVICE != "cpu":
        pytest.skip("the threads are the CPU's")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
