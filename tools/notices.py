"""Gather the licences of all that is linked into stfast's native module, for the wheel.

A wheel ships compiled copies of Rust crates, of the C libraries inside some of them
(libjpeg-turbo, zstd, libdeflate) and of Rust's standard library; their licences ask that the
notices go along. They are read from the sources that were compiled, so that they are never
older than the code. A crate without a licence file is named with its authors and gets the
text of its licence; one whose licence is unknown here stops the build.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTICE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense|readme\.ijg)", re.IGNORECASE)
VENDORED = {
    "turbojpeg-sys": "libjpeg-turbo",
    "zstd-sys": "zstd",
    "libdeflate-sys": "libdeflate",
}
IJG = "This software is based in part on the work of the Independent JPEG Group."

Package = dict[str, Any]


def run(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def linked(target: str) -> list[Package]:
    """List the packages linked into stfast-py: reached by normal edges, no macros, not ours."""
    text = run("cargo", "metadata", "--format-version=1", f"--filter-platform={target}")
    metadata = json.loads(text)
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    todo = [i for i, p in packages.items() if p["name"] == "stfast-py"]
    seen: set[str] = set()
    while todo:
        package = packages[here := todo.pop()]
        if here in seen or any("proc-macro" in t["kind"] for t in package["targets"]):
            continue
        seen.add(here)
        for edge in nodes[here]["deps"]:
            if any(kind["kind"] is None for kind in edge["dep_kinds"]):
                todo.append(edge["pkg"])
    others = (packages[i] for i in seen if packages[i]["source"])
    return sorted(others, key=lambda p: (p["name"], p["version"]))


def files_of(folder: Path) -> list[Path]:
    """List the licence files that lie directly in a folder."""
    return sorted(f for f in folder.iterdir() if f.is_file() and NOTICE.match(f.name))


class Notices:
    """The growing file: a text that came before is named, not repeated."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.first: dict[str, str] = {}

    def add(self, title: str, texts: dict[str, str], note: str) -> None:
        """Set one component's texts, by file name, under its title."""
        bar = "=" * 80
        self.parts.append(f"{bar}\n{title}\n{bar}\n\n{note}\n")
        for name, raw in texts.items():
            text = raw.strip()
            earlier = self.first.setdefault(text, f"{name} of {title}")
            shown = text if earlier == f"{name} of {title}" else f"(the same text as {earlier})"
            self.parts.append(f"--- {name}\n\n{shown}\n")


def read(files: list[Path]) -> dict[str, str]:
    """Return the files' texts by their names."""
    return {f.name: f.read_text(errors="replace") for f in files}


def mit_of(holder: str) -> dict[str, str]:
    """Return the MIT licence, which is ours too, in another holder's name."""
    ours = (ROOT / "LICENSE").read_text()
    return {"MIT": re.sub(r"Copyright \(c\) .*", f"Copyright (c) {holder}", ours)}


def add_crate(notices: Notices, package: Package) -> None:
    """Add one crate: its own files, or the MIT text in its authors' name."""
    spdx = package["license"] or ""
    texts = read(files_of(Path(package["manifest_path"]).parent))
    if not texts:
        if "MIT" not in re.split(r" OR |/", spdx):
            sys.exit(f"{package['name']}: no licence file, and not under MIT but {spdx!r}")
        texts = mit_of(", ".join(package["authors"]) or package["repository"])
    notices.add(f"{package['name']} {package['version']}", texts, f"Licence: {spdx}")


def add_c_libraries(notices: Notices, packages: list[Package]) -> None:
    """Add the C libraries whose sources lie inside crates."""
    folders = {p["name"]: Path(p["manifest_path"]).parent for p in packages}
    for crate, library in VENDORED.items():
        texts = read(files_of(folders[crate] / library))
        if not texts:
            sys.exit(f"{crate}: no licence file of {library}")
        note = IJG if library == "libjpeg-turbo" else f"The C sources inside {crate}"
        notices.add(library, texts, note)


def add_std(notices: Notices) -> None:
    """Add Rust's standard library and what it contains, as its toolchain tells it."""
    page = Path(run("rustc", "--print=sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    texts = mit_of("The Rust Project contributors")
    if page.is_file():
        plain = html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))
        texts[page.stem] = re.sub(r"\n\s*\n+", "\n\n", plain)
    notices.add("Rust's standard library", texts, "Licence: MIT OR Apache-2.0")


def main(destination: str) -> None:
    """Write all notices into one file."""
    host = re.findall(r"^host: (.+)$", run("rustc", "-vV"), re.MULTILINE)[0]
    packages, notices = linked(host), Notices()
    for package in packages:
        add_crate(notices, package)
    add_c_libraries(notices, packages)
    add_std(notices)
    head = "stfast's native module contains the software named below, under these licences.\n"
    (ROOT / destination).write_text("\n".join([head, *notices.parts]))
    print(f"{destination}: {len(packages)} crates, {len(VENDORED)} C libraries, Rust's std")


if __name__ == "__main__":
    main(*sys.argv[1:])
