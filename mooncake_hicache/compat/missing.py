"""Modules of the original's wheel that the drop-in does not have: importing one says what to do.

Without this the message would be "No module named 'mooncake.pg'", which callers turn into "please
install mooncake". What is raised is still a ModuleNotFoundError, so whoever tries a module to see
whether it is there goes on as before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["MISSING", "MissingModules", "explain_missing_modules"]

_STORE = "it is not part of it: put() and get() of mooncake.store are"
_CUDA = "expert parallelism and process groups on GPUs are not part of it"
_CONNECTOR = "connectors and proxies come with vLLM itself nowadays"
_SPDK = "NVMe over fabrics is not part of it; local disks are the option `ssd` of mooncake-hicache"

MISSING = {
    "allocator": (
        "GPU allocators for NVLink are not part of it: leave SGLANG_MOONCAKE_CUSTOM_MEM_POOL unset"
    ),
    "cli": "use the command mooncake-hicache",
    "cli_bench": "use transfer_engine_bench",
    "cli_client": "use mooncake_client",
    "dataproto_catalog": _STORE,
    "ep": _CUDA,
    "fabric_allocator_utils": _CUDA,
    "mooncake_connector_v1": _CONNECTOR,
    "mooncake_elastic_buffer": _CUDA,
    "mooncake_ep_buffer": _CUDA,
    "mooncake_ssd_register": _SPDK,
    "mooncake_ssd_unregister": _SPDK,
    "pg": _CUDA,
    "registered_buffer_pool": "use mooncake.buffer_pool",
    "remote_tensor_batch": "it is not part of it: read ranges with get_into_ranges() of the store",
    "reshard": _STORE,
    "shared_segment": "use mooncake.engine: on one machine it maps managed buffers by itself",
    "spdk_tgt_create": _SPDK,
    "store_file_io": "use save_tensor_to_safetensor() and its counterpart of the store",
    "structured_object_store": _STORE,
    "vllm_v1_proxy_server": _CONNECTOR,
}
"""Names below `mooncake`, and what to do instead."""


class MissingModules(MetaPathFinder):
    """Asked last, when nobody else has found a module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError for a module in the table, with its text."""
        del path, target
        package, _, name = fullname.partition(".")
        if package == "mooncake" and name in MISSING:
            raise ModuleNotFoundError(
                f"mooncake-hicache-dropin has no {fullname}: {MISSING[name]}", name=fullname
            )


def explain_missing_modules() -> None:
    """From now on imports of these modules fail with a text that helps."""
    if not any(isinstance(finder, MissingModules) for finder in sys.meta_path):
        sys.meta_path.append(MissingModules())
