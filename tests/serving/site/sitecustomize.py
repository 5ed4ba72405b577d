"""Python runs this at its start, when the folder is on PYTHONPATH: in each process of a server."""

import sglang_on_cpu

sglang_on_cpu.activate()
