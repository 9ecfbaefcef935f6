#!/usr/bin/env bash
# Everything that needs a GPU: builds with CUDA, tests, checks the kernels' memory accesses, and
# measures. Uses the packages that are installed; nothing is downloaded. About eight minutes.
#
#   scripts/gpu_check.sh [FOLDER]      results go to FOLDER (default: benchmarks/results)
#
# Needs: an NVIDIA GPU, nvcc, CMake, Ninja, and for `python3` (or $PYTHON): torch with CUDA, pybind11,
# scikit-build-core, ml_dtypes, safetensors, click, tqdm, pytest, hypothesis, peft, transformers.
set -euo pipefail
cd "$(dirname "$0")/.."
results=$(realpath -m "${1:-benchmarks/results}")
python=${PYTHON:-python3}
build=$(pwd)/build/gpu
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=()

say() { printf '\n=== %s (%ds)\n' "$*" "$SECONDS"; }
# A step that fails is reported at the end; the steps after it still run.
step() {
    say "$1"
    shift
    "$@" || failed+=("$*")
}

missing=()
for tool in nvidia-smi nvcc cmake ninja "$python"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "needs an NVIDIA GPU and these tools, which are not on the PATH: ${missing[*]}" >&2
    exit 1
fi

say "the machine"
nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv
nvcc --version | tail -n 2
"$python" - <<'CHECK'
import importlib.util, sys
names = ["torch", "pybind11", "scikit_build_core", "ml_dtypes", "safetensors", "click", "tqdm", "pytest",
         "hypothesis", "peft", "transformers"]
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"missing packages: {', '.join(missing)}; install them with pip")
import torch
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
if not torch.cuda.is_available():
    sys.exit("torch sees no GPU: install a build of torch with CUDA")
CHECK
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)

say "build for this GPU"
"$python" -m pip install -q --no-index --no-deps --no-build-isolation --upgrade \
    --target "$build/site" --config-settings=build-dir="$build/wheel" --config-settings=cmake.define.NOLA_CUDA=ON \
    --config-settings=cmake.define.NOLA_CUDA_ARCHITECTURES="$architecture" .
export PYTHONPATH="$build/site:$(pwd)${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m nola_edge info
"$python" -c "
import sys, nola_edge._cuda as module
print(module.__file__)
if not module.__file__.startswith('$build'):
    sys.exit('another installation of nola-edge comes first; uninstall it: pip uninstall nola-edge')"
cmake -S . -B "$build/check" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNOLA_CUDA=ON \
    -DNOLA_CUDA_ARCHITECTURES="$architecture" >/dev/null
cmake --build "$build/check" --target nola_cuda_check | tail -n 1

step "every kernel against the CPU" "$build/check/nola_cuda_check"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        step "compute-sanitizer $tool" timeout 120 \
            compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/check/nola_cuda_check"
    done
else
    failed+=("compute-sanitizer is not installed")
fi

step "tests on the GPU" timeout 200 "$python" -m pytest -q -p no:cacheprovider \
    -o filterwarnings=default -k "not emulated" tests/pytorch/test_cuda.py \
    tests/pytorch/test_cuda_gpu.py tests/packaging/test_cuda_code.py

mkdir -p "$results"
step "benchmarks" timeout 240 "$python" benchmarks/gpu.py --save "$results"

say "done"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
