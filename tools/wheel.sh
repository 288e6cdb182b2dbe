#!/usr/bin/env bash
# Builds the wheel of this system and processor into dist/. On Linux, zig compiles and links
# against an old glibc, so that the wheel runs on any Linux since 2018 (manylinux_2_28); where
# zig cannot be had, the wheel asks for the glibc of this machine, and says so. macOS and
# Windows have compilers that aim at older systems themselves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=(maturin build --release --strip --locked --out dist --target-dir target/wheel)
policy=manylinux_2_28

# Panic messages name source files; without this they would name the builder's folders.
native() { if [ "${OS:-}" = Windows_NT ]; then cygpath -w "$1"; else printf %s "$1"; fi; }
cargo_home=$(native "${CARGO_HOME:-$HOME/.cargo}") here=$(native "$PWD")
export RUSTFLAGS="--remap-path-prefix=$cargo_home=cargo --remap-path-prefix=$here=stfast"

zig() { python -m ziglang version >/dev/null 2>&1; }
if [ "$(uname -s)" != Linux ]; then
    export MACOSX_DEPLOYMENT_TARGET=${MACOSX_DEPLOYMENT_TARGET:-11.0}
    "${build[@]}"
elif zig || { python -m pip install --quiet ziglang && zig; }; then
    "${build[@]}" --zig --compatibility "$policy"
else
    echo "stfast: no zig; the wheel will ask for this machine's $(ldd --version | head -n1)" >&2
    "${build[@]}"
fi
