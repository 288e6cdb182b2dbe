#!/usr/bin/env bash
# Prints the folder of an environment and the CPython to make it with, or nothing if none is found.
# python.sh [PYTHON [DEPS]]: PYTHON is a path or a name such as python3.11; without it, the
# newest that pyproject.toml lists and this machine has. That one's environment is .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# An active environment of ours is made from a Python, it is not one to make another from.
PATH=$(tr : '\n' <<<"$PATH" | grep -v "^$PWD/\.venv" | paste -sd :)

# pyenv's `python3.x` stands on PATH but fails while another version is chosen, so its folder
# of versions is searched too.
find_python() {
    local candidate
    for candidate in "$(command -v -- "$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1"; do
        [ -x "$candidate" ] || continue
        "$candidate" -c '
import sys
print("%d.%d" % sys.version_info[:2], sys.executable)
sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    return 1
}

find_newest() {
    local version
    for version in $(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)",$/\1/p' \
        pyproject.toml | sort -rV); do
        find_python "python$version" && return
    done
    find_python python3
}

newest=$(find_newest || true)
if [ -n "${1:-}" ]; then found=$(find_python "$1") || exit 0; else found=$newest; fi
[ -n "$found" ] || exit 0
read -r version python <<<"$found"
deps=${2:-newest}
if [ "$deps" != newest ]; then
    echo ".venv-$version-$deps $python"
elif [ "$version" = "${newest%% *}" ]; then
    echo ".venv $python"
else
    echo ".venv-$version $python"
fi
