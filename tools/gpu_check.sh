#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU and no network: installs hymba_ops, runs every test that a GPU can run, and
# leaves in a folder the log of each step, and summary.txt and steps.jsonl, which say what passed, failed or could not run.
# tools/gpu_measure.sh measures.
#
#   tools/gpu_check.sh [output folder, default build/gpu_check]
#
# PYTHON, WHEEL, SECONDS_ALLOWED (default 480): tools/gpu_steps.sh. Exit status: 1 when a step failed or no GPU was there,
# 0 otherwise.
set -uo pipefail
. "$(dirname "$0")/gpu_steps.sh"
begin "${1:-build/gpu_check}" 480
install_package

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
export HYMBA_OPS_TEST_DEVICE=cuda
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # torch's deterministic mode, in which the tests run, asks for it

# After a kernel that hangs, or that leaves the GPU unusable for its process, the others are tested in a new process.
run_tests=("$python" -m pytest -p no:cacheprovider -m "not emulated")
in_parallel=()
if "$python" -c 'import xdist, pytest_timeout' > /dev/null 2>&1; then
  in_parallel=(-n 8 --max-worker-restart 64 --timeout 45 --timeout-method thread)
fi

run_step load 40 env -C / PYTHONPATH="$site" "$python" -c 'import hymba_ops; print(hymba_ops.build_info())' || exit 1
if command -v nvcc > /dev/null; then
  run_step primitives 60 "$python" tools/capture_primitives.py "$out/primitives.npz"
else
  cannot_run primitives "nvcc is not on PATH"
fi
run_step tests 200 "${run_tests[@]}" "${in_parallel[@]}" --durations 12 --junitxml="$out/tests.xml" "${cuda_tests[@]}"
run_step layer 100 "${run_tests[@]}" "${in_parallel[@]}" --durations 12 --junitxml="$out/layer.xml" "${layer_tests[@]}"
# Of our own kernels only: instrumenting torch's would take most of the time.
find_sanitizer='from tools.sass_model.disassembly import find_tool; print(find_tool("compute-sanitizer"))'
if sanitizer=$("$python" -c "$find_sanitizer" 2> /dev/null); then
  for check in memcheck racecheck synccheck; do
    run_step "$check" 60 "$sanitizer" --tool "$check" --kernel-name kns=hymba --error-exitcode 9 "${run_tests[@]}" \
      -k "not refused and not opcheck and not compiles" --of-each-file 12 --maxfail 1 "${cuda_tests[@]}"
  done
else
  cannot_run sanitizers "compute-sanitizer is neither on PATH nor among $python's packages"
fi
finish
