"""tools/gpu_check.sh on a machine of stand-ins: an interpreter that does as told, in a copy of the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ["bench_ops", "bench_layer"]
SANITIZERS = ["memcheck", "racecheck", "synccheck"]
PEERS = ["bench_peers", "bench_published"]

# Writes down its arguments. pip "installs" an empty shared object; then FAKE_<word> says how a call with that word ends.
PYTHON = """#!/bin/bash
echo "$HYMBA_OPS_TEST_DEVICE: $*" >> "$CALLS"
[[ "$*" == *find_tool* ]] && { [ -n "$FAKE_sanitizer" ] && echo "$FAKE_sanitizer"; exit $?; }
target=$(echo "$*" | sed -n 's/.*--target \\([^ ]*\\).*/\\1/p')
[ -z "$target" ] || { mkdir -p "$target/hymba_ops"; echo fresh > "$target/hymba_ops/_C.abi3.so"; }
for word in available junitxml capture_primitives sweep layer_throughput; do
  how=FAKE_$word
  [[ "$*" == *$word* ]] && [ -n "${!how}" ] && eval "${!how}"
done
echo "all is well"
"""
SANITIZER = '#!/bin/bash\necho "sanitizer: $*" >> "$CALLS"; echo "ERROR SUMMARY: 0 errors"\n'


@pytest.fixture
def machine(tmp_path):
    """run(**environment) -> exit status, {step: (status, detail)}, calls of the interpreter and the sanitizer."""
    for folder in ("tools", "csrc/cuda", "hymba_ops", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy2(ROOT / "tools/gpu_check.sh", tmp_path / "tools")
    for name in ("rotary.cu", "scan.cu", "scan_sm90.cu", "rows.cuh"):
        (tmp_path / "csrc/cuda" / name).touch()
    tools = {
        "python": PYTHON,
        "sanitizer": SANITIZER,
        "nvcc": "#!/bin/bash\n",
        "nvidia-smi": "#!/bin/bash\necho a GPU\n",
    }
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(**environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        defaults = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": f"{tmp_path}/bin/python", "CALLS": str(calls),
            "WHEEL": "hymba_ops.whl", "FAKE_sanitizer": f"{tmp_path}/bin/sanitizer",
        }  # fmt: skip
        done = subprocess.run(
            [tmp_path / "tools/gpu_check.sh", tmp_path / "out"],
            env=defaults | environment, cwd="/", capture_output=True, text=True,
        )  # fmt: skip
        steps = [json.loads(line) for line in (tmp_path / "out/steps.jsonl").read_text().splitlines()]
        summary = (tmp_path / "out/summary.txt").read_text()
        assert done.stdout.startswith(summary) and len(summary.splitlines()) == len(steps)
        assert done.stderr == ""
        return done.returncode, {s["step"]: (s["status"], s["detail"]) for s in steps}, calls.read_text().splitlines()

    run.folder = tmp_path
    return run


def test_every_step_passes(machine):
    status, steps, calls = machine()
    assert status == 0
    assert list(steps) == ["install", "load", "tests", "layer", "primitives", *BENCH, *SANITIZERS, *PEERS]
    assert {outcome for outcome, _ in steps.values()} == {"passed"}
    assert steps["tests"] == ("passed", "all is well") and steps["racecheck"] == ("passed", "ERROR SUMMARY: 0 errors")
    assert (machine.folder / "hymba_ops/_C.abi3.so").read_text() == "fresh\n"
    assert (machine.folder / "out/gpu.txt").read_text() == "a GPU\n"
    files = " tests/test_rotary.py tests/test_scan.py tests/test_value_checks.py"
    (tests,) = (call for call in calls if "junitxml" in call)
    assert tests.startswith("cuda: ") and tests.endswith(files) and "test_rows" not in tests
    (layer,) = (call for call in calls if call.endswith("tests/test_cuda_layer.py tests/test_decoding.py"))
    assert layer.startswith("cuda: ")
    sanitized = [call for call in calls if call.startswith("sanitizer: ")]
    assert [call.split()[2] for call in sanitized] == SANITIZERS
    assert all(call.endswith(files) for call in sanitized)


def test_every_cuda_source_has_its_tests():
    for source in (ROOT / "csrc/cuda").glob("*.cu"):
        assert (ROOT / f"tests/test_{source.stem.removesuffix('_sm90')}.py").exists(), source.name


def test_without_a_wheel_the_clone_is_built(machine):
    status, steps, _ = machine(WHEEL="")
    assert status == 0 and list(steps)[0] == "build"


def test_a_failed_step_is_named_and_the_rest_goes_on(machine):
    status, steps, _ = machine(FAKE_junitxml=r"""printf '3 failed, "quoted" \\ and\ttab\n'; exit 1""")
    assert status == 1
    assert steps["tests"] == ("failed", "status 1, tests.log: 3 failed, quoted  and tab")
    assert {outcome for step, (outcome, _) in steps.items() if step != "tests"} == {"passed"}


@pytest.mark.parametrize("word,step", [
        ("sweep", "bench_ops"), ("layer_throughput", "bench_layer"), ("sweep", "bench_peers"),
        ("layer_throughput", "bench_published"),
    ],
)  # fmt: skip
def test_a_benchmark_says_that_it_cannot_run(machine, word, step):
    status, steps, _ = machine(**{f"FAKE_{word}": "echo no kernel yet; exit 2"})
    assert status == 0
    assert steps[step] == ("could not run", "no kernel yet")
    status, steps, _ = machine(**{f"FAKE_{word}": "exit 1"})
    assert status == 1 and steps[step][0] == "failed"


def test_benchmarks_are_asked_for_what_they_know(machine, monkeypatch):
    """Their own command lines take what the script passes."""
    from bench import layer_throughput, sweep

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    _, _, calls = machine()
    asked = [call.split()[1:] for call in calls if "bench/" in call]
    assert len(asked) == 4
    for program, *arguments in asked:
        parse = {"bench/sweep.py": sweep, "bench/layer_throughput.py": layer_throughput}[program].parse_arguments
        assert parse(arguments).device.type == "cuda"


def test_status_2_of_another_step_is_a_failure(machine):
    status, steps, _ = machine(FAKE_junitxml="exit 2")
    assert status == 1 and steps["tests"][0] == "failed"


def test_no_gpu(machine):
    status, steps, _ = machine(FAKE_available="exit 1")
    assert status == 1 and list(steps) == ["gpu"] and steps["gpu"][0] == "could not run"


def test_no_sanitizer(machine):
    status, steps, _ = machine(FAKE_sanitizer="")
    assert status == 0 and steps["sanitizers"][0] == "could not run" and not set(SANITIZERS) & set(steps)


def test_a_step_is_stopped_and_what_has_no_time_left_is_named(machine):
    status, steps, _ = machine(FAKE_capture_primitives="echo at it; sleep 60", SECONDS_ALLOWED="3")
    assert status == 1
    assert steps["tests"][0] == "passed"
    outcome, detail = steps["primitives"]
    assert outcome == "failed" and detail.startswith("status 124, primitives.log: stopped after ")
    assert {steps[step] for step in (*BENCH, *SANITIZERS, *PEERS)} == {("could not run", "the 3 s are used up")}


def test_at_most_so_many_tests_of_each_file():
    files = ["tests/test_rms_norm.py", "tests/test_rotary.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "not emulated"]
    done = subprocess.run([*command, "--of-each-file", "5", *files], cwd=ROOT, capture_output=True, text=True)
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if line.startswith("tests/"))
    assert set(counts) == set(files) and all(3 <= int(count) <= 5 for count in counts.values()), done.stdout
