"""Collect what the GPU machine lacks into one folder: `python3 -m bench.gpu.prepare [FOLDER]`.

`--sglang 0.5.23` takes that release in place of 0.5.17, for the external linker, which 0.5.17 does
not have. It pins a newer torch than the machine's; with its tree in Python and the kernels of
0.5.17 it runs there all the same.

The machine has torch and CUDA but no network, and at most 64 MiB travel to it. The folder (57 MiB,
`.carry` by default, which git ignores) then holds:

    whl/*.whl       what SGLang and we import and the machine does not have (wheels.txt)
    sglang.tar.xz   SGLang without its image and video part, with stand-ins for two packages
    kernel.tar.xz   its CUDA kernels, for Hopper only (18 MB of 383)
    libraries.tar.xz  xxhash.h, liburing, verbs.h and OpenSSL, for the build of our core

Takes about 2 minutes and 1 GB of disk. Raises CalledProcessError when a download fails.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Release(NamedTuple):
    """What a release of SGLang wants that others do not."""

    wheels: tuple[str, ...]
    """In place of what is in wheels.txt."""
    stand_ins: dict[str, str]
    """Packages that its CUDA branch imports names of at module level, all of them large, and calls
    none of with `--attention-backend triton --sampling-backend pytorch --grammar-backend none`."""
    is_adapted: bool
    """It pins another torch than the machine's: what was compiled for that one stays behind."""


RELEASES = {
    "0.5.17": Release((), {"flashinfer": "0.6.15.post1", "xgrammar": "0.2.1"}, False),
    "0.5.23": Release(
        (
            *("transformers==5.19.0", "tokenizers==0.23.2"),
            *("openai==2.8.0", "compressed_tensors==0.18.0"),
        ),
        {"flashinfer": "0.7.2", "xgrammar": "0.2.7", "cutlass": "4.8.0"},
        True,
    ),
}
KERNEL = "sglang-kernel==0.4.5"
WHEELS = Path(__file__).with_name("wheels.txt")
# What our core is built with: from this machine's packages, under the same names below `include`.
HEADERS = Path("/usr/include")
HEADER_NAMES = (
    *("xxhash.h", "liburing.h", "liburing", "infiniband"),
    *("openssl", "x86_64-linux-gnu/openssl"),
)
ARCHIVE_NAMES = ("liburing.a", "libssl.a", "libcrypto.a")
ARCHIVE_FOLDERS = ("lib/x86_64-linux-gnu", "lib64", "lib")
PLATFORMS = [
    *(f"--platform=manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)),
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux1_x86_64",
]

# A kernel for Blackwell alone, which asks more of its package than a stand-in can give.
DUAL_GEMM = "sglang/srt/layers/dual_gemm.py"
DUAL_GEMM_CHOICE = "        if not is_cuda():\n            return None\n"
# Kernels that came after ours; none is called with the flags above.
KERNEL_FALLBACK = """

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def missing(*args, **kwargs):
        raise NotImplementedError(f"{__name__}.{name}: not in this release of the kernels")
    return missing
"""
STAND_IN = '''"""Import-only stand-in: whoever calls into it gets an error."""
import importlib.machinery, sys
__version__ = "{version}"


def _attr(module):
    def get(name):
        if name.startswith("__"):
            raise AttributeError(name)
        def missing(*args, **kwargs):
            raise NotImplementedError(f"{{module}}.{{name}}: stand-in")
        missing.__name__ = name
        return missing
    return get


class _Loader:
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__path__ = []
        module.__getattr__ = _attr(module.__name__)


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("{name}."):
            return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)


sys.meta_path.append(_Finder())
__getattr__ = _attr(__name__)
'''


def download(folder: Path, *what: str) -> None:
    """Download wheels for the GPU machine's Python, without their dependencies."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        + ["--python-version", "3.12", "--implementation", "cp", *PLATFORMS]
        + ["-d", str(folder), *what],
        check=True,
    )


def extract(wheel: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    """Extract the files of a wheel that are wanted."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if wanted(name)])


def pack(archive: Path, folder: Path) -> None:
    """Write a folder's content as tar.xz."""
    with (
        lzma.open(archive, "w", preset=9 | lzma.PRESET_EXTREME) as xz,
        tarfile.open(fileobj=xz, mode="w") as tar,
    ):
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def is_hopper_kernel(name: str) -> bool:
    """Whether a file of the kernel wheel is needed on an H200."""
    if name.endswith(".so"):
        return name.endswith(("sm90/common_ops.abi3.so", "spatial_ops.abi3.so"))
    return ".libs/" not in name


def copy_libraries(out: Path) -> None:
    """Copy headers and archives of the libraries that our core is built with."""
    for folder in (out / "include", out / "lib"):
        folder.mkdir(parents=True)
    for name in HEADER_NAMES:
        source = HEADERS / name
        if source.is_dir():  # Debian keeps some of OpenSSL's headers apart, by architecture.
            shutil.copytree(source, out / "include" / source.name, dirs_exist_ok=True)
        elif source.exists() or "/" not in name:
            shutil.copy(source, out / "include")
    for name in ARCHIVE_NAMES:
        archives = [HEADERS.parent / folder / name for folder in ARCHIVE_FOLDERS]
        shutil.copy(next((path for path in archives if path.exists()), archives[0]), out / "lib")


def wheels_of(release: str) -> list[str]:
    """Return what is downloaded for a release of SGLang."""
    names = [line for line in WHEELS.read_text(encoding="utf-8").split() if line]
    own = {re.split("[=<>]", name)[0]: name for name in RELEASES[release].wheels}
    return [own.get(re.split("[=<>]", name)[0], name) for name in names]


def adapt(sglang: Path, kernel: Path) -> None:
    """Have a newer release do with what the machine has."""
    path = sglang / DUAL_GEMM
    if path.exists():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(DUAL_GEMM_CHOICE, "        return None\n"), encoding="utf-8")
    for path in (kernel / "sgl_kernel").rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8") + KERNEL_FALLBACK, encoding="utf-8")


def prepare(out: Path, release: str) -> None:
    """Fill the folder `out`."""
    sglang = f"sglang=={release}"
    _, stand_ins, is_adapted = RELEASES[release]
    (out / "whl").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        copy_libraries(work / "libraries")
        pack(out / "libraries.tar.xz", work / "libraries")
        print("wheels …", flush=True)
        download(out / "whl", *wheels_of(release))
        print(f"{sglang} …", flush=True)
        download(work, sglang)
        extract(
            next(work.glob("sglang-*.whl")),
            work / "sglang",
            lambda file: (
                not (file.startswith("sglang/multimodal_gen/") or (is_adapted and ".so" in file))
            ),
        )
        for package, version in stand_ins.items():
            folder = work / "sglang" / package
            folder.mkdir()
            text = STAND_IN.format(name=package, version=version)
            (folder / "__init__.py").write_text(text, encoding="utf-8")
        print(f"{KERNEL} …", flush=True)
        download(work, KERNEL)
        extract(next(work.glob("sglang_kernel-*.whl")), work / "kernel", is_hopper_kernel)
        for file in ("elementwise.py", "sampling.py"):  # Its own kernels instead of flashinfer's.
            path = work / "kernel" / "sgl_kernel" / file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("_has_flashinfer = True", "_has_flashinfer = False"))
        if is_adapted:
            adapt(work / "sglang", work / "kernel")
        pack(out / "sglang.tar.xz", work / "sglang")
        pack(out / "kernel.tar.xz", work / "kernel")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 2**20:.1f} MiB in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu.prepare")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".carry"))
    parser.add_argument("--sglang", choices=list(RELEASES), default="0.5.17", help="the release")
    given = parser.parse_args()
    prepare(given.folder.resolve(), given.sglang)
