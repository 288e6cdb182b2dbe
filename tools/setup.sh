#!/usr/bin/env bash
# Makes an environment ready to build and test stfast, on a machine that has Python, pip, a C
# compiler and Rust: setup.sh PYTHON VENV DEPS. Everything else comes from PyPI into VENV, but
# for nasm, which PyPI does not have: libjpeg-turbo's SIMD is assembly. `make` calls this when
# pyproject.toml has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-} venv=${2:-.venv} deps=${3:-newest}
bin=$venv/bin
[ "${OS:-}" != Windows_NT ] || bin=$venv/Scripts
venv_python=$bin/python

say() { printf 'stfast: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

check_tools() {
    [ -n "$python" ] || die "needs Python 3.11 or newer; name yours with: make PYTHON=python3.12"
    has cc || has gcc || has clang || die "needs a C compiler: apt-get install gcc"
    has cargo || die "needs Rust: install it with rustup, then open a new shell"
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n1)" = "$want" ] ||
        die "needs Rust $want or newer, found $have: rustup update"
}

# Only x86 has its SIMD in nasm's language.
check_nasm() {
    case "$(uname -m)" in x86_64 | amd64 | i?86) ;; *) return 0 ;; esac
    has nasm && return 0
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    if has apt-get && { [ "$(id -u)" = 0 ] || has sudo; }; then
        say "nasm is missing; installing it with apt-get"
        { "${root[@]}" apt-get install -y -qq nasm ||
            { "${root[@]}" apt-get update -qq && "${root[@]}" apt-get install -y -qq nasm; }
        } >/dev/null 2>&1 </dev/null || true
    fi
    has nasm || die "needs nasm (libjpeg-turbo's SIMD): apt-get install nasm"
}

# The folder may hold the environment of another Python, which was the newest until now.
# Debian's Python may come without ensurepip; then its own pip puts one into the environment.
make_venv() {
    local of='import sys; print(sys.version, sys.base_prefix)'
    [ "$("$venv_python" -c "$of" 2>/dev/null)" = "$("$python" -c "$of")" ] || rm -rf "$venv"
    [ -d "$venv" ] || "$python" -m venv "$venv" >/dev/null 2>&1 || {
        rm -rf "$venv"
        "$python" -m venv --without-pip "$venv" ||
            die "cannot make $venv: apt-get install python3-venv"
    }
    "$venv_python" -m pip --version >/dev/null 2>&1 ||
        "$python" -m pip --python "$venv_python" install --quiet pip ||
        die "needs pip: apt-get install python3-pip"
}

# A group of pyproject.toml, and the extras that its tests use. uv alone chooses the lowest
# versions, and takes seconds where pip takes minutes.
install() {
    local choice=()
    case $deps in
        newest) choice=(--group dev --extra demo --extra distributed --extra geojson --extra learn) ;;
        lowest) choice=(--group lowest --extra demo --extra geojson --resolution lowest-direct) ;;
        contract) choice=(--group contract --extra plot --extra spatialdata) ;;
        *) die "DEPS: expected newest, lowest or contract, got $deps" ;;
    esac
    [ -x "$bin/uv" ] || "$venv_python" -m pip install --quiet "uv>=0.8"
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
    # A certificate that pip was told of is good for uv too.
    if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
    say "installing what pyproject.toml names ($deps) into $venv"
    "$bin/uv" pip install --quiet --upgrade --python "$venv_python" -r pyproject.toml "${choice[@]}"
}

check_tools
check_nasm
make_venv
install
