#!/usr/bin/env bash
# Builds the program `nola` for x86-64, 64-bit ARM and 32-bit ARM, each as one file that needs
# nothing of the machine it runs on, not even a C library.
#
#   scripts/static_program.sh [FOLDER]      the programs go to FOLDER (default: build/static)
#
# Needs CMake, Ninja, and `pip install ziglang` for `python3` (or $PYTHON): a C++ compiler for all
# three, with the C library musl.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/static}")
python=${PYTHON:-python3}
mkdir -p "$folder"

# CMake wants compilers of one word.
tool() {
    printf '#!/bin/sh\nexec %q -m ziglang %s "$@"\n' "$(command -v "$python")" "$2" >"$folder/$1"
    chmod +x "$folder/$1"
}
tool ar ar
tool ranlib ranlib

build() {
    local name=$1 target=$2 processor=$3
    tool "$name-cc" "cc -target $target ${4:-}"
    tool "$name-c++" "c++ -target $target ${4:-}"
    cmake -S . -B "$folder/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR="$processor" \
        -DCMAKE_C_COMPILER="$folder/$name-cc" -DCMAKE_CXX_COMPILER="$folder/$name-c++" \
        -DCMAKE_AR="$folder/ar" -DCMAKE_RANLIB="$folder/ranlib" \
        -DNOLA_OPENMP=OFF -DNOLA_CUDA=OFF -DNOLA_STATIC_PROGRAM=ON >/dev/null
    cmake --build "$folder/$name" --target nola_program | tail -n 1
    cp "$folder/$name/nola" "$folder/nola-$name"
}

build x86_64 x86_64-linux-musl x86_64
build aarch64 aarch64-linux-musl aarch64
# Without NEON, which flushes subnormal numbers there.
build armv7 arm-linux-musleabihf armv7l -mcpu=baseline-neon
(cd "$folder" && sha256sum nola-* && wc -c nola-*)
