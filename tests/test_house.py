"""The house rules of CONTRIBUTING.md, kept as tests.

What a linter can hold (formats, lints, types, SAFETY comments inside functions) is in `make
check`; here is what only this project asks for: sizes, names, who may import what, and that
one word has its file in every layer. Each rule is a function from sources to faults, so that
the tests at the end can show it a fault and see that it is found. Rust is read after its
comments and texts are blanked, which makes counting braces exact enough.
"""

import ast
import inspect
import itertools
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import stfast

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python/stfast"
MAX_FILE, MAX_FUNCTION, MAX_BINDING = 400, 40, 25

# The words, and the layers that each has beside its Python file.
FULL = {"test", "docs", "bench", "core", "py"}
PYTHON_ONLY = {"test", "docs", "bench"}
WORDS = {
    "readers": PYTHON_ONLY,
    "h5": FULL,
    "convert": PYTHON_ONLY,
    "bins": FULL,
    "images": FULL - {"bench"},  # tiles are what is cut from images, and measured
    "tiles": FULL,
    "hvg": FULL,
    "alignment": {"test", "docs"},  # its time is the reduced picture's
    "annotations": {"test", "docs"},  # one small file a slide, joined by polars and shapely
    "manifest": {"test", "docs"},  # it reads one small table
    "dataset": {"test", "docs"},  # its tiles are read, and measured, by the loader
    "sources": {"test"},  # docs/loader.md and docs/dataset.md have what users see of it
    "loader": FULL,
    "cells": FULL,
    "rasters": {"test", "docs"},  # its time is the KD-tree's
    "learn": {"test", "docs"},  # its time is torch's and scikit-learn's
    "synthetic": {"test"},
    "demo": {"test"},
    "cli": {"test"},
}
MAY_IMPORT_TORCH = ("loader/", "learn/")


def sources(*folders: str, suffixes: tuple[str, ...] = (".py", ".pyi", ".rs")) -> list[Path]:
    """Every source file below the folders."""
    found = (f for folder in folders for f in sorted((ROOT / folder).rglob("*")))
    return [f for f in found if f.suffix in suffixes and "target" not in f.parts]


PYTHON = sources("python/stfast", "tests", "benches", "tools", suffixes=(".py", ".pyi"))
RUST = sources("rust", suffixes=(".rs",))


def name_of(path: Path) -> str:
    """Return the path from the project's root, for messages."""
    return path.relative_to(ROOT).as_posix()


BLANKED = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | r(\#*)".*?"\1 | b?"(?:\\.|[^"\\])*" | b?'(?:\\[^\n]+?|[^\\'\n])'""",
    re.DOTALL | re.VERBOSE,
)


def bare(rust: str) -> str:
    """Blank comments, texts and characters of Rust; lines stay where they are."""
    return BLANKED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), rust)


def shipped(path: Path) -> str:
    """Return a Rust file's bare code, without the tests at its end."""
    return bare(path.read_text()).split("#[cfg(test)]")[0]


def rust_functions(rust: str) -> Iterator[tuple[str, int, bool]]:
    """Yield each function's name, its lines from `fn` to `}`, and whether Python can call it."""
    code = bare(rust)
    for match in re.finditer(r"\bfn (\w+)", code):
        depth, end = 0, match.end()
        while (char := code[end]) != ";" or depth:
            depth += (char in "{([") - (char in "})]")
            if char == "}" and not depth:
                break
            end += 1
        lines = code[match.start() : end].count("\n") + 1
        before = code[: match.start()].rsplit("}", 1)[-1].rsplit(";", 1)[-1]
        yield match[1], lines, "#[pyfunction" in before


def lines_of(node: ast.stmt) -> range:
    """Return the lines that a statement spans."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def doc_lines(node: ast.AST) -> int:
    """Count the lines of a definition's docstring."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if not isinstance(node, documented) or ast.get_docstring(node) is None:
        return 0
    return len(lines_of(node.body[0]))


def python_functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each function's name and its lines, docstrings not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docs = sum(doc_lines(n) for n in ast.walk(node))
            yield node.name, len(lines_of(node)) - docs


def python_length(text: str) -> int:
    """Count a Python file's lines, docstrings not counted."""
    return len(text.splitlines()) - sum(doc_lines(n) for n in ast.walk(ast.parse(text)))


def long_functions(path: Path, text: str) -> list[str]:
    """Name the functions that are too long."""
    if path.suffix == ".rs":
        sizes = [(f, n, MAX_BINDING if py else MAX_FUNCTION) for f, n, py in rust_functions(text)]
    else:
        sizes = [(f, n, MAX_FUNCTION) for f, n in python_functions(ast.parse(text))]
    return [f"{path.name}: {f} has {n} lines, at most {most}" for f, n, most in sizes if n > most]


def opening(path: Path, text: str) -> str:
    """Return the paragraph that a file opens with."""
    if path.suffix != ".rs":
        return ast.get_docstring(ast.parse(text)) or ""
    lines = itertools.takewhile(lambda line: line.startswith("//!"), text.splitlines())
    return " ".join(line.removeprefix("//!").strip() for line in lines).strip()


def imports(text: str) -> set[str]:
    """List the top-level packages that a Python file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def unexplained_unsafe(rust: str) -> list[int]:
    """List the lines of `unsafe` blocks and impls without a SAFETY comment close above."""
    lines, faults = rust.splitlines(), []
    for at, line in enumerate(bare(rust).splitlines()):
        if re.search(r"\bunsafe\b(?!\s+(extern\s+)?fn\b)", line):
            above = "\n".join(lines[max(0, at - 8) : at + 1])
            if "SAFETY:" not in above:
                faults.append(at + 1)
    return faults


def public_functions() -> Iterator[tuple[str, inspect.Signature, str]]:
    """Yield the public functions with their signatures and docstrings."""
    for name in stfast.__all__:
        thing = getattr(stfast, name)
        if inspect.isfunction(thing):
            yield name, inspect.signature(thing), inspect.getdoc(thing) or ""


def modules() -> set[str]:
    """Return the names of the package's public modules."""
    found = [f for f in PACKAGE.iterdir() if f.suffix == ".py" or (f / "__init__.py").exists()]
    return {f.stem for f in found if not f.name.startswith("_")}


# --- the rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON + RUST, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    lines = len(text.splitlines()) if path.suffix == ".rs" else python_length(text)
    assert lines <= MAX_FILE, f"{name_of(path)}: {lines} lines, at most {MAX_FILE}"
    assert not long_functions(path, text)


@pytest.mark.parametrize("path", PYTHON + RUST, ids=name_of)
def test_files_open_with_a_paragraph(path):
    found = opening(path, path.read_text())
    assert len(found) >= 30, f"{name_of(path)}: expected what it is and why so, got {found!r}"


def test_file_names_are_nouns():
    faults = [f for f in PYTHON + RUST if f.stem in ("utils", "util", "helpers", "common", "mod")]
    assert not faults, "name what is in it: " + ", ".join(map(name_of, faults))


def test_workers_is_the_only_word_for_them():
    word = re.compile(r"(?<!\.)\b(n_jobs|njobs|num_threads|n_threads|num_workers|n_workers)\b")
    text = {f: f.read_text() for f in sources("python/stfast", "rust")}
    faults = [f"{name_of(f)}: {m[0]}" for f, t in text.items() for m in word.finditer(t)]
    assert not faults


def test_only_the_loader_imports_torch():
    others = [
        f
        for f in sources("python/stfast", suffixes=(".py",))
        if not f.relative_to(PACKAGE).as_posix().startswith(MAY_IMPORT_TORCH)
    ]
    assert not [name_of(f) for f in others if "torch" in imports(f.read_text())]


def test_the_base_install_is_enough(tmp_path):
    slide = stfast.synthesize_visium_hd(tmp_path / "slide", side_um=100, n_genes=50)
    extras = ["torch", "matplotlib", "imagecodecs", "pyarrow", "scanpy", "dask", "numba"]
    hide = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
    code = hide + runpy.run_path(str(ROOT / "tools/smoke.py"))["FIRST_CALL"]
    command = [sys.executable, "-c", code, slide]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_stfast_is_light():
    heavy = "{'torch', 'dask', 'scanpy', 'matplotlib'}"
    code = f"import sys, stfast; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exceptions_are_named_in_one_file():
    word = re.compile(r"pyo3::exceptions|create_exception|\bPy\w+(Error|Exception|Interrupt)\b")
    faults = [f for f in RUST if f.name != "error.rs" and word.search(shipped(f))]
    assert not list(map(name_of, faults))


def test_the_interpreter_is_released_at_one_door():
    word = re.compile(r"\b(allow_threads|detach|ThreadPoolBuilder)\b")
    faults = [f for f in RUST if f.name != "door.rs" and word.search(shipped(f))]
    assert not list(map(name_of, faults))


def test_the_core_knows_no_python():
    manifest = tomllib.loads((ROOT / "rust/core/Cargo.toml").read_text())
    tables = [manifest, *manifest.get("target", {}).values()]
    named = {d for t in tables for k in t if k.endswith("dependencies") for d in t[k]}
    assert not named & {"pyo3", "pyo3-ffi", "numpy", "stfast-py"}
    word = re.compile(r"\b(pyo3|println!|eprintln!|print!|dbg!|env::|ThreadPool)")
    faults = [f for f in sources("rust/core/src") if word.search(shipped(f))]
    assert not list(map(name_of, faults)), "no Python, environment, printing or pool in the core"


@pytest.mark.parametrize("path", RUST, ids=name_of)
def test_unsafe_says_why_it_is_safe(path):
    assert not unexplained_unsafe(path.read_text()), name_of(path)


def test_public_names_are_documented():
    things = {name: getattr(stfast, name) for name in stfast.__all__}
    assert not [n for n, t in things.items() if not isinstance(t, str) and not t.__doc__]


def test_public_functions_document_each_parameter():
    faults = [
        f"{name}: {parameter}"
        for name, signature, doc in public_functions()
        for parameter in signature.parameters
        if not re.search(rf"^[\w, *]*\b{parameter}\b[\w, *]*( :.*)?$", doc, re.MULTILINE)
    ]
    assert not faults


def test_public_functions_have_few_positional_parameters():
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    faults = []
    for name, signature, _ in public_functions():
        positional = [p for p in signature.parameters.values() if p.kind in kinds]
        booleans = [p.name for p in positional if isinstance(p.default, bool)]
        faults += [name] * (len(positional) > 3) + [f"{name}: {b}" for b in booleans]
    assert not faults


def test_every_public_module_is_a_word():
    assert not modules() - set(WORDS), "a new word needs a row in CONTRIBUTING.md and in WORDS here"


@pytest.mark.parametrize("word", sorted(modules() & set(WORDS)))
def test_a_word_is_in_every_layer(word):
    layers = {
        "test": f"tests/test_{word}.py",
        "docs": f"docs/{word}.md",
        "bench": f"benches/bench_{word}.py",
        "core": f"rust/core/src/{word}.rs",
        "py": f"rust/py/src/{word}.rs",
    }
    assert not [layers[k] for k in sorted(WORDS[word]) if not (ROOT / layers[k]).exists()]


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert "version" in project["dynamic"]
    assert stfast.__version__ == version
    text = {f: f.read_text() for f in sources("python/stfast", "rust")}
    assert not [name_of(f) for f, t in text.items() if f'"{version}"' in t]


def test_the_changelog_says_what_and_why():
    entries = re.split(r"^- ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert entries, "CHANGELOG.md has no entry"
    shape = re.compile(r"[\w, *`]+: [A-Z`].*\n\s+\S")
    assert not [e for e in entries if not shape.match(e)], "expected 'area: Sentence', then why"


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=name_of)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


# --- the rules find faults ---------------------------------------------------------------------


def test_rust_is_measured():
    text = "/// fn doc() {\n#[pyfunction]\nfn a(x: [u8; 2]) -> u8 {\n" + "  '}'; // }\n  1\n}\n"
    assert list(rust_functions(text + "fn b();")) == [("a", 4, True), ("b", 1, False)]
    long = Path("long.rs"), "fn f() {\n" + "x();\n" * 39 + "}\n"
    assert long_functions(*long) == ["long.rs: f has 41 lines, at most 40"]
    assert not long_functions(long[0], long[1].replace("x();\n", "", 1))


def test_python_is_measured():
    text = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x\n" * 39
    assert not long_functions(Path("f.py"), text)
    assert long_functions(Path("f.py"), text + "    x\n") == ["f.py: f has 41 lines, at most 40"]


def test_unsafe_is_seen():
    assert unexplained_unsafe("fn f() {\n  unsafe { g() }\n}") == [2]
    assert not unexplained_unsafe("// SAFETY: g asks for nothing.\nunsafe { g() }")
    assert not unexplained_unsafe('// unsafe { }\nlet s = "unsafe {";\nunsafe fn g() {}')


def test_openings_and_imports_are_seen():
    assert opening(Path("a.rs"), "//! One\n//! two.\n\nfn f() {}") == "One two."
    assert opening(Path("a.rs"), "fn f() {}") == ""
    assert opening(Path("a.py"), "x = 1") == ""
    assert imports("def f():\n    import torch.nn") == {"torch"}
    assert imports("from scipy.sparse import x\nfrom . import y") == {"scipy"}
