#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU and no network: installs hymba_ops, runs what exists for CUDA, and leaves in a
# folder the log of each step, summary.txt and steps.jsonl, which say what passed, failed or could not run, and the results.
#
#   tools/gpu_check.sh [output folder, default build/gpu_check]
#
# PYTHON: an interpreter with torch >= 2.11 (CUDA), numpy, pytest and hypothesis. WHEEL: a wheel to install; without it the
# clone is built (needs nvcc, ninja, setuptools). SECONDS_ALLOWED: of the whole (default 480); each step has a limit of its
# own, and what comes after the end could not run. Exit status: 1 when a step failed or no GPU was there, 0 otherwise.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu_check}
python=${PYTHON:-python3}
allowed=${SECONDS_ALLOWED:-480}
mkdir -p "$out"
out=$(cd "$out" && pwd)
: > "$out/steps.jsonl"
: > "$out/summary.txt"
failed=0

# The test files of the ops that have CUDA kernels, and what belongs to none of them.
cuda_tests=(tests/test_value_checks.py tests/test_attention_sm90.py tests/test_decode_branches.py)
for source in csrc/cuda/*.cu; do
  op=$(basename "$source" .cu)
  cuda_tests+=("tests/test_${op%_sm90}.py")
done
# Modules and models on top of them.
layer_tests=(tests/test_modules.py tests/test_model.py tests/test_golden.py tests/test_cuda_layer.py
  tests/test_decoding.py)
mapfile -t cuda_tests < <(printf '%s\n' "${cuda_tests[@]}" | sort -u)

record() {  # step, status, seconds, detail
  local detail
  detail=$(printf '%s' "$4" | tr -d '"\134' | tr '\000-\037' ' ' | cut -c 1-200)
  printf '{"step": "%s", "status": "%s", "seconds": %s, "detail": "%s"}\n' "$1" "$2" "$3" "$detail" >> "$out/steps.jsonl"
  printf '%-14s %-14s %4s s  %s\n' "$2" "$1" "$3" "$detail" | tee -a "$out/summary.txt"
}

cannot_run() { record "$1" "could not run" 0 "$2"; }

# Status 2 is a benchmark's own "cannot run here", with the reason on its last line.
run_step() {  # step, seconds allowed, command...
  local name=$1 limit=$2 start=$SECONDS left=$((allowed - SECONDS)) status last
  shift 2
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -le 0 ]; then
    cannot_run "$name" "the $allowed s are used up"
    return 1
  fi
  printf '$ %s\n' "$*" > "$out/$name.log"
  timeout -k 5 "$limit" "$@" >> "$out/$name.log" 2>&1
  status=$?
  last=$(tail -n 1 "$out/$name.log")
  if [ $status -eq 0 ]; then
    record "$name" passed $((SECONDS - start)) "$last"
  elif [ $status -eq 2 ] && [[ $name == bench_* ]]; then
    cannot_run "$name" "$last"
  else
    failed=1
    [ $status -ne 124 ] || last="stopped after $limit s: $last"
    record "$name" failed $((SECONDS - start)) "status $status, $name.log: $last"
  fi
  return $status
}

if ! "$python" -c 'import torch; assert torch.cuda.is_available()' > "$out/gpu.log" 2>&1; then
  cannot_run gpu "$python has no torch that sees a GPU"
  exit 1
fi
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader > "$out/gpu.txt" 2>&1

site="$out/site"
rm -rf "$site"
if [ -n "${WHEEL:-}" ]; then
  run_step install 40 "$python" -m pip install --no-index --no-deps --target "$site" "$WHEEL" || exit 1
else
  run_step build 300 "$python" -m pip install --no-index --no-build-isolation --no-deps --target "$site" . || exit 1
fi
# Tests and benchmarks run on the clone's sources with the installed shared object beside them, as after `pip install .`
cp "$site/hymba_ops/_C.abi3.so" hymba_ops/ || exit 1
export HYMBA_OPS_TEST_DEVICE=cuda
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # torch's deterministic mode, in which the tests run, asks for it

run_step load 40 env -C / PYTHONPATH="$site" "$python" -c 'import hymba_ops; print(hymba_ops.build_info())' || exit 1
run_step tests 120 "$python" -m pytest -p no:cacheprovider -m "not emulated" --junitxml="$out/tests.xml" "${cuda_tests[@]}"
run_step layer 60 "$python" -m pytest -p no:cacheprovider -m "not emulated" "${layer_tests[@]}"
if command -v nvcc > /dev/null; then
  run_step primitives 60 "$python" tools/capture_primitives.py "$out/primitives.npz"
else
  cannot_run primitives "nvcc is not on PATH"
fi
run_step bench_ops 70 "$python" bench/sweep.py --device cuda --presets 1.5b --dtypes bfloat16 --batches 1 \
  --seq-lens 1,2048,8320 --peers none --budget 50 --slowest 2 --json "$out/ops.json"
run_step bench_layer 90 "$python" bench/layer_throughput.py --device cuda --dtype bfloat16 --parts \
  --implementations hymba_ops,plain,naive --peers flex,causal_conv1d,mamba_ssm --json "$out/layer.json"
# Of our own kernels only: instrumenting torch's would take most of the time.
find_sanitizer='from tools.sass_model.disassembly import find_tool; print(find_tool("compute-sanitizer"))'
if sanitizer=$("$python" -c "$find_sanitizer" 2> /dev/null); then
  for check in memcheck racecheck synccheck; do
    run_step "$check" 50 "$sanitizer" --tool "$check" --kernel-name kns=hymba --error-exitcode 9 "$python" -m pytest \
      -p no:cacheprovider -m "not emulated" -k "not refused and not opcheck and not compiles" --of-each-file 12 \
      --maxfail 1 "${cuda_tests[@]}"
  done
else
  cannot_run sanitizers "compute-sanitizer is neither on PATH nor among $python's packages"
fi
# Compilers take most of these steps' time; bench/sweep.py and bench/layer_throughput.py without --peers time all peers.
run_step bench_peers 90 "$python" bench/sweep.py --device cuda --presets 1.5b --dtypes bfloat16 --batches 1 \
  --ops attention --seq-lens 8320 --peers flex,flex-halves,sdpa,compiled-masked --slowest 5 --json "$out/peers.json"
run_step bench_published 90 "$python" bench/layer_throughput.py --device cuda --dtype bfloat16 \
  --implementations hymba_ops,plain,flex,published --json "$out/published.json"
echo "summary, logs and results: $out"
exit $failed
