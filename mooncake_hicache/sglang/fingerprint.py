"""A digest of a model's files, without reading all of them.

Two models that differ anywhere must differ here, as far as samples can tell: a fine-tune may touch
a few tensors only, so of safetensors files every tensor is sampled. What cannot be looked into that
way counts with its time of change: a copy of it is then another model, which only makes misses.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

__all__ = ["file_digest", "model_fingerprint"]

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# Written by whoever saved the folder last; they do not change what the model computes.
_CONFIG_KEYS_IGNORED = ("_name_or_path", "transformers_version")

# Bounds the start: a model of hundreds of files on a network file system must not hold it up.
_SAMPLES_MAX = 4096
_SAMPLE_SIZE = 64
_SAMPLES_PER_TENSOR_MAX = 8
_SECONDS_MAX = 20.0
_HEADER_SIZE_MAX = 64 << 20


@cache
def model_fingerprint(model: str, revision: str | None = None) -> str | None:
    """Return a digest of what is in a model's folder, or None if there is none to read.

    It covers the configuration and, of the weight files, names, sizes and samples from inside every
    tensor, so that a model that was trained further or another one served under the same name is
    told apart. Of safetensors files it does not depend on where the folder lies. Blocks for some
    seconds if the disk is slow; the reads are bounded in number, and None is returned if they take
    longer than 20 s.
    """
    folder = _model_folder(model, revision)
    if folder is None:
        return None
    digest = hashlib.blake2b(digest_size=16, person=b"hicache-model-2")
    try:
        if folder.is_file():
            weights = [folder]
        else:
            digest.update(_configuration(folder / "config.json"))
            weights = sorted(f for f in folder.iterdir() if f.suffix in _WEIGHT_SUFFIXES)
        if not weights:
            # Whatever is in there, it is not known how to tell it from others.
            return None
        for piece in _weights(weights, time.monotonic() + _SECONDS_MAX):
            digest.update(piece)
    except (OSError, TimeoutError):
        return None
    return digest.hexdigest()


def file_digest(path: str) -> str | None:
    """Return a digest of all of a small file, or None if it cannot be read."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _weights(files: Sequence[Path], end_s: float) -> Iterator[bytes]:
    """Yield what tells these files from others, within `_SAMPLES_MAX` reads of their content."""
    tensors: list[tuple[Path, int, int]] = []
    for file in files:
        status = file.stat()
        yield f"{file.name}:{status.st_size}\n".encode()
        header = _safetensors_header(file, status.st_size)
        if header is None:
            yield f"{status.st_mtime_ns}\n".encode()
            tensors.append((file, 0, status.st_size))
            continue
        raw, spans = header
        yield raw
        tensors += [(file, begin, size) for begin, size in spans]
        _check_time(end_s)
    per_tensor = min(_SAMPLES_PER_TENSOR_MAX, _SAMPLES_MAX // max(1, len(tensors)))
    if per_tensor == 0:
        # More tensors than reads: most go unseen, so the time of change must speak for them.
        yield "".join(f"{file.stat().st_mtime_ns}\n" for file in files).encode()
        tensors, per_tensor = tensors[:: -(-len(tensors) // _SAMPLES_MAX)], 1
    yield from _samples(tensors, per_tensor, end_s)


def _samples(
    tensors: Sequence[tuple[Path, int, int]], per_tensor: int, end_s: float
) -> Iterator[bytes]:
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for file, begin, size in tensors:
        by_file.setdefault(file, []).append((begin, size))
    for file, spans in by_file.items():
        # Without read-ahead, a sample costs what it takes and no more.
        with file.open("rb", buffering=0) as opened:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for begin, size in spans:
                for number in range(per_tensor):
                    # The middle of each of as many equal parts.
                    offset = max(0, size * (2 * number + 1) // (2 * per_tensor) - _SAMPLE_SIZE // 2)
                    length = min(_SAMPLE_SIZE, size - offset)
                    yield os.pread(opened.fileno(), length, begin + offset)
                _check_time(end_s)


def _safetensors_header(file: Path, size: int) -> tuple[bytes, list[tuple[int, int]]] | None:
    """Return the header of a safetensors file and where its tensors lie, or None if it is none."""
    if file.suffix != ".safetensors" or size < 8:
        return None
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_HEADER_SIZE_MAX, size - 8):
            return None
        raw = opened.read(length)
    try:
        entries = json.loads(raw)
        offsets = [e["data_offsets"] for n, e in entries.items() if n != "__metadata__"]
        spans = [(8 + length + int(begin), int(end) - int(begin)) for begin, end in offsets]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if any(begin < 8 + length or extent < 0 or begin + extent > size for begin, extent in spans):
        return None
    return raw, sorted(spans)


def _check_time(end_s: float) -> None:
    if time.monotonic() > end_s:
        raise TimeoutError


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
