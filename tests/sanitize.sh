#!/usr/bin/env bash
# The CUDA kernels under compute-sanitizer: tests/sanitize.sh [TOOL ...], by default all four tools.
# Needs a GPU, an importable fastvid_ext and the CUDA toolkit (COMPUTE_SANITIZER, where it is not on PATH). Stops with an error at the first tool that finds one.
set -euo pipefail
cd "$(dirname "$0")/.."
# Every allocation gets bounds of its own, which memcheck then sees.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 FASTVID_BACKEND=cuda PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
tools=("$@")
[ ${#tools[@]} -gt 0 ] || tools=(memcheck racecheck synccheck initcheck)
for tool in "${tools[@]}"; do
  echo "== $tool"
  calls=()
  case $tool in racecheck | initcheck) calls=(--small) ;; esac
  "${COMPUTE_SANITIZER:-compute-sanitizer}" --tool "$tool" --error-exitcode 1 --kernel-regex kns=fastvid \
    "${PYTHON:-python3}" tests/sanitize.py "${calls[@]}"
done
