"""Print what pyproject.toml asks for, one requirement a line: base, named extras, build tools.

pip cannot install a project's extras without building the project itself, and `make` builds
it only when Rust sources change; so the set-up reads the list from here. An extra that names
another one, as in ``stfast[torch,plot]``, is followed.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def expand(extra: str, extras: dict[str, list[str]]) -> list[str]:
    """List the requirements of one extra, those of the extras that it names included."""
    found = []
    for line in extras[extra]:
        own = re.fullmatch(r"stfast\[(.+)\]", line)
        inner = [expand(e.strip(), extras) for e in own[1].split(",")] if own else [[line]]
        found += [requirement for part in inner for requirement in part]
    return found


def main(names: list[str]) -> None:
    """Print base, build and the named extras' requirements, sorted, each once."""
    table = tomllib.loads(PYPROJECT.read_text())
    extras = table["project"].get("optional-dependencies", {})
    lines = table["build-system"]["requires"] + table["project"]["dependencies"]
    for name in names:
        lines = lines + expand(name, extras)
    print("\n".join(sorted(set(lines))))


if __name__ == "__main__":
    main(sys.argv[1:])
