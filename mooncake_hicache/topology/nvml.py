"""Which GPUs this process may use, and how it numbers them: NVML where it is, and the environment.

In a container sysfs shows every GPU of the host; NVML knows those that are ours.
CUDA_VISIBLE_DEVICES then numbers them anew for this process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mooncake_hicache.topology.sysfs import Gpu

__all__ = ["NvmlGpu", "gpus_of_nvml", "gpus_of_process", "gpus_with_nvml"]

NvmlGpu = tuple[str, str, str]
"""PCI address, UUID and model of one GPU."""


def gpus_of_nvml() -> list[NvmlGpu] | None:
    """Return the GPUs in NVML's order; None if NVML, or its Python binding, is not here."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            address = _text(pynvml.nvmlDeviceGetPciInfo(gpu).busId)
            uuid = _text(pynvml.nvmlDeviceGetUUID(gpu))
            found.append((_as_sysfs(address), uuid, _text(pynvml.nvmlDeviceGetName(gpu))))
        return found
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _as_sysfs(address: str) -> str:
    # NVML writes the domain with eight digits, sysfs with four unless it needs more.
    domain, _, rest = address.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def gpus_with_nvml(gpus: Sequence[Gpu], told: Sequence[NvmlGpu] | None) -> tuple[Gpu, ...]:
    """Return the GPUs that NVML knows, in its order; those of sysfs where it is not here."""
    if told is None:
        return tuple(gpus)
    by_address = {gpu.place.pci: gpu for gpu in gpus}
    return tuple(
        replace(by_address[address], index=index, uuid=uuid, model=model)
        for index, (address, uuid, model) in enumerate(told)
        if address in by_address
    )


def gpus_of_process(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs as a process with this environment numbers them.

    As CUDA does it: what follows the first entry that names no GPU is invisible.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in visible.split(","):
        gpu = _named(gpus, entry.strip())
        if gpu is None or gpu.place in [one.place for one in found]:
            break
        found.append(replace(gpu, index=len(found)))
    return tuple(found)


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if re.fullmatch(r"[0-9]{1,4}", entry):
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    # A beginning of the UUID is enough if it is the only one.
    matching = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None
