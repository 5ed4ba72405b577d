"""The small types of `mooncake.store`: options of a write, what describes replicas and tasks."""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Descriptor",
    "DiskDescriptor",
    "ExistOptions",
    "MemoryDescriptor",
    "ObjectDataType",
    "QueryTaskResponse",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
]

_UINT64_MAX = 2**64 - 1


class _Kind(enum.IntEnum):
    """A number that is shown by its name, as the original's are."""

    __str__ = enum.Enum.__str__


class ObjectDataType(_Kind):
    """What an object is; kept nowhere, as in the original's client."""

    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9


class SoftPinAction(_Kind):
    """Whether a write makes an object one that is evicted only when nothing else is left."""

    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2


class ReplicaStatus(_Kind):
    """The state of a copy. What is reported here is always COMPLETE."""

    UNDEFINED = 0
    INITIALIZED = 1
    PROCESSING = 2
    COMPLETE = 3
    REMOVED = 4
    FAILED = 5


class TaskType(_Kind):
    """What a task does."""

    REPLICA_COPY = 0
    REPLICA_MOVE = 1


class TaskStatus(_Kind):
    """How far a task is."""

    PENDING = 0
    PROCESSING = 1
    SUCCESS = 2
    FAILED = 3


class ReplicateConfig:
    """How an object is stored. All attributes may be set; there is no constructor with names.

    What counts here: `with_hard_pin`, `soft_pin_action`, and `replica_num` (up to 8; the copies are
    made by other nodes after the put has returned, as far as they have room, and again when one is
    lost). A soft pin lasts as long as the
    object, whatever `soft_pin_ttl_ms` says. Where an object lies is the node's decision, and it is
    evicted by its own use and not by its group's, so that nobody looks at preferred segments, and
    of `group_ids` only at whether there are as many as keys.
    """

    def __init__(self) -> None:
        self.replica_num = 1
        self.nof_replica_num = 0
        self.dfs_replica_num = 0
        self.soft_pin_action = SoftPinAction.PRESERVE
        self._soft_pin_ttl_ms: int | None = None
        self.with_hard_pin = False
        self.preferred_segments: list[str] = []
        self.preferred_nof_segments: list[str] = []
        self.preferred_segment = ""
        self.prefer_alloc_in_same_node = False
        self.data_type = ObjectDataType.UNKNOWN
        self.group_ids: Sequence[str] | None = None

    @property
    def with_soft_pin(self) -> bool:
        """What `soft_pin_action` was in older releases of the original."""
        return self.soft_pin_action == SoftPinAction.ENABLE

    @with_soft_pin.setter
    def with_soft_pin(self, value: bool) -> None:
        self.soft_pin_action = SoftPinAction.ENABLE if value else SoftPinAction.PRESERVE

    @property
    def soft_pin_ttl_ms(self) -> int | None:
        """Kept for whoever sets it."""
        return self._soft_pin_ttl_ms

    @soft_pin_ttl_ms.setter
    def soft_pin_ttl_ms(self, value: int | None) -> None:
        if value is not None:
            value = operator.index(value)
            if not 0 <= value <= _UINT64_MAX:
                raise TypeError(f"soft_pin_ttl_ms is {value}: give 0 to 2**64 - 1, or None")
        self._soft_pin_ttl_ms = value

    def __str__(self) -> str:
        ttl = "default" if self._soft_pin_ttl_ms is None else self._soft_pin_ttl_ms
        deprecated = (
            f"preferred_segment (deprecated): {self.preferred_segment}, "
            if self.preferred_segment
            else ""
        )
        return (
            f"ReplicateConfig: {{ replica_num: {self.replica_num}, "
            f"nof_replica_num: {self.nof_replica_num}, dfs_replica_num: {self.dfs_replica_num}, "
            f"soft_pin_action: {SoftPinAction(self.soft_pin_action).name}, "
            f"soft_pin_ttl_ms: {ttl}, with_hard_pin: {int(self.with_hard_pin)}, "
            f"preferred_segments: [{', '.join(self.preferred_segments)}], {deprecated}"
            f"preferred_nof_segments: [{', '.join(self.preferred_nof_segments)}], "
            f"prefer_alloc_in_same_node: {int(self.prefer_alloc_in_same_node)}, "
            f"data_type: {ObjectDataType(self.data_type).name} }}"
        )


class ExistOptions:
    """What a look-up does besides. There is no constructor with names.

    With `prefetch_to_memory` objects that are on SSD only, or on another node, are brought into
    this node's memory, as far as it has room, so that a get which follows finds them there.
    """

    def __init__(self) -> None:
        self.prefetch_to_memory = False


@dataclass(frozen=True)
class Descriptor:
    """Where bytes lie. There is no address that anybody else could use: it is 0."""

    size: int
    buffer_address: int
    transport_endpoint: str


@dataclass(frozen=True)
class MemoryDescriptor:
    """A copy in memory."""

    buffer_descriptor: Descriptor


@dataclass(frozen=True)
class DiskDescriptor:
    """A copy on a disk."""

    file_path: str
    object_size: int


class ReplicaDescriptor:
    """One copy of an object."""

    def __init__(self, size: int, endpoint: str) -> None:
        self.status = ReplicaStatus.COMPLETE
        self._memory = MemoryDescriptor(Descriptor(size, 0, endpoint))

    def is_memory_replica(self) -> bool:
        """Return True: a copy on SSD comes back into memory when it is read."""
        return True

    def is_disk_replica(self) -> bool:
        """Return False."""
        return False

    def is_local_disk_replica(self) -> bool:
        """Return False."""
        return False

    def get_memory_descriptor(self) -> MemoryDescriptor:
        """Return where it lies."""
        return self._memory

    def get_disk_descriptor(self) -> DiskDescriptor:
        """Raise RuntimeError: it is no copy on a disk."""
        raise RuntimeError("this replica is not on a disk: see is_disk_replica()")


@dataclass(frozen=True)
class QueryTaskResponse:
    """What became of a task."""

    id: tuple[int, int]
    type: TaskType
    status: TaskStatus
    created_at_ms_epoch: int
    last_updated_at_ms_epoch: int
    assigned_client: str
    message: str
