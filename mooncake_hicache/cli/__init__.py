"""The command `mooncake-hicache`: run a node, look at it, stop it, examine the machine."""

from mooncake_hicache.cli.app import main

__all__ = ["main"]
