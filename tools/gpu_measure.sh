#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU and no network: installs hymba_ops and measures, what decides most first. Leaves
# in a folder the log of each step, summary.txt and steps.jsonl, and results named as bench/results/ and docs/gpu.md want them.
# Test first: tools/gpu_check.sh.
#
#   tools/gpu_measure.sh [output folder, default build/gpu_measure]
#
# PYTHON, WHEEL, SECONDS_ALLOWED (default 570): tools/gpu_steps.sh. Peers that python3 can import are measured too. Exit status:
# 1 when a step failed or no GPU was there, 0 otherwise.
set -uo pipefail
. "$(dirname "$0")/gpu_steps.sh"
measuring=1
begin "${1:-build/gpu_measure}" 570
install_package

# "NVIDIA H100 80GB HBM3": h100
card=$(sed -n '1{s/,.*//; s/^NVIDIA //; s/ .*//; p}' "$out/gpu.txt" | tr '[:upper:]' '[:lower:]')
results="$out/${card:-gpu}"
layer=("$python" bench/layer_throughput.py --device cuda --dtype bfloat16 --parts)
sweep=("$python" bench/sweep.py --device cuda --presets 1.5b --dtypes bfloat16 --batches 1)

run_step machine 120 "$python" tools/machine_times.py --json "${results}_machine.json"
# Times alone: tools/check_cubins.py sets the predictions beside them, where there is time to compile.
run_step kernels 90 "$python" bench/kernel_times.py --no-predictions --json "${results}_kernels.json"
run_step decode 120 "$python" bench/decode_throughput.py --device cuda --dtype bfloat16 \
  --implementations hymba_ops,plain,sdpa --json "${results}_decode.json"
run_step layer_b1_8192 130 "${layer[@]}" --seq-len 8192 --implementations hymba_ops,plain,flex,published \
  --peers flex,causal_conv1d,mamba_ssm --json "${results}_layer_b1_8192.json"
run_step peers 90 "${sweep[@]}" --ops attention --seq-lens 8320 --peers flex,flex-halves,sdpa,compiled-masked \
  --slowest 5 --json "${results}_peers.json"
for size in "8 8192" "1 2048" "1 32768" "8 2048" "8 32768"; do
  read -r batch tokens <<< "$size"
  run_step "layer_b${batch}_$tokens" 60 "${layer[@]}" --batch "$batch" --seq-len "$tokens" \
    --implementations hymba_ops,plain --peers none --json "${results}_layer_b${batch}_$tokens.json"
done
run_step ops 70 "${sweep[@]}" --seq-lens 1,2048,8320 --peers none --budget 50 --slowest 2 --json "${results}_ops.json"
run_step compiled 120 "${layer[@]}" --seq-len 2048 --layers sliding --implementations hymba_ops,plain,compiled \
  --peers none --json "${results}_compiled.json"
finish
