"""What SGLang imports and a CPU-only environment does not have."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from unittest import mock

import torch


def prepare_process() -> None:
    """Supply triton and torchvision's operators where they are missing."""
    if "triton" not in sys.modules and importlib.util.find_spec("triton") is None:
        _stub_triton()
    if torch.version.cuda is None:
        _declare_torchvision_operators()


def _stub_triton() -> None:
    """Install SGLang's import stub for triton, which it offers on a Mac: so this looks like one."""
    sglang = importlib.util.find_spec("sglang")
    assert sglang is not None and sglang.submodule_search_locations
    source = Path(sglang.submodule_search_locations[0]) / "_platform_stubs.py"
    spec = importlib.util.spec_from_file_location("_sglang_platform_stubs", source)
    assert spec is not None and spec.loader is not None
    stubs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = stubs
    spec.loader.exec_module(stubs)
    stubs._patch_non_blocking = lambda: None  # A Mac's need, not ours.
    with (
        mock.patch.object(sys, "platform", "darwin"),
        mock.patch.object(platform, "machine", lambda: "arm64"),
        mock.patch.object(torch.backends.mps, "is_available", lambda: True),
    ):
        stubs.install_platform_stubs()
    triton = sys.modules.get("triton")
    if triton is not None and triton.__spec__ is None:  # importlib.util.find_spec("triton") asks.
        triton.__spec__ = importlib.util.spec_from_loader("triton", loader=None, is_package=True)


def _declare_torchvision_operators() -> None:
    """Declare what torchvision looks up while it loads; its compiled half needs the CUDA build."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        except RuntimeError:  # Declared already: the CPU build of torchvision has it.
            continue
