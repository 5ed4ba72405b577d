"""The two programs that users of the original begin with, as printed, in two processes."""

from __future__ import annotations

import pytest

from tests.compat.processes import Program

SERVER = """
import numpy as np
from mooncake.engine import TransferEngine
engine = TransferEngine()
engine.initialize("localhost", "P2PHANDSHAKE",
                  "tcp")   # 3 arguments also work
buf = np.zeros(1024 * 1024, dtype=np.uint8)
engine.register_memory(buf.ctypes.data, buf.nbytes)
"""

CLIENT = """
engine = TransferEngine()
engine.initialize("localhost", "P2PHANDSHAKE", "tcp", "")
buf = np.ones(1024 * 1024, dtype=np.uint8)
engine.register_memory(buf.ctypes.data, buf.nbytes)
engine.transfer_sync_write(session_id, buf.ctypes.data,
                           server_ptr, buf.nbytes)
"""

TELL = """
say(f"localhost:{engine.get_rpc_port()}", buf.ctypes.data, buf.nbytes)
hear()
say(int(buf.min()), int(buf.max()))
"""

IMPORTS = """
import numpy as np
from mooncake.engine import TransferEngine
session_id, server_ptr = hear()
"""


@pytest.mark.parametrize("transports", ["local,tcp", "tcp"])
def test_the_clients_ones_are_in_the_servers_memory(transports: str) -> None:
    extra = {"MOONCAKE_HICACHE_TRANSFER_TRANSPORTS": transports}
    with Program(SERVER + TELL, extra) as server:
        session, pointer, size = server.hear()
        assert size == 1024 * 1024
        with Program(IMPORTS + CLIENT + "say('done')", extra) as client:
            client.say(session, pointer)
            assert client.hear() == ["done"]
        server.say()
        assert server.hear() == [1, 1]
