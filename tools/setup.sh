#!/usr/bin/env bash
# Makes .venv ready to build and test stfast, on a machine that has Python, pip, a C compiler
# and Rust. Everything else comes from PyPI into .venv, but for nasm, which PyPI does not have:
# libjpeg-turbo's SIMD is assembly. `make` calls this when pyproject.toml has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3}
venv_python=.venv/bin/python
# The machine's own Python makes the venv, also where the venv is active already.
PATH=:$PATH:
PATH=${PATH//":$PWD/.venv/bin:"/:}
PATH=${PATH#:} PATH=${PATH%:}

say() { printf 'stfast: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

check_tools() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "needs Python 3.11 or newer; name yours with: make PYTHON=python3.12"
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

# Debian's Python may come without ensurepip; then its own pip puts one into the venv.
make_venv() {
    "$venv_python" -c '' 2>/dev/null || rm -rf .venv
    [ -d .venv ] || "$python" -m venv .venv >/dev/null 2>&1 || {
        rm -rf .venv
        "$python" -m venv --without-pip .venv || die "cannot make .venv: apt-get install python3-venv"
    }
    "$venv_python" -m pip --version >/dev/null 2>&1 ||
        "$python" -m pip --python "$venv_python" install --quiet pip ||
        die "needs pip: apt-get install python3-pip"
}

# uv takes seconds where pip takes minutes, but pip alone will do.
install() {
    local list=.venv/requirements.txt
    "$venv_python" tools/requirements.py dev bench >"$list"
    has .venv/bin/uv || "$venv_python" -m pip install --quiet "uv>=0.5" ||
        say "no uv; going on with pip"
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
    # A certificate that pip was told of is good for uv too.
    if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
    say "installing what pyproject.toml names into .venv (torch is large)"
    if has .venv/bin/uv; then
        .venv/bin/uv pip install --quiet --python "$venv_python" -r "$list" && return 0
        say "uv failed; trying pip"
    fi
    "$venv_python" -m pip install --quiet -r "$list"
}

check_tools
check_nasm
make_venv
install
