#!/usr/bin/env bash
# All that RELIABILITY.md reports, on a GPU: tests/harden.sh [--seconds 300] [--cases 20000] [--calls 100000] [--out DIR]
#
# Needs an importable fastvid_ext with its CUDA library, pytest, hypothesis, and the CUDA toolkit for compute-sanitizer
# (PYTHON and COMPUTE_SANITIZER name others than those on PATH). The parts run at once, since none depends on another;
# each leaves a log in DIR, and the closing lines stand in DIR/summary.txt. Exit code 1: a part failed. A part that the
# machine cannot run, such as one for two GPUs, is skipped and said so. With --seconds 300 it takes some six minutes.
set -uo pipefail
cd "$(dirname "$0")/.."

seconds=300 cases=20000 calls=100000 out=build/harden
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2 ;;
    --cases) cases=$2 ;;
    --calls) calls=$2 ;;
    --out) out=$2 ;;
    *)
      echo "tests/harden.sh: got $1, want --seconds, --cases, --calls or --out" >&2
      exit 2
      ;;
  esac
  shift 2
done
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" FASTVID_BACKEND=cuda
mkdir -p "$out"
rm -f "$out"/*.log "$out/summary.txt"

names=() pids=()
# A part that hangs is ended, and fails.
part() {
  local name=$1
  shift
  timeout $((seconds + 240)) "$@" >"$out/$name.log" 2>&1 &
  names+=("$name") pids+=($!)
}

for tool in memcheck racecheck synccheck initcheck; do part "$tool" tests/sanitize.sh "$tool"; done
part tests "$python" -m pytest -q -p no:cacheprovider -m cuda \
  tests/test_adversarial.py tests/test_shapes.py tests/test_calls.py tests/test_edges.py tests/test_errors.py
part random "$python" tests/random_cases.py --cases "$cases" --out "$out/random.json"
for soak in threads graphs memory second-gpu workers digest; do
  part "$soak" "$python" tests/soak.py "$soak" --seconds "$seconds" --calls "$calls"
done

failed=0
for i in "${!names[@]}"; do
  wait "${pids[$i]}"
  code=$?
  case $code in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    124) verdict="FAILED (did not end)" failed=1 ;;
    *) verdict="FAILED ($code)" failed=1 ;;
  esac
  echo "${names[$i]}: $verdict: $(grep -v '^$' "$out/${names[$i]}.log" | tail -n 1)" | tee -a "$out/summary.txt"
  # How it failed, should nothing but what is printed outlive the machine.
  [ $code = 0 ] || [ $code = 77 ] || head -n 30 "$out/${names[$i]}.log" | sed 's/^/    /' | tee -a "$out/summary.txt"
done
exit $failed
