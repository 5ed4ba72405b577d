"""The P2P store: memory of one process, read by many, each of which becomes a source.

    # at one end                                  # at any number of others
    store = P2PStore("etcd://etcd:2379")          store = P2PStore("etcd://etcd:2379")
    store.register("weights", arrays)             weights = store.get_replica("weights").array

Who has what is in a catalogue in etcd; bytes go from memory to memory over the transfer engine, in
pieces with checksums, from all who have them at once.
"""

from __future__ import annotations

from mooncake_hicache.p2p.fetch import Progress
from mooncake_hicache.p2p.store import Listed, P2PStore, Replica

__all__ = ["Listed", "P2PStore", "Progress", "Replica"]
