"""The methods of `mooncake.store.MooncakeDistributedStore` about copies, tasks and segments.

One node holds the objects of a machine, so that there is one copy here and nowhere to move it;
nodes on other machines make copies of their own when they read. Tasks are therefore done when they
are made, or refused.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from mooncake_hicache.compat.host_memory import MooncakeHostMemAllocator
from mooncake_hicache.compat.store.codes import (
    INTERNAL,
    INVALID_PARAMS,
    OBJECT_NOT_FOUND,
    OK,
    TASK_NOT_FOUND,
)
from mooncake_hicache.compat.store.kinds import (
    QueryTaskResponse,
    ReplicaDescriptor,
    TaskStatus,
    TaskType,
)
from mooncake_hicache.compat.store.sessions import StoreSessions

__all__ = ["StoreTasks"]

TASKS_MAX = 10_000
_NO_TASK = (0, 0)

TaskId = tuple[int, int]


class StoreTasks(StoreSessions):
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`."""

    def __init__(self) -> None:
        super().__init__()
        self._task_lock = threading.Lock()
        self._tasks: OrderedDict[TaskId, QueryTaskResponse] = OrderedDict()
        self._memory = MooncakeHostMemAllocator()

    # ---- copies

    def get_replica_desc(self, key: str) -> list[ReplicaDescriptor]:
        """Return what there is to know of an object's copies; empty if there is none."""
        size = self.get_size(key)
        return [ReplicaDescriptor(size, self._hostname)] if size >= 0 else []

    def batch_get_replica_desc(self, keys: Sequence[str]) -> dict[str, list[ReplicaDescriptor]]:
        """Return the same of each object that is there."""
        found = {key: self.get_replica_desc(key) for key in keys}
        return {key: descriptors for key, descriptors in found.items() if descriptors}

    def batch_replica_clear(self, keys: Sequence[str], segment_name: str = "") -> list[str]:
        """Drop the copies of objects on a segment, by default on all; return those dropped."""
        if segment_name not in ("", self._hostname):
            return []
        codes = self.batch_remove(keys)
        return [key for key, code in zip(keys, codes, strict=True) if code == OK]

    # ---- tasks

    def create_copy_task(self, key: str, targets: Sequence[str]) -> tuple[TaskId, int]:
        """Copy an object to segments: a task and 0, or (0, 0) and a negative number.

        The segment of this store is the only one; what is there needs no copy.
        """
        known = bool(targets) and all(target == self._hostname for target in targets)
        return self._make_task(TaskType.REPLICA_COPY, key, known)

    def create_move_task(self, key: str, source: str, target: str) -> tuple[TaskId, int]:
        """Move an object to another segment; there is none: (0, 0) and a negative number."""
        del source, target
        return self._make_task(TaskType.REPLICA_MOVE, key, False)

    def _make_task(self, kind: TaskType, key: str, is_possible: bool) -> tuple[TaskId, int]:
        found = self.is_exist(key)
        if found != 1:
            return _NO_TASK, OBJECT_NOT_FOUND if found == 0 else found
        if not is_possible:
            why = "there is one segment here, and objects cannot be copied or moved to another"
            return _NO_TASK, self._fail(kind.name.lower(), why, INVALID_PARAMS)
        number = (secrets.randbits(63) + 1, secrets.randbits(63) + 1)
        now_ms = int(time.time() * 1000)
        task = QueryTaskResponse(
            number, kind, TaskStatus.SUCCESS, now_ms, now_ms, self._hostname, "it is there already"
        )
        with self._task_lock:
            self._tasks[number] = task
            while len(self._tasks) > TASKS_MAX:
                self._tasks.popitem(last=False)
        return number, OK

    def query_task(self, task_id: TaskId) -> tuple[QueryTaskResponse | None, int]:
        """Return what became of a task of this store and 0, or None and -1400."""
        with self._task_lock:
            task = self._tasks.get(tuple(task_id))  # type: ignore[arg-type]
        return (task, OK) if task is not None else (None, TASK_NOT_FOUND)

    # ---- segments: memory is the node's, and these say so

    def mount_segment(
        self, path: str, size: int, offset: int = 0, protocol: str = "tcp", location: str = ""
    ) -> dict[str, object]:
        """Refused: a node does not take memory of a file."""
        del size, offset, protocol, location
        why = f"{path}: a node's memory is its own; its size is the option pool_size"
        return {"ret": self._fail("mount_segment", why, INTERNAL), "segment_ids": []}

    def allocate_and_mount_segment(
        self, size: int, protocol: str = "tcp", location: str = ""
    ) -> dict[str, object]:
        """Refused, as above."""
        del protocol, location
        why = f"{size} bytes: ask for memory with global_segment_size of setup(); it is the node's"
        code = self._fail("allocate_and_mount_segment", why, INTERNAL)
        return {"ret": code, "segment_ids": [], "allocated_size": 0}

    def unmount_segment(self, segment_ids: Sequence[str], grace_period_seconds: int = 0) -> int:
        """Return -1: none was mounted."""
        del grace_period_seconds
        return self._fail("unmount_segment", f"unknown: {list(segment_ids)}", INTERNAL)

    def unmount_and_free_segment(
        self, segment_ids: Sequence[str], grace_period_seconds: int = 0
    ) -> int:
        """Return -1: none was mounted."""
        return self.unmount_segment(segment_ids, grace_period_seconds)

    def unmount_local_disk_segment(self, grace_period_seconds: int = 0) -> int:
        """Return -1: a node's SSD is part of it as long as it runs."""
        del grace_period_seconds
        return self._fail("unmount_local_disk_segment", "the SSD is the node's own", INTERNAL)

    def alloc_from_mem_pool(self, size: int) -> int:
        """Return the address of new memory of this process, which goes with the store."""
        return self._memory.alloc(size)
