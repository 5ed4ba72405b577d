"""What a running SGLang server says about its model, in any of the versions supported."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path

__all__ = ["engine_version", "model_fingerprint", "server_option"]

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# Bounds the start: a model of hundreds of files on a network file system must not hold it up.
_SAMPLED_FILES_MAX = 8
_SAMPLE_SIZE = 4096
# Written by whoever saved the folder last; they do not change what the model computes.
_CONFIG_KEYS_IGNORED = ("_name_or_path", "transformers_version")


def server_option(name: str) -> object:
    """Return the value of a server argument, or None if there is no server or no such argument."""
    arguments = _server_arguments()
    try:
        return getattr(arguments, name, None)
    except Exception:  # noqa: BLE001 - a sealed field in a version not seen yet means "not known"
        return None


def _server_arguments() -> object | None:
    # 0.5.23 keeps them in the runtime context and raises in the accessor that 0.5.17 has.
    try:
        from sglang.srt.runtime_context import get_server_args

        arguments: object = get_server_args()
        return arguments
    except Exception:  # noqa: BLE001 - absent in older versions, unset in tests
        pass
    try:
        from sglang.srt.server_args import get_global_server_args

        older: object = get_global_server_args()
        return older
    except Exception:  # noqa: BLE001
        return None


@cache
def engine_version() -> str:
    """Return the version of SGLang, or `unknown`."""
    try:
        from sglang.version import __version__

        return str(__version__)
    except Exception:  # noqa: BLE001
        return "unknown"


@cache
def model_fingerprint(model: str, revision: str | None = None) -> str | None:
    """Return a digest of what is in a model's folder, or None if there is none to read.

    It covers the configuration and, of the weight files, names, sizes and a few samples, so that a
    model that was trained further or another one served under the same name is told apart. It does
    not depend on where the folder lies. Reads at most 100 KiB besides the configuration.
    """
    folder = _model_folder(model, revision)
    if folder is None:
        return None
    digest = hashlib.blake2b(digest_size=16, person=b"hicache-model-1")
    try:
        if folder.is_file():
            weights = [folder]
        else:
            digest.update(_configuration(folder / "config.json"))
            weights = sorted(f for f in folder.iterdir() if f.suffix in _WEIGHT_SUFFIXES)
        for file in weights:
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        step = max(1, -(-len(weights) // _SAMPLED_FILES_MAX))
        for file in weights[::step]:
            digest.update(_sample(file))
    except OSError:
        return None
    return digest.hexdigest()


def _model_folder(model: str, revision: str | None) -> Path | None:
    path = Path(model)
    if path.exists():
        return path
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except Exception:  # noqa: BLE001 - no such package, or not a repository's name
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _configuration(path: Path) -> bytes:
    if not path.exists():
        return b""
    raw = path.read_bytes()
    try:
        values = json.loads(raw)
    except ValueError:
        return raw
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if k not in _CONFIG_KEYS_IGNORED}
    return json.dumps(values, sort_keys=True).encode()


def _sample(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        samples = []
        for offset in (0, size // 2, max(0, size - _SAMPLE_SIZE)):
            file.seek(offset)
            samples.append(file.read(_SAMPLE_SIZE))
    return b"".join(samples)
