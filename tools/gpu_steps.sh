# What tools/gpu_check.sh and tools/gpu_measure.sh share; they source it. Steps, each with a log and a limit of its own, and
# the package installed beside the clone's sources.
#
# PYTHON: an interpreter with torch >= 2.11 (CUDA), numpy, pytest and hypothesis. WHEEL: a wheel to install; without it the
# clone is built (needs nvcc, ninja, setuptools). SECONDS_ALLOWED: of the whole; what comes after its end could not run.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
failed=0

record() {  # step, status, seconds, detail
  local detail
  detail=$(printf '%s' "$4" | tr -d '"\134' | tr '\000-\037' ' ' | cut -c 1-200)
  printf '{"step": "%s", "status": "%s", "seconds": %s, "detail": "%s"}\n' "$1" "$2" "$3" "$detail" >> "$out/steps.jsonl"
  printf '%-14s %-18s %4s s  %s\n' "$2" "$1" "$3" "$detail" | tee -a "$out/summary.txt"
}

cannot_run() { record "$1" "could not run" 0 "$2"; }

# Status 2 is a measuring program's own "cannot run here", with the reason on its last line.
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
  elif [ $status -eq 2 ] && [ "${measuring:-}" ]; then
    cannot_run "$name" "$last"
  else
    failed=1
    [ $status -ne 124 ] || last="stopped after $limit s: $last"
    record "$name" failed $((SECONDS - start)) "status $status, $name.log: $last"
  fi
  return $status
}

begin() {  # output folder, seconds allowed
  mkdir -p "$1"
  out=$(cd "$1" && pwd)
  allowed=${SECONDS_ALLOWED:-$2}
  : > "$out/steps.jsonl"
  : > "$out/summary.txt"
  if ! "$python" -c 'import torch; assert torch.cuda.is_available()' > "$out/gpu.log" 2>&1; then
    cannot_run gpu "$python has no torch that sees a GPU"
    exit 1
  fi
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader > "$out/gpu.txt" 2>&1
}

# The package, whose shared object then lies beside the clone's sources, as after `pip install .`
install_package() {
  site="$out/site"
  rm -rf "$site"
  if [ -n "${WHEEL:-}" ]; then
    run_step install 40 "$python" -m pip install --no-index --no-deps --target "$site" "$WHEEL" || exit 1
  else
    run_step build 300 "$python" -m pip install --no-index --no-build-isolation --no-deps --target "$site" . || exit 1
  fi
  cp "$site/hymba_ops/_C.abi3.so" hymba_ops/ || exit 1
}

finish() {
  echo "summary, logs and results: $out"
  exit $failed
}
