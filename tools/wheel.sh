#!/usr/bin/env bash
# Builds the wheel into dist/. Zig compiles and links against an old glibc, so that the wheel
# runs on any Linux since 2018 (manylinux_2_28); where zig cannot be had, the wheel asks for
# the glibc of this machine, and says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=(maturin build --release --strip --locked --out dist --target-dir target/wheel)
policy=manylinux_2_28

# Panic messages name source files; without this they would name the builder's folders.
export RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo --remap-path-prefix=$PWD=stfast"

zig() { python -m ziglang version >/dev/null 2>&1; }
zig || python -m pip install --quiet ziglang || true
if zig; then
    "${build[@]}" --zig --compatibility "$policy"
else
    echo "stfast: no zig; the wheel will ask for this machine's $(ldd --version | head -n1)" >&2
    "${build[@]}"
fi
