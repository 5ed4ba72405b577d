"""The plugin takes over one name, can be switched off, and says what is wrong."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest.importorskip("sglang")

from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from mooncake_hicache.sglang import plugin
from tests.serving.server import server_env

REUSE = "SGLANG_HICACHE_MOONCAKE_REUSE_TE"


@pytest.fixture
def clean(monkeypatch):
    """The factory as SGLang leaves it."""
    monkeypatch.setattr(StorageBackendFactory, "_registry", dict(StorageBackendFactory._registry))
    monkeypatch.delenv(REUSE, raising=False)
    monkeypatch.delenv(plugin.SWITCH_VARIABLE, raising=False)
    StorageBackendFactory._registry.pop("mooncake", None)
    StorageBackendFactory.register_backend("mooncake", "stock.module", "MooncakeStore")


def entry():
    return StorageBackendFactory._registry["mooncake"]


def test_register_takes_over_the_name(clean, caplog):
    with caplog.at_level(logging.INFO):
        plugin.register()
        plugin.register()
    assert (entry()["module_path"], entry()["class_name"]) == (
        plugin.ADAPTER_MODULE,
        plugin.ADAPTER_CLASS,
    )
    assert os.environ[REUSE] == "0"
    assert "MOONCAKE_HICACHE_SGLANG=off switches it off" in caplog.text
    assert "already registered" not in caplog.text


def test_registered_class_is_a_backend(clean):
    plugin.register()
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
    from sglang.srt.mem_cache.storage.mooncake_store.mooncake_store import MooncakeStore

    backend = entry()["loader"]()
    assert issubclass(backend, HiCacheStorage)
    assert issubclass(backend, MooncakeStore)


def test_users_own_choice_about_the_transfer_engine_stays(clean, monkeypatch):
    monkeypatch.setenv(REUSE, "1")
    plugin.register()
    assert os.environ[REUSE] == "1"


@pytest.mark.parametrize("value", ["off", "OFF", " off "])
def test_switched_off_changes_nothing(clean, monkeypatch, value):
    monkeypatch.setenv(plugin.SWITCH_VARIABLE, value)
    plugin.register()
    assert entry()["module_path"] == "stock.module"
    assert REUSE not in os.environ


def test_value_that_is_no_switch_is_named(clean, monkeypatch, caplog):
    monkeypatch.setenv(plugin.SWITCH_VARIABLE, "of")
    plugin.register()
    assert "MOONCAKE_HICACHE_SGLANG=of is not one of on, off, required" in caplog.text
    assert entry()["module_path"] == plugin.ADAPTER_MODULE


def break_core(monkeypatch):
    import_module = importlib.import_module

    def refuse(name, *args):
        if name == "mooncake_hicache._core":
            raise ImportError("built for another Python")
        return import_module(name, *args)

    monkeypatch.setattr(importlib, "import_module", refuse)


def test_broken_core_leaves_sglang_alone_and_names_the_remedy(clean, monkeypatch, caplog):
    break_core(monkeypatch)
    plugin.register()
    assert entry()["module_path"] == "stock.module"
    assert "built for another Python" in caplog.text
    assert "Reinstall mooncake-hicache" in caplog.text


def test_broken_core_ends_the_process_when_required(clean, monkeypatch):
    break_core(monkeypatch)
    monkeypatch.setenv(plugin.SWITCH_VARIABLE, "required")
    with pytest.raises(SystemExit, match="Reinstall mooncake-hicache"):
        plugin.register()


def test_sglang_finds_the_entry_point():
    (found,) = [e for e in entry_points(group="sglang.srt.plugins") if "mooncake" in e.name]
    assert found.load() is plugin.register


def test_importing_the_plugin_needs_neither_torch_nor_the_core():
    code = (
        "import sys, mooncake_hicache.sglang.plugin\n"
        "loaded = {'torch', 'sglang', 'mooncake_hicache._core', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_whole_plugin_loading_of_sglang_ends_with_our_backend():
    """In a process of its own, because SGLang loads plugins once."""
    code = """
import logging
logging.basicConfig(level=logging.INFO)
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
print(StorageBackendFactory._registry["mooncake"]["module_path"])
from sglang.srt.mem_cache.pool_host.common import HostTensorAllocator, get_allocator_from_storage
print(type(get_allocator_from_storage("mooncake")) is HostTensorAllocator)
from sglang.srt.mem_cache.pool_host import base
print(type(base.get_allocator_from_storage("mooncake")) is HostTensorAllocator)
print(type(get_allocator_from_storage("shm")).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **server_env()},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:4]
    assert lines == [plugin.ADAPTER_MODULE, "True", "True", "ShmHostTensorAllocator"]
    assert "tensor allocator requires mooncake" not in done.stderr
