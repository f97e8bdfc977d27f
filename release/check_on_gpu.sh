#!/usr/bin/env bash
# A wheel on a machine with a GPU: all CUDA tests against what it installs, away from the checkout, whose package would
# be imported in its place, and the C++ programs of tests/cpp against the CMake package of the same build.
#
#   release/check_on_gpu.sh WHEEL PREFIX
#
# PREFIX holds what `cmake --install build/wheels/cu130 --prefix PREFIX` gave where the wheel was built. It needs cmake,
# a C++ compiler, no network, and a python3 (or PYTHON) with torch, numpy, pytest and hypothesis; with pytest-xdist the
# tests share the GPU in JOBS processes (default: 4).
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: release/check_on_gpu.sh WHEEL PREFIX" >&2
  exit 2
fi
wheel=$(realpath -e "$1")
prefix=$(realpath -e "$2")
python=$(command -v "${PYTHON:-python3}")
checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$checkout/tests" "$checkout/pyproject.toml" "$folder"
rm -f "$folder"/tests/*.so # of another Python
cd "$folder"

"$python" -m pip install --quiet --no-deps --no-index --target site "$wheel"
export PYTHONPATH=$folder/site
# Ends here where the kernels do not run: the tests would only skip.
FASTVID_BACKEND=cuda "$python" - <<'CODE'
import torch
from fastvid_ext import info

tokens = torch.rand(8, 20, 16, device="cuda")
torch.ops.fastvid.prune(tokens, tokens[..., 0])[0].cpu()
print(info.report())
CODE

(
  cmake -S tests/cpp -B cpp -DCMAKE_PREFIX_PATH="$prefix" -DPython3_EXECUTABLE="$python"
  cmake --build cpp --parallel
) >cpp.log 2>&1 &
programs=$!

failed=0
options=(-q -p no:cacheprovider -m cuda)
if "$python" -c "import xdist" 2>/dev/null; then
  jobs=${JOBS:-4}
  options+=(-n "$jobs" --dist worksteal)
  export OMP_NUM_THREADS=$((($(nproc) + jobs - 1) / jobs))
fi
"$python" -m pytest "${options[@]}" || failed=1
wait $programs || {
  cat cpp.log
  exit 1
}
ctest --test-dir cpp --output-on-failure --no-tests=error --parallel 8 | tee ctest.log || failed=1
if grep -q Skipped ctest.log; then
  echo "C++ programs were skipped, though Python found the GPU"
  failed=1
fi
exit $failed
