"""Python runs this at its start when the folder is on PYTHONPATH, so in each process that a server spawns."""

import sglang_on_cpu

sglang_on_cpu.activate()
