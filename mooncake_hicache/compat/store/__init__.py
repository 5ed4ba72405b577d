"""`mooncake.store` over our node: the original's methods and return codes.

    store = MooncakeDistributedStore()
    store.setup("localhost", "http://localhost:8080/metadata", 512 << 20, 128 << 20, "tcp", "",
                "localhost:50051")
    store.put("demo_key", b"Hello Mooncake!")
    store.get("demo_key")

Nothing raises for trouble of the environment: 0 is success, a negative number is not, and
`last_error` says in words what went wrong (it is logged as well). See docs/store.md for what
differs on purpose.
"""

from __future__ import annotations

from mooncake_hicache._core import BufferHandle
from mooncake_hicache.compat.host_memory import MooncakeHostMemAllocator
from mooncake_hicache.compat.store.buffer_pool import BufferLease, BufferPool
from mooncake_hicache.compat.store.kinds import (
    Descriptor,
    DiskDescriptor,
    ExistOptions,
    MemoryDescriptor,
    ObjectDataType,
    QueryTaskResponse,
    ReplicaDescriptor,
    ReplicaStatus,
    ReplicateConfig,
    SoftPinAction,
    TaskStatus,
    TaskType,
)
from mooncake_hicache.compat.store.tensors import StoreTensors
from mooncake_hicache.compat.store.unsupported import (
    EngramStore,
    EngramStoreConfig,
    MooncakeDistributedNoFRegister,
    ParallelAxis,
    ReadTarget,
    StoreUnsupported,
    TensorParallelism,
)

__all__ = [
    "BufferHandle",
    "BufferLease",
    "BufferPool",
    "Descriptor",
    "DiskDescriptor",
    "EngramStore",
    "EngramStoreConfig",
    "ExistOptions",
    "MemoryDescriptor",
    "MooncakeDistributedNoFRegister",
    "MooncakeDistributedStore",
    "MooncakeHostMemAllocator",
    "ObjectDataType",
    "ParallelAxis",
    "QueryTaskResponse",
    "ReadTarget",
    "RegisteredBufferLease",
    "RegisteredBufferPool",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
    "TensorParallelism",
]


RegisteredBufferLease, RegisteredBufferPool = BufferLease, BufferPool


class MooncakeDistributedStore(StoreTensors, StoreUnsupported):
    """The original's store. Any thread may call.

    Not usable after `fork()`: make another one in the child.
    """
