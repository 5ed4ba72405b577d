"""What SGLang calls in each of its processes: takes over the storage backend named `mooncake`, and
the external linker of that name.

SGLang finds `register` through the entry point group `sglang.srt.plugins`, before it creates any
backend; nothing of SGLang is changed on disk. The environment variable `MOONCAKE_HICACHE_SGLANG`:

* `on` (default): take the name over; if that fails, say so and leave SGLang as it is;
* `required`: the same, but end the process if it fails, because SGLang goes on without a plugin;
* `off`: leave SGLang alone.
"""

from __future__ import annotations

import importlib
import logging
import os

from mooncake_hicache.version import __version__

__all__ = ["ADAPTER_CLASS", "ADAPTER_MODULE", "BACKEND_NAME", "SWITCH_VARIABLE", "register"]

BACKEND_NAME = "mooncake"
ADAPTER_MODULE = "mooncake_hicache.sglang.adapter"
ADAPTER_CLASS = "MooncakeHiCacheStore"
SWITCH_VARIABLE = "MOONCAKE_HICACHE_SGLANG"

_REUSE_ENGINE_VARIABLE = "SGLANG_HICACHE_MOONCAKE_REUSE_TE"
_SWITCH_VALUES = ("on", "off", "required")

logger = logging.getLogger(__name__)


def register() -> None:
    """Take over the backend name `mooncake` in this process. May be called again.

    Imports SGLang's factory and the compiled core, and nothing else that is heavy: the adapter is
    imported when a backend is created.

    Raises:
        SystemExit: it cannot be done and `MOONCAKE_HICACHE_SGLANG=required`.
    """
    switch = os.environ.get(SWITCH_VARIABLE, "on").strip().lower() or "on"
    if switch not in _SWITCH_VALUES:
        logger.error(
            "%s=%s is not one of %s; taken as on",
            SWITCH_VARIABLE,
            switch,
            ", ".join(_SWITCH_VALUES),
        )
    if switch == "off":
        logger.info("mooncake-hicache is off (%s=off)", SWITCH_VARIABLE)
        return
    try:
        _take_over()
    except Exception as error:
        message = (
            f"mooncake-hicache {__version__} cannot serve --hicache-storage-backend "
            f"{BACKEND_NAME}: {error!r}. Reinstall mooncake-hicache in the environment that runs "
            f"sglang (0.5.17 to 0.5.23), or set {SWITCH_VARIABLE}=off to run without it"
        )
        if switch == "required":
            # Not an Exception: SGLang logs those and goes on with its own adapter.
            raise SystemExit(message) from error
        logger.exception("%s", message)
        return
    logger.info(
        "mooncake-hicache %s serves --hicache-storage-backend %s (%s=off switches it off)",
        __version__,
        BACKEND_NAME,
        SWITCH_VARIABLE,
    )


def _take_over() -> None:
    # A core that does not load must show now: later there is only a backend that fails.
    importlib.import_module("mooncake_hicache._core")
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    # With this name the engine would load Mooncake's transfer engine at start, and end without it.
    os.environ.setdefault(_REUSE_ENGINE_VARIABLE, "0")
    entry = {"module_path": ADAPTER_MODULE, "class_name": ADAPTER_CLASS}
    registered = StorageBackendFactory._registry.get(BACKEND_NAME, {})
    if {key: registered.get(key) for key in entry} != entry:
        # Registering over a name makes the factory warn about it; this one is meant.
        StorageBackendFactory._registry.pop(BACKEND_NAME, None)
        StorageBackendFactory.register_backend(BACKEND_NAME, **entry)
    from mooncake_hicache.sglang import allocator, linker_plugin, weights

    allocator.use_default_for(BACKEND_NAME)
    linker_plugin.take_over(BACKEND_NAME)
    weights.watch()
