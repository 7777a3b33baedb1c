#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU and no network: installs hymba_ops, runs what exists for CUDA, and leaves a log
# and a summary that says which step passed, failed or could not run.
#
#   tools/gpu_check.sh [output folder, default build/gpu_check]
#
# PYTHON: an interpreter with torch >= 2.11 (CUDA), numpy and pytest. WHEEL: a wheel to install; without it the clone is built
# (needs nvcc, ninja, setuptools). Exit status: 1 when a step failed, 0 otherwise.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu_check}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
: > "$out/log.txt"
: > "$out/steps.jsonl"
failed=0

# Test files whose ops have CUDA kernels; grows with them.
cuda_tests="tests/test_linear.py tests/test_norm_average.py tests/test_rms_norm.py tests/test_rotary.py"

record() {  # step, status, seconds, detail
  printf '{"step": "%s", "status": "%s", "seconds": %s, "detail": "%s"}\n' "$1" "$2" "$3" "$4" >> "$out/steps.jsonl"
  printf '%-12s %-14s %4s s  %s\n' "$2" "$1" "$3" "$4" | tee -a "$out/log.txt"
}

run_step() {  # step, seconds allowed, command...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s: %s\n' "$name" "$*" >> "$out/log.txt"
  timeout "$limit" "$@" >> "$out/log.txt" 2>&1
  status=$?
  if [ $status -eq 0 ]; then
    record "$name" passed $((SECONDS - start)) ""
  else
    failed=1
    record "$name" failed $((SECONDS - start)) "exit status $status; see log.txt"
  fi
  return $status
}

cannot_run() { record "$1" "could not run" 0 "$2"; }

if ! "$python" -c 'import torch; assert torch.cuda.is_available()' >> "$out/log.txt" 2>&1; then
  cannot_run gpu "$python has no torch that sees a GPU"
  exit 1
fi
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader > "$out/gpu.txt" 2>&1

if [ -n "${WHEEL:-}" ]; then
  run_step install 120 "$python" -m pip install --no-index --no-deps --force-reinstall --target "$out/site" "$WHEEL" || exit 1
else
  run_step build 480 "$python" -m pip install --no-build-isolation --no-deps --force-reinstall --target "$out/site" . || exit 1
fi
# The suite and the benchmark run on the clone's sources with the installed shared object beside them, as after `pip install .`
cp "$out/site/hymba_ops/_C.abi3.so" hymba_ops/
export HYMBA_OPS_TEST_DEVICE=cuda

run_step load 60 env -C / PYTHONPATH="$out/site" "$python" -c \
  'import json, hymba_ops; print(json.dumps(hymba_ops.build_info(), indent=1))'
run_step tests 240 "$python" -m pytest -p no:cacheprovider -m "not emulated" --junitxml="$out/tests.xml" $cuda_tests
if command -v nvcc > /dev/null; then
  run_step primitives 120 "$python" tools/capture_primitives.py "$out/primitives.npz"
else
  cannot_run primitives "nvcc is not on PATH"
fi
if command -v compute-sanitizer > /dev/null; then
  for check in memcheck racecheck synccheck; do
    run_step "$check" 90 compute-sanitizer --tool "$check" --error-exitcode 9 "$python" -m pytest -p no:cacheprovider \
      $cuda_tests -m "not emulated" -k "matches_reference and bf16"
  done
else
  cannot_run sanitizers "compute-sanitizer is not on PATH"
fi
# Status 2 is the benchmark's own "cannot run here", with the reason on its last line.
start=$SECONDS
timeout 240 "$python" bench/layer_throughput.py --device cuda --dtype bfloat16 --json "$out/layer.json" > "$out/bench.txt" 2>&1
status=$?
cat "$out/bench.txt" >> "$out/log.txt"
case $status in
  0) record benchmark passed $((SECONDS - start)) "" ;;
  2) cannot_run benchmark "$(tail -n 1 "$out/bench.txt" | tr -d '"\\')" ;;
  *) failed=1; record benchmark failed $((SECONDS - start)) "exit status $status; see log.txt" ;;
esac
echo "log, steps and results: $out"
exit $failed
