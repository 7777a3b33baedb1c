"""Random calls of every op against python_reference, and random wrong calls (hypothesis; fuzz_cases.py has the cases).

By default the same few hundred cases each time, in a minute or two. HYMBA_FUZZ=long draws new ones, a hundred times as
many, and prints how to reproduce a failure:

    HYMBA_FUZZ=long python -m pytest -s tests/test_fuzz.py -k attention
"""

from __future__ import annotations

import inspect
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import python_reference as reference
from hymba_ops import functional as F

from fuzz_cases import LAYOUTS, MAKE, STRATEGIES
from kernel_cases import own_products
from tolerance import check_against_reference

LONG = os.environ.get("HYMBA_FUZZ") == "long"
FUZZ = settings(
    derandomize=not LONG,
    print_blob=LONG,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
OPS = sorted(STRATEGIES)

# What an op returns under its arguments of fuzz_cases.py; those of UPDATES return what they changed too.
OUTPUTS = {
    "attention": ("out", "lse"),
    "causal_conv1d": ("out", "final_state"),
    "selective_scan": ("out", "final_state"),
    "decode_branches": ("attn", "ssm"),
}
# What an op changes in place.
UPDATES = {
    "causal_conv1d_update": ("state",),
    "decode_attention": ("k_cache", "v_cache"),
    "decode_branches": ("k_cache", "v_cache", "conv_state", "ssm_state"),
    "mamba_update": ("conv_state", "ssm_state"),
    "selective_state_update": ("state",),
}
# Where the product is the library's, a 16-bit result is rounded before bias, gate and residual come to it, as the plain
# form's is. Of one value the plain form may err by nothing, by luck: fewer values than these are judged together with
# those of other seeds. (Of 256, one in 300 cases of gated_linear with one or a few inputs was unlucky: one large value
# decided, in which the rounding of the gate's SiLU made up for those of gate and product.)
PRODUCTS = ("gated_linear", "linear", "norm_average_project")
FEWEST_VALUES = 4096


def fuzz(name, **options):
    """FUZZ with as many examples as take a few seconds; attention's plain form is the slowest."""
    examples = 100 if name in ("attention", "decode_attention") else 400
    return settings(FUZZ, **{"max_examples": 100 * examples if LONG else examples, **options})


def test_every_op_is_fuzzed():
    assert F.__all__ == OPS


def functional(op, names, layout):
    """An op that changes the arguments `names` as one that leaves them alone and returns them changed."""

    def call(**arguments):
        states = {n: arguments[n].clone() for n in names}
        states = {n: layout(state) if state.numel() > 0 else state for n, state in states.items()}
        results = op(**{**arguments, **states})
        return *(results if isinstance(results, tuple) else (results,)), *states.values()

    return call


def together(op):
    """The op on several draws' arguments: all results, one after the other."""
    return lambda draws: torch.cat([op(**arguments).flatten() for arguments in draws])


def check(name, case, reference_op):
    """One case: the op against reference_op by the project's tolerance."""
    values = math.prod((*case["rows"], case["O"])) if name in PRODUCTS else 0
    if 0 < values < FEWEST_VALUES and case["dtype"].itemsize == 2 and not own_products(case["dtype"]):
        draws = [MAKE[name](case | {"seed": case["seed"] + i}) for i in range(-(-FEWEST_VALUES // values))]
        check_against_reference(together(getattr(F, name)), together(reference_op), draws, dtype=case["dtype"])
        return
    op, arguments = getattr(F, name), MAKE[name](case)
    if name in UPDATES:
        layout = LAYOUTS[case["layouts"][0]]
        op, reference_op = (functional(f, UPDATES[name], layout) for f in (op, reference_op))
    names = (*OUTPUTS.get(name, ("out",)), *UPDATES.get(name, ()))
    check_against_reference(op, reference_op, dtype=case["dtype"], names=names, **arguments)


@pytest.mark.parametrize("name", OPS)
def test_matches_reference(name):
    @fuzz(name)
    @given(STRATEGIES[name])
    def run(case):
        check(name, case, getattr(reference, name))

    run()


# ---- The fuzz itself: it finds a reference that is wrong in one detail ----


def with_changed(name, **changes):
    """The reference with some arguments replaced by what a function makes of them."""

    def wrong(**arguments):
        changed = {key: change(arguments[key]) for key, change in changes.items()}
        return getattr(reference, name)(**{**arguments, **changed})

    return wrong


def forgets_one_state(*, state, **arguments):
    out = reference.selective_state_update(state=state, **arguments)
    state[-1:] *= 0.99
    return out


WRONG = {
    "attention": with_changed("attention", window=lambda w: None if w is None else w + 1),
    "decode_attention": with_changed("decode_attention", lengths=lambda lengths: lengths + 1),
    "rotary": with_changed("rotary", positions=lambda p: p + 1),
    "causal_conv1d": with_changed("causal_conv1d", weight=lambda w: w.flip(1)),
    "causal_conv1d_update": with_changed("causal_conv1d_update", weight=lambda w: w.flip(1)),
    "selective_scan": with_changed("selective_scan", dt_bias=lambda b: None),
    "selective_state_update": forgets_one_state,
    "mamba_update": with_changed("mamba_update", dt_bias=lambda b: b + 0.2),
    "decode_branches": with_changed("decode_branches", D=lambda d: d * 1.1),
    "gated_mlp": with_changed("gated_mlp", eps=lambda eps: eps + 0.1),
    "norm_project": with_changed("norm_project", eps=lambda eps: eps + 0.1),
    "rms_norm": with_changed("rms_norm", eps=lambda eps: eps * 1.5),
    "norm_average": with_changed("norm_average", eps=lambda eps: eps * 1.5),
    "norm_average_project": with_changed("norm_average_project", residual=lambda r: None),
    "linear": with_changed("linear", bias=lambda b: None if b is None else b.flip(0)),
    "gated_linear": with_changed("gated_linear", gate_weight=lambda w: w * 1.01),
}


@pytest.mark.parametrize("name", OPS)
def test_finds_a_wrong_reference(name):
    @fuzz(name, phases=[Phase.generate], max_examples=250)
    @given(STRATEGIES[name])
    def run(case):
        check(name, case, WRONG[name])

    with pytest.raises(AssertionError, match="error .* against float64, allowed"):
        run()


# ---- Wrong calls: a clear error or a result, never anything else ----

WRONG_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.just([1, 2]),
)  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.complex64]
TENSOR_CHANGES = {
    "other dtype": lambda t, n: t.to(DTYPES[n % len(DTYPES)]),
    "one dimension more": lambda t, n: t.unsqueeze(n % (t.dim() + 1)),
    "one dimension less": lambda t, n: t.sum(n % t.dim()).to(t.dtype) if t.dim() else t,
    "a size doubled": lambda t, n: torch.cat([t, t], n % t.dim()) if t.dim() else t,
    "a size 0": lambda t, n: t.narrow(n % t.dim(), 0, 0) if t.dim() else t,
    "last dimension not contiguous": lambda t, n: torch.stack([t, t], -1)[..., 0],
    "no memory of its own": lambda t, n: t[:1].expand(*t.shape) if t.dim() and t.shape[0] else t,
    "no memory": lambda t, n: t.to("meta"),
    "wants gradients": lambda t, n: t.detach().requires_grad_() if t.is_floating_point() else t,
    "transposed": lambda t, n: t.transpose(0, -1) if t.dim() else t,
    "other values": lambda t, n: random_integers(t, n) if t.dtype == torch.int32 else t * float("nan"),
}


def random_integers(t, seed):
    generator, limit = torch.Generator().manual_seed(seed), (3, 100, 2**31)[seed % 3]
    return torch.randint(-limit, limit, t.shape, generator=generator).to(torch.int32)


@st.composite
def wrong_calls(draw, name):
    """A case, and for one or two of its arguments (how a tensor changes, a number for it) or another value."""
    case = draw(STRATEGIES[name])
    changes = {}
    names = sorted(inspect.signature(getattr(F, name)).parameters)
    for argument in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        another_value = draw(st.integers(0, 9)) == 9
        tensor_change = st.tuples(st.sampled_from(sorted(TENSOR_CHANGES)), st.integers(0, 99))
        changes[argument] = draw(WRONG_VALUES if another_value else tensor_change)
    return case, changes


def changed_arguments(name, case, changes):
    arguments = MAKE[name](case)
    for argument, change in changes.items():
        if not isinstance(change, tuple):
            arguments[argument] = change
        elif isinstance(arguments.get(argument), torch.Tensor):
            arguments[argument] = TENSOR_CHANGES[change[0]](arguments[argument], change[1])
    return arguments


@pytest.mark.parametrize("name", OPS)
def test_wrong_calls(name):
    refused = []

    @fuzz(name)
    @given(wrong_calls(name))
    def run(call):
        arguments = changed_arguments(name, *call)
        try:
            getattr(F, name)(**arguments)
        except (ValueError, TypeError, NotImplementedError) as error:
            refused.append(str(error))

    run()
    assert len(set(refused)) >= 10 and all(refused), "too few different refusals, or one without a text"
