"""tools/gpu_check.sh and gpu_measure.sh on a machine of stand-ins: an interpreter that does as told, in a copy of the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ["memcheck", "racecheck", "synccheck"]
LAYERS = [f"layer_b{batch}_{tokens}" for batch, tokens in ((8, 8192), (1, 2048), (1, 32768), (8, 2048), (8, 32768))]
MEASURED = ["machine", "kernels", "decode", "layer_b1_8192", "peers", *LAYERS, "ops", "compiled"]

# Writes down its arguments. pip "installs" an empty shared object; then FAKE_<word> says how a call with that word ends.
PYTHON = """#!/bin/bash
echo "$HYMBA_OPS_TEST_DEVICE: $*" >> "$CALLS"
[[ "$*" == *find_tool* ]] && { [ -n "$FAKE_sanitizer" ] && echo "$FAKE_sanitizer"; exit $?; }
target=$(echo "$*" | sed -n 's/.*--target \\([^ ]*\\).*/\\1/p')
[ -z "$target" ] || { mkdir -p "$target/hymba_ops"; echo fresh > "$target/hymba_ops/_C.abi3.so"; }
for word in available xdist tests.xml capture_primitives machine_times kernel_times decode_throughput sweep; do
  how=FAKE_${word/./_}
  [[ "$*" == *$word* ]] && [ -n "${!how}" ] && eval "${!how}"
done
echo "all is well"
"""
SANITIZER = '#!/bin/bash\necho "sanitizer: $*" >> "$CALLS"; echo "ERROR SUMMARY: 0 errors"\n'


@pytest.fixture
def machine(tmp_path):
    """run(script, **environment) -> exit status, {step: (status, detail)}, calls of the interpreter and the sanitizer."""
    for folder in ("tools", "csrc/cuda", "hymba_ops", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for script in ("gpu_check.sh", "gpu_measure.sh", "gpu_steps.sh"):
        shutil.copy2(ROOT / "tools" / script, tmp_path / "tools")
    for name in ("rotary.cu", "scan.cu", "scan_sm90.cu", "rows.cuh"):
        (tmp_path / "csrc/cuda" / name).touch()
    tools = {
        "python": PYTHON,
        "sanitizer": SANITIZER,
        "nvcc": "#!/bin/bash\n",
        "nvidia-smi": "#!/bin/bash\necho NVIDIA H100 80GB HBM3, 580.1, 1980 MHz, 700 W\n",
    }
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script="gpu_check.sh", **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        defaults = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": f"{tmp_path}/bin/python", "CALLS": str(calls),
            "WHEEL": "hymba_ops.whl", "FAKE_sanitizer": f"{tmp_path}/bin/sanitizer",
        }  # fmt: skip
        done = subprocess.run(
            [tmp_path / "tools" / script, tmp_path / "out"],
            env=defaults | environment, cwd="/", capture_output=True, text=True,
        )  # fmt: skip
        steps = [json.loads(line) for line in (tmp_path / "out/steps.jsonl").read_text().splitlines()]
        summary = (tmp_path / "out/summary.txt").read_text()
        assert done.stdout.startswith(summary) and len(summary.splitlines()) == len(steps)
        assert done.stderr == ""
        return done.returncode, {s["step"]: (s["status"], s["detail"]) for s in steps}, calls.read_text().splitlines()

    run.folder = tmp_path
    return run


def test_every_test_passes(machine):
    status, steps, calls = machine()
    assert status == 0
    assert list(steps) == ["install", "load", "primitives", "tests", "layer", *SANITIZERS]
    assert {outcome for outcome, _ in steps.values()} == {"passed"}
    assert steps["tests"] == ("passed", "all is well") and steps["racecheck"] == ("passed", "ERROR SUMMARY: 0 errors")
    assert (machine.folder / "hymba_ops/_C.abi3.so").read_text() == "fresh\n"
    assert (machine.folder / "out/gpu.txt").read_text() == "NVIDIA H100 80GB HBM3, 580.1, 1980 MHz, 700 W\n"
    files = " tests/test_rotary.py tests/test_scan.py tests/test_value_checks.py"
    (tests,) = (call for call in calls if "tests.xml" in call)
    assert tests.startswith("cuda: ") and tests.endswith(files) and "test_rows" not in tests
    (layer,) = (call for call in calls if call.endswith("tests/test_cuda_layer.py tests/test_decoding.py"))
    assert layer.startswith("cuda: ")
    assert " -n 8 " in tests and " -n 8 " in layer
    sanitized = [call for call in calls if call.startswith("sanitizer: ")]
    assert [call.split()[2] for call in sanitized] == SANITIZERS
    assert all(call.endswith(files) and " -n 8 " not in call for call in sanitized)


def test_one_process_where_the_plugins_are_missing(machine):
    status, steps, calls = machine(FAKE_xdist="exit 1")
    assert status == 0 and steps["tests"][0] == "passed"
    assert not [call for call in calls if " -n 8 " in call]


def test_everything_is_measured(machine):
    status, steps, calls = machine("gpu_measure.sh")
    assert status == 0
    assert list(steps) == ["install", *MEASURED]
    assert {outcome for outcome, _ in steps.values()} == {"passed"}
    written = [word for call in calls for word in call.split() if word.endswith(".json")]
    assert written == [f"{machine.folder}/out/h100_{name}.json" for name in MEASURED]


def test_every_cuda_source_has_its_tests():
    for source in (ROOT / "csrc/cuda").glob("*.cu"):
        assert (ROOT / f"tests/test_{source.stem.removesuffix('_sm90')}.py").exists(), source.name


def test_without_a_wheel_the_clone_is_built(machine):
    status, steps, _ = machine(WHEEL="")
    assert status == 0 and list(steps)[0] == "build"


def test_a_failed_step_is_named_and_the_rest_goes_on(machine):
    status, steps, _ = machine(FAKE_tests_xml=r"""printf '3 failed, "quoted" \\ and\ttab\n'; exit 1""")
    assert status == 1
    assert steps["tests"] == ("failed", "status 1, tests.log: 3 failed, quoted  and tab")
    assert {outcome for step, (outcome, _) in steps.items() if step != "tests"} == {"passed"}


@pytest.mark.parametrize("word,step", [
        ("machine_times", "machine"), ("kernel_times", "kernels"), ("decode_throughput", "decode"), ("sweep", "ops"),
    ],
)  # fmt: skip
def test_a_measurement_says_that_it_cannot_run(machine, word, step):
    status, steps, _ = machine("gpu_measure.sh", **{f"FAKE_{word}": "echo no kernel yet; exit 2"})
    assert status == 0
    assert steps[step] == ("could not run", "no kernel yet")
    status, steps, _ = machine("gpu_measure.sh", **{f"FAKE_{word}": "exit 1"})
    assert status == 1 and steps[step][0] == "failed"


def test_benchmarks_are_asked_for_what_they_know(machine, monkeypatch):
    """Their own command lines take what the script passes."""
    from bench import decode_throughput, kernel_times, layer_throughput, sweep

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    programs = {
        "bench/sweep.py": sweep, "bench/layer_throughput.py": layer_throughput,
        "bench/decode_throughput.py": decode_throughput, "bench/kernel_times.py": kernel_times,
    }  # fmt: skip
    _, _, calls = machine("gpu_measure.sh")
    asked = [call.split()[1:] for call in calls if "bench/" in call]
    assert {program for program, *_ in asked} == set(programs) and len(asked) == len(MEASURED) - 1
    for program, *arguments in asked:
        assert programs[program].parse_arguments(arguments) is not None


def test_status_2_of_another_step_is_a_failure(machine):
    status, steps, _ = machine(FAKE_tests_xml="exit 2")
    assert status == 1 and steps["tests"][0] == "failed"


@pytest.mark.parametrize("script", ["gpu_check.sh", "gpu_measure.sh"])
def test_no_gpu(machine, script):
    status, steps, _ = machine(script, FAKE_available="exit 1")
    assert status == 1 and list(steps) == ["gpu"] and steps["gpu"][0] == "could not run"


def test_no_sanitizer(machine):
    status, steps, _ = machine(FAKE_sanitizer="")
    assert status == 0 and steps["sanitizers"][0] == "could not run" and not set(SANITIZERS) & set(steps)


def test_a_step_is_stopped_and_what_has_no_time_left_is_named(machine):
    status, steps, _ = machine(FAKE_capture_primitives="echo at it; sleep 60", SECONDS_ALLOWED="3")
    assert status == 1
    assert steps["load"][0] == "passed"
    outcome, detail = steps["primitives"]
    assert outcome == "failed" and detail.startswith("status 124, primitives.log: stopped after ")
    assert {steps[step] for step in ("tests", "layer", *SANITIZERS)} == {("could not run", "the 3 s are used up")}


BROKEN = """
import sys
sys.path.insert(0, {tests!r})
import conftest, torch


def fault():
    raise RuntimeError("an illegal memory access")


torch.cuda.synchronize = fault
conftest.stop_if_broken("test_of_a_kernel", {worker!r})
"""


def test_a_process_without_a_gpu_ends_with_the_test_that_broke_it():
    """In a process of pytest-xdist at once, so that it is given a new one; else the run ends."""
    code = BROKEN.format(tests=str(ROOT / "tests"), worker="gw0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr == (
        "test_of_a_kernel left the GPU unusable for this process: an illegal memory access\n"
    )
    code = BROKEN.format(tests=str(ROOT / "tests"), worker=None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Exit: test_of_a_kernel left the GPU unusable" in done.stderr


def test_at_most_so_many_tests_of_each_file():
    files = ["tests/test_rms_norm.py", "tests/test_rotary.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "not emulated"]
    done = subprocess.run([*command, "--of-each-file", "5", *files], cwd=ROOT, capture_output=True, text=True)
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if line.startswith("tests/"))
    assert set(counts) == set(files) and all(3 <= int(count) <= 5 for count in counts.values()), done.stdout
