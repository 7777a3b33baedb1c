"""Which stream each kernel of a mixer is launched on, and what waits for what: stand-ins for torch.cuda's streams write
it down, and the tensors only say that they are on a GPU."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hymba_ops import HybridMixer, HymbaConfig, HymbaForCausalLM, functional, streams

from fake_cuda import fake_cuda
from model_cases import BORROWER, PRODUCER, SMALL

TO_THE_SCAN = ["causal_conv1d", "linear", "rms_norm", "rms_norm", "rms_norm", "linear"]


class Streams:
    """In place of torch.cuda's streams: `log` holds (waiting, waited for) and (stream, op) in the order of launches."""

    def __init__(self, monkeypatch):
        self.log, self.made, self.at_wait = [], [], lambda: None
        self._names = (f"side{number}" for number in itertools.count(1))
        self._current = threading.local()
        self.main = self.new("main", priority=0)
        monkeypatch.setattr(streams, "_sides", streams._Sides())
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "Stream", self._make)

    @property
    def current(self):
        return getattr(self._current, "stream", self.main)

    def new(self, name, priority):
        return Stream(self, name, priority)

    def _make(self, device, priority):
        assert device == self.main.device
        self.made.append(self.new(next(self._names), priority))
        return self.made[-1]

    @contextlib.contextmanager
    def on(self, stream):
        before, self._current.stream = self.current, stream
        try:
            yield
        finally:
            self._current.stream = before

    def ops(self, name):
        return [what for stream, what in self.log if stream == name]


class Stream:
    device = torch.device("cuda", 0)

    def __init__(self, owner, name, priority):
        self.owner, self.name, self.priority = owner, name, priority

    def wait_stream(self, other):
        self.owner.at_wait()
        self.owner.log.append((self.name, other))


class Launches(TorchDispatchMode):
    """Writes down our ops and the stream that each is launched on."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "hymba_ops":
            self.recorder.log.append((self.recorder.current.name, func._opname))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recorder(monkeypatch):
    """Streams, in a place where all tensors are on the GPU and every launch of ours is written down."""
    recorder = Streams(monkeypatch)
    with fake_cuda(monkeypatch), Launches(recorder):
        yield recorder


def run_mixer(layer=PRODUCER):
    """Output, keys and values, states."""
    config = HymbaConfig(**SMALL)
    kv = None
    if layer == BORROWER:
        kv = tuple(torch.empty(2, 9, 2, dim) for dim in (config.head_dim, config.value_head_dim))
    return HybridMixer(config, layer).requires_grad_(False)(torch.empty(2, 9, SMALL["hidden_size"]), kv=kv)


@pytest.mark.parametrize("layer", [PRODUCER, BORROWER])
def test_branches_run_side_by_side(recorder, layer):
    run_mixer(layer)
    main, (side,) = recorder.main, recorder.made
    assert side.priority < main.priority
    rotary = ["rotary"] * (1 if layer == BORROWER else 2)
    assert recorder.log == [
        *(("main", op) for op in ["linear", *TO_THE_SCAN, *rotary]),
        ("side1", main),
        ("main", "selective_scan"),
        ("side1", "attention"),
        ("main", side),
        ("main", "norm_average_project"),
    ]


def test_one_side_stream_for_all_layers(recorder):
    HymbaForCausalLM(HymbaConfig(**SMALL))(torch.zeros(1, 9, dtype=torch.int64))
    waits = [(waiting, other.name) for waiting, other in recorder.log if isinstance(other, Stream)]
    assert waits == [("side1", "main"), ("main", "side1")] * SMALL["num_hidden_layers"]


@pytest.mark.parametrize("op", ["selective_scan", "attention"])
def test_a_branch_that_raises_still_joins(recorder, monkeypatch, op):
    def refuse(*args, **kwargs):
        raise ValueError("refused")

    monkeypatch.setattr(functional, op, refuse)
    with pytest.raises(ValueError, match="refused"):
        run_mixer()
    assert recorder.log[-1] == ("main", recorder.made[0])
    assert recorder.current is recorder.main


def test_what_is_held_until_the_join(recorder, monkeypatch):
    """All that attention reads, on the side stream. Of what only the scan reads nothing."""
    alive, read = [], {}

    def keep(name, names):
        op = getattr(functional, name)

        def call(*args, **kwargs):
            read.update({key: weakref.ref(x.untyped_storage()) for key, x in zip(names, args, strict=False)})
            return op(*args, **kwargs)

        monkeypatch.setattr(functional, name, call)

    keep("attention", ("q", "k", "v"))
    keep("selective_scan", ("u", "dt"))
    recorder.at_wait = lambda: alive.append({key for key, storage in read.items() if storage() is not None})
    run_mixer()
    assert alive == [set(), {"q", "k", "v"}]


def test_the_current_stream_may_be_any(recorder):
    """Each has a side stream of its own, and the next call there takes it again."""
    foreign = recorder.new("foreign", priority=-1)
    run_mixer()
    with recorder.on(foreign):
        run_mixer()
    run_mixer()
    waits = [(waiting, other.name) for waiting, other in recorder.log if isinstance(other, Stream)]
    assert waits == [
        *[("side1", "main"), ("main", "side1")],
        *[("side2", "foreign"), ("foreign", "side2")],
        *[("side1", "main"), ("main", "side1")],
    ]
    assert recorder.ops("foreign")[-1] == "norm_average_project"


def test_each_thread_has_side_streams_of_its_own(recorder):
    def launch():
        with torch.no_grad():
            streams.side_by_side(recorder.main.device, lambda: None, lambda: None)

    launch()
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert len(recorder.made) == 2


def no_fork(case, monkeypatch):
    if case == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if case == "fake":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    return torch.enable_grad() if case == "gradients" else contextlib.nullcontext()


@pytest.mark.parametrize("case", ["gradients", "compiling", "fake"])
def test_in_order_where_it_may_not_fork(recorder, monkeypatch, case):
    with no_fork(case, monkeypatch):
        run_mixer()
    assert recorder.made == []
    after = ["rotary", "rotary", "selective_scan", "attention", "norm_average_project"]
    assert recorder.log == [("main", op) for op in ["linear", *TO_THE_SCAN, *after]]


def test_in_order_on_a_cpu(recorder):
    order = []
    with torch.no_grad():
        streams.side_by_side(torch.device("cpu"), lambda: order.append("here"), lambda: order.append("beside"))
    assert order == ["here", "beside"] and recorder.log == []
