"""What a running SGLang server says about its model, in any of the versions supported."""

from __future__ import annotations

from functools import cache

__all__ = ["engine_version", "keeps_pages", "server_option"]


def server_option(name: str) -> object:
    """Return the value of a server argument, or None if there is no server or no such argument."""
    arguments = _server_arguments()
    try:
        return getattr(arguments, name, None)
    except Exception:  # noqa: BLE001 - a sealed field in a version not seen yet means "not known"
        return None


def keeps_pages() -> bool:
    """Whether the server keeps KV anywhere but on its GPU."""
    return bool(
        server_option("enable_hierarchical_cache")
        or server_option("enable_unified_cache_external_linker")
    )


def _server_arguments() -> object | None:
    # 0.5.23 keeps them in the runtime context and raises in the accessor that 0.5.17 has.
    try:
        from sglang.srt.runtime_context import get_server_args

        arguments: object = get_server_args()
        return arguments
    except Exception:  # noqa: BLE001 - absent in older versions, unset in tests
        pass
    try:
        from sglang.srt.server_args import get_global_server_args

        older: object = get_global_server_args()
        return older
    except Exception:  # noqa: BLE001
        return None


@cache
def engine_version() -> str:
    """Return the version of SGLang, or `unknown`."""
    try:
        from sglang.version import __version__

        return str(__version__)
    except Exception:  # noqa: BLE001
        return "unknown"
