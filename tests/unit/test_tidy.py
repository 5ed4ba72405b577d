"""The rules of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mooncake_hicache"

LINE_LENGTH_MAX = 100
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# Functions over the limit, with the length they must not exceed: entries go, none is added.
LONG_FUNCTIONS: dict[str, int] = {}

# C++: a folder may include from itself and from these.
CPP_LAYERS: dict[str, set[str]] = {
    "base": set(),
    "io": {"base"},
    "net": {"base", "io"},
    "transfer": {"base", "io", "net"},
    "tier": {"base", "io"},
    "directory": {"base", "io", "net", "tier"},
    "store": {"base", "io", "net", "transfer", "tier", "directory"},
    "bind": {"base", "io", "net", "transfer", "tier", "directory", "store"},
}

# Pure: no I/O, no thread, no clock, no randomness; all that comes in as arguments.
CPP_PURE = (
    "tier/extent",
    "tier/eviction",
    "tier/key_table",
    "tier/orphan_table",
    "tier/page_hash",
    "tier/slot_allocator",
    "tier/ssd_format",
    "tier/ssd_index",
    "tier/write_budget",
    "directory/directory.",
    "directory/directory_members",
    "directory/directory_types",
    "directory/record_array",
    "directory/replica_table",
    "store/announcer",
    "store/lease_table",
    "tier/page_listener",
    "transfer/tcp/op_table",
    "transfer/tcp/tcp_frame",
    "transfer/batch_table",
    "transfer/rail_choice",
    "transfer/rail_distance",
    "transfer/topology",
)
CPP_IMPURE_HEADERS = re.compile(
    r"<(sys/|linux/|unistd|fcntl|poll|thread|mutex|atomic|condition_variable|chrono|ctime|random"
    r"|time\.h|fstream|iostream|cstdio)|\"(io|net)/|\"base/clock"
)

# Python: a module (or folder) of the package may import from itself and from these. What only type
# checkers import does not count.
BOTTOM = {"errors", "units", "version"}
CORE = BOTTOM | {"machine", "options_types", "options_base", "config", "_core"}
PYTHON_LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "units": {"errors"},
    "machine": BOTTOM,
    "options_types": BOTTOM,
    "options_base": BOTTOM | {"options_types"},
    "options_master": BOTTOM | {"options_types", "options_base"},
    "config": BOTTOM | {"machine", "options_types", "options_base", "options_master"},
    "buffers": BOTTOM,
    "pages": BOTTOM | {"_core"},
    "ssd": BOTTOM,
    "web": BOTTOM,
    "topology": BOTTOM,
    "metadata": BOTTOM | {"web"},
    "arguments": BOTTOM | {"pages"},
    "metrics": CORE,
    # Of a node in a cluster, what it tells the core: imported then alone.
    "node": CORE | {"metrics", "ssd", "web", "master", "metadata", "secret", "transfer_core"},
    "namespace": CORE | {"arguments", "pages", "buffers"},
    "supervisor": CORE | {"node"},
    "store": CORE | {"arguments", "pages", "buffers", "namespace", "metrics", "node", "supervisor"},
    "secret": CORE | {"node"},
    "transfer_core": CORE | {"buffers", "secret", "topology"},
    "segment": CORE | {"arguments", "buffers", "transfer_core"},
    "transfer": CORE | {"arguments", "buffers", "transfer_core", "segment"},
    "master": CORE | {"metadata", "metrics", "options_master", "secret", "transfer_core", "web"},
    "p2p": CORE | {"arguments", "buffers", "metadata", "secret", "segment", "transfer"},
    "compat": CORE
    | {"metadata", "topology", "segment", "transfer", "transfer_core", "p2p"}
    | {"node", "store", "master", "options_master", "web", "metrics"},
    "sglang": CORE | {"pages", "buffers", "namespace", "metadata", "metrics", "node", "store"},
    "cli": CORE
    | {"pages", "ssd", "topology", "metadata", "metrics", "node", "namespace", "store", "sglang"}
    | {"p2p", "master", "secret"},
    "__main__": {"cli"},
    "__init__": CORE | {"namespace", "store", "segment", "transfer"},
}

BANNED_NAMES = {"block", "chunk", "handle", "manager", "data", "info"}
# Of the original's modules `mooncake.engine` and `mooncake.store`.
ORIGINAL_NAMES = {"ReceivedData", "BufferHandle", "ObjectDataType"}
# Of its arguments, which callers may name.
ORIGINAL_ARGUMENTS = {("mooncake_hicache/compat/store/buffer_pool.py", "block")}
BANNED_CALLS_PYTHON = {"eval", "exec", "os.system", "pickle.loads", "pickle.load", "breakpoint"}
BANNED_CPP = {
    r"\b(u|nano)?sleep\s*\(|sleep_for|sleep_until": "waits for time instead of for a condition",
    r"\bnew\s+[A-Za-z_:]+\s*[({;\[]": "owns memory by hand",
    r"\bdelete\s+[a-z]|\bdelete\[\]": "owns memory by hand",
    r"\bstd::cout\b|\bprintf\s*\(|\bstd::cerr\b": "prints",
    r"\bstrcpy\s*\(|\bsprintf\s*\(|\bsystem\s*\(": "is unsafe",
    r"-march=|#pragma GCC optimize": "builds for this machine only",
}


def sources(*suffixes: str) -> list[Path]:
    """Return the repository's own files with these suffixes."""
    folders = ("mooncake_hicache", "csrc", "tests", "bench", "tools")
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


CODE = sources(".py", ".cc", ".h")
CPP = sources(".cc", ".h")
PYTHON = sources(".py")


def report(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(findings)


# ---- size and looks


def test_files_are_short() -> None:
    lengths = [(len(lines_of(path)), name_of(path)) for path in CODE]
    report([f"{name}: {n} lines" for n, name in lengths if n > FILE_LINES_MAX])


def test_lines_are_short() -> None:
    report(
        [
            f"{name_of(path)}:{number}: {len(line)} columns"
            for path in [*CODE, *sources(".sh"), ROOT / "csrc/CMakeLists.txt"]
            for number, line in enumerate(lines_of(path), 1)
            if len(line) > LINE_LENGTH_MAX
        ]
    )


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def cpp_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield functions defined at the left edge, which is where clang-format puts them."""
    start, name = 0, ""
    for number, line in enumerate(lines_of(path), 1):
        if re.match(r"[A-Za-z].*\(", line) and not re.match(
            r"(namespace|class|struct|enum|extern|using|typedef|static_assert|TEST|#)", line
        ):
            start = number
            found = re.search(r"([\w:~]+)\s*\(", line)
            name = found.group(1) if found else "?"
        elif line == "}" and start:
            yield name, number - start + 1
            start = 0
        elif re.match(r"[^\s/].*;\s*$", line):
            start = 0


def test_functions_are_short() -> None:
    findings, met = [], set()
    for path in CODE:
        functions = python_functions(path) if path.suffix == ".py" else cpp_functions(path)
        for name, length in functions:
            key = f"{name_of(path)}:{name}"
            met.add(key)
            if length > LONG_FUNCTIONS.get(key, FUNCTION_LINES_MAX):
                findings.append(f"{key}: {length} lines")
    findings += [f"LONG_FUNCTIONS names {key}, which is gone" for key in set(LONG_FUNCTIONS) - met]
    report(findings)


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    report(
        [
            f"{name_of(path)}:{number}: {line.strip()}"
            for path in [*CODE, *sources(".sh")]
            for number, line in enumerate(lines_of(path), 1)
            if mark.search(line)
        ]
    )


# ---- layers


def test_cpp_includes_go_down() -> None:
    findings = []
    for path in sorted((ROOT / "csrc").rglob("*.[hc]*")):
        if path.suffix not in (".h", ".cc"):
            continue
        layer = path.relative_to(ROOT / "csrc").parts[0]
        assert layer in CPP_LAYERS, f"{name_of(path)}: a folder without a layer"
        for number, line in enumerate(lines_of(path), 1):
            found = re.match(r'#include "([^"/]+)/', line)
            if found and found.group(1) not in CPP_LAYERS[layer] | {layer}:
                findings.append(f"{name_of(path)}:{number}: {layer} must not include {line[9:]}")
    report(findings)


def test_python_and_exceptions_stay_in_bind() -> None:
    outside = [path for path in CPP if "csrc" in path.parts and "bind" not in path.parts]
    report(
        [
            f"{name_of(path)}:{number}: {line.strip()}"
            for path in outside
            for number, line in enumerate(lines_of(path), 1)
            if re.search(r"nanobind|Python\.h|^\s*throw\b|\btry \{", line)
        ]
    )


def test_pure_units_are_pure() -> None:
    findings = []
    for prefix in CPP_PURE:
        files = list((ROOT / "csrc").glob(f"{prefix}*"))
        assert files, f"CPP_PURE names {prefix}, which is gone"
        findings += [
            f"{name_of(path)}:{number}: {line}"
            for path in files
            for number, line in enumerate(lines_of(path), 1)
            if line.startswith("#include") and CPP_IMPURE_HEADERS.search(line)
        ]
    report(findings)


def runtime_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, except those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        else:
            yield from runtime_imports(node)


def test_python_imports_go_down() -> None:
    findings = []
    for path in (p for p in PYTHON if PACKAGE in p.parents):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert layer in PYTHON_LAYERS, f"{name_of(path)}: a module without a layer"
        for number, name in runtime_imports(ast.parse(path.read_text(encoding="utf-8"))):
            parts = name.split(".")
            if parts[0] == "mooncake_hicache" and parts[1] in PYTHON_LAYERS | {"_core": set()}:
                if parts[1] not in PYTHON_LAYERS[layer] | {layer}:
                    findings.append(f"{name_of(path)}:{number}: {layer} must not import {name}")
            elif parts[0] in ("sglang", "torch") and layer != "sglang":
                findings.append(f"{name_of(path)}:{number}: only sglang/ imports {parts[0]}")
    report(findings)


# ---- words and calls


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.end_lineno or node.lineno, node.attr


def test_names_are_of_the_glossary() -> None:
    findings = []
    for path in PYTHON:
        for number, name in defined_names(ast.parse(path.read_text(encoding="utf-8"))):
            if name in ORIGINAL_NAMES or (name_of(path), name) in ORIGINAL_ARGUMENTS:
                continue
            words = {name} if not name[:1].isupper() else set(re.findall("[A-Z][a-z]+", name))
            if {word.lower().strip("_") for word in words} & BANNED_NAMES:
                findings.append(f"{name_of(path)}:{number}: {name}")
    typed = r"(?:[\w>&*]+)\s+[&*]?(?:" + "|".join(BANNED_NAMES) + r")_?\s*[=;,)\[{]"
    named = r"\b(?:class|struct|enum class)\s+\w*(?:Block|Chunk|Handle|Manager|Data|Info)\b"
    for path in CPP:
        for number, line in enumerate(lines_of(path), 1):
            code = line.split("//")[0]
            if (re.search(typed, code) and "return" not in code) or re.search(named, code):
                findings.append(f"{name_of(path)}:{number}: {line.strip()}")
    report(findings)


def test_no_banned_call() -> None:
    findings = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            inside = PACKAGE in path.parents and "cli" not in path.parts
            if call in BANNED_CALLS_PYTHON or (call == "print" and inside):
                findings.append(f"{name_of(path)}:{node.lineno}: {call}()")
    for path in (p for p in CPP if "csrc" in p.parts):
        before = ""
        for number, line in enumerate(lines_of(path), 1):
            code = line.split("//")[0]
            # A private constructor can only be called with `new`, straight into its owner; and what
            # Python shall own is made with `new`.
            owned = "unique_ptr" in before + code or "bind" in path.parts
            findings += [
                f"{name_of(path)}:{number}: {why}: {line.strip()}"
                for pattern, why in BANNED_CPP.items()
                if re.search(pattern, code) and not (owned and "by hand" in why)
            ]
            before = code
    report(findings)


@pytest.mark.timeout(1200)  # A minute where nothing else runs.
def test_headers_compile_alone(tmp_path: Path) -> None:
    """Each header names what it needs: compiled alone, in any order, it stands."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    headers = [p for p in CPP if p.suffix == ".h" and "csrc" in p.parts and "bind" not in p.parts]
    units = []
    for number, header in enumerate(headers):
        unit = tmp_path / f"{number}.cc"
        unit.write_text(f'#include "{header.relative_to(ROOT / "csrc")}"\n', encoding="utf-8")
        units.append(str(unit))
    command = [compiler, "-std=c++20", "-fsyntax-only", "-DXXH_INLINE_ALL", f"-I{ROOT / 'csrc'}"]
    shares = [units[first :: os.cpu_count() or 1] for first in range(os.cpu_count() or 1)]
    compilers = [
        subprocess.Popen([*command, *share], stderr=subprocess.PIPE, text=True)
        for share in shares
        if share
    ]
    complaints = [one.communicate()[1] for one in compilers]
    assert [one.returncode for one in compilers] == [0] * len(compilers), "".join(complaints)
