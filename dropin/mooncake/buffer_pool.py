"""`mooncake.buffer_pool`: see `mooncake_hicache.compat.store.buffer_pool`."""

from mooncake_hicache.compat.store import BufferPool, RegisteredBufferPool

__all__ = ["BufferPool", "RegisteredBufferPool"]
