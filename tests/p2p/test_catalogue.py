"""The catalogue is hostile until checked: garbage, forgeries, other secrets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache import CorruptError, Error, InvalidArgumentError, UnsupportedError
from mooncake_hicache.metadata.etcd_calls import EtcdCalls
from mooncake_hicache.p2p import P2PStore
from mooncake_hicache.p2p.catalogue import SOURCES_MAX, Catalogue
from mooncake_hicache.p2p.keys import Keys
from mooncake_hicache.p2p.records import (
    DESCRIPTION_SIZE_MAX,
    SOURCE_SIZE_MAX,
    Description,
    Source,
    decode_description,
    decode_source,
    encode_description,
    encode_source,
    signing_key,
)
from tests.metadata.servers import Etcd
from tests.p2p.peer import content_of

KEY = signing_key("secret")
PATH = "mooncake-hicache/p2p/default/source/w/0000000000000007/1aaaaaaaaaaaaaaaa"
SOURCE = Source("w", 7, "0" * 64, 30, "10.0.0.1:15001", 9, ((64, 10), (128, 20)), 0, "me", "a" * 16)
DESCRIPTION = Description(10_000, 4096, np.array([1, 2**64 - 1, 3], np.uint64))


# ---- entries, without a server


def test_entries_come_back_as_they_were() -> None:
    value = encode_source(SOURCE, PATH, KEY)
    assert decode_source(value, PATH, KEY) == SOURCE
    pieces, digest = encode_description(DESCRIPTION)
    found = decode_description(
        pieces, dataclasses.replace(SOURCE, content=digest, size_bytes=10_000)
    )
    assert (found.size_bytes, found.piece_size_bytes) == (10_000, 4096)
    assert np.array_equal(found.checksums, DESCRIPTION.checksums)


@pytest.mark.parametrize("key", [signing_key(""), signing_key("secret ")])
def test_another_secret_signs_otherwise(key: bytes) -> None:
    with pytest.raises(CorruptError, match="another secret"):
        decode_source(encode_source(SOURCE, PATH, KEY), PATH, key)
    with pytest.raises(CorruptError, match="another secret"):
        decode_source(encode_source(SOURCE, PATH, KEY), PATH.replace("/w/", "/v/"), KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": -1},
        {"generation": 2**63 + 1},
        {"generation": True},
        {"size": "30"},
        {"size": 29},
        {"map": 2**64},
        {"name": 5},
        {"content": "0" * 63},
        {"address": "nowhere"},
        {"epoch": 9},
        {"epoch": "G" * 16},
        {"id": ""},
        {"owner": None},
        {"spans": None},
        {"spans": [[64, 30, 1]]},
        {"spans": [[0, 30]]},
        {"spans": [[64, 31], [1, -1]]},
        {"spans": [[2**64 - 10, 30]]},
        {"spans": [[64, 10.5], [128, 19.5]]},
        {"spans": [[64, 1]] * 1025},
    ],
)
def test_signed_nonsense_is_refused(change: dict[str, Any]) -> None:
    """Whoever knows the secret may still have a bug, or a newer release."""
    _, _, text = encode_source(SOURCE, PATH, KEY).partition(b"\n")
    with pytest.raises(CorruptError):
        decode_source(_signed({**json.loads(text), **change}), PATH, KEY)


def test_another_release_is_named() -> None:
    _, _, text = encode_source(SOURCE, PATH, KEY).partition(b"\n")
    with pytest.raises(UnsupportedError, match="same release"):
        decode_source(_signed({**json.loads(text), "version": 2}), PATH, KEY)


def _signed(tree: Any) -> bytes:
    import hmac

    text = json.dumps(tree).encode()
    mac = hmac.new(KEY, PATH.encode() + b"\0" + text, hashlib.sha256).hexdigest()
    return mac.encode() + b"\n" + text


@given(st.binary(max_size=300) | st.builds(lambda size: b"x" * size, st.integers(0, 70_000)))
def test_any_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_source(value, PATH, KEY)
    with pytest.raises(CorruptError):
        decode_description(value, SOURCE)


@given(st.data())
def test_no_flipped_bit_is_overlooked(choice: st.DataObject) -> None:
    pieces, digest = encode_description(DESCRIPTION)
    source = dataclasses.replace(SOURCE, content=digest, size_bytes=10_000, spans=((8, 10_000),))
    value = encode_source(source, PATH, KEY)
    for original, read in (
        (value, lambda changed: decode_source(changed, PATH, KEY)),
        (pieces, lambda changed: decode_description(changed, source)),
    ):
        changed = bytearray(original)
        changed[choice.draw(st.integers(0, len(changed) - 1))] ^= 1 << choice.draw(
            st.integers(0, 7)
        )
        with pytest.raises(CorruptError):
            read(bytes(changed))


@pytest.mark.parametrize(
    "tree",
    [
        {"size": 10_000, "piece_size": 0},
        {"size": 10_000, "piece_size": 4096, "checksums": "AA=="},
        {"size": 10_000, "piece_size": 4096, "checksums": 5},
        {"size": 9_999, "piece_size": 4096, "checksums": ""},
        {"size": 10_000, "piece_size": 1 << 60, "checksums": ""},
        [],
    ],
)
def test_signed_nonsense_about_pieces_is_refused(tree: Any) -> None:
    value = json.dumps(tree).encode()
    content = hashlib.sha256(value).hexdigest()
    with pytest.raises(CorruptError):
        decode_description(value, dataclasses.replace(SOURCE, content=content, size_bytes=10_000))


def test_limits_are_said_before_anything_is_sent() -> None:
    many = dataclasses.replace(SOURCE, spans=tuple((64, 1) for _ in range(1025)), size_bytes=1025)
    with pytest.raises(InvalidArgumentError, match="1025 buffers"):
        encode_source(many, PATH, KEY)
    wide = tuple((2**63 + 10**9 * n, 10**9) for n in range(1024))
    full = dataclasses.replace(SOURCE, spans=wide, size_bytes=1024 * 10**9)
    assert len(encode_source(full, PATH, KEY)) < SOURCE_SIZE_MAX
    largest = Description(4096 * 4096, 4096, np.full(4096, 2**64 - 1, np.uint64))
    assert len(encode_description(largest)[0]) < DESCRIPTION_SIZE_MAX


# ---- a real etcd with things in it that nobody of ours has put there


def put(etcd: Etcd, path: str, value: bytes) -> None:
    EtcdCalls(etcd.where.partition("://")[2]).call(lambda client: client.put(path.encode(), value))


def garbage(etcd: Etcd, name: str, generation: int) -> None:
    keys = Keys("default")
    for number, value in enumerate((b"", b"\xff" * 100, b"[" * 50_000, b"0" * 64 + b"\n{}")):
        put(etcd, keys.source(name, generation, f"{number:016x}"), value)
        put(etcd, keys.pieces(name, generation, f"{number:016x}"), value)
    put(etcd, keys.source(name, generation, "x") + "/\xe4/../..", b"{}")


def test_garbage_beside_an_entry_is_passed_over(etcd: Etcd) -> None:
    with P2PStore(etcd.where) as source, P2PStore(etcd.where) as reader:
        generation = source.register("g", content_of(1, 10_000)).generation
        garbage(etcd, "g", generation)
        garbage(etcd, "g", 2**63 - 1)
        replica = reader.get_replica("g")
        assert replica.array is not None
        assert replica.array.tobytes() == content_of(1, 10_000).tobytes()
        assert [one.whole_count for one in reader.list("g")] == [1], "garbage stands in its way"


def test_garbage_alone_is_an_error_that_names_it(etcd: Etcd) -> None:
    garbage(etcd, "only", 5)
    with P2PStore(etcd.where) as store:
        assert store.list("only") == []
        for call in (store.get_replica, store.describe, lambda name: store.register(name, b"x")):
            with pytest.raises(CorruptError, match="source/only/0000000000000005"):
                call("only")


def test_an_entry_moved_to_another_name_or_generation_is_none(etcd: Etcd) -> None:
    calls, keys = EtcdCalls(etcd.where.partition("://")[2]), Keys("default")
    with P2PStore(etcd.where) as store:
        generation = store.register("real", b"bytes").generation
        start, end = keys.of_name("real")
        ((value, found),) = calls.call(
            lambda client: client.get(start.encode(), metadata=True, range_end=end)
        )
        identity = bytes(found["key"]).decode().rpartition("/")[2][1:]
        put(etcd, keys.source("moved", generation, identity), value)
        put(etcd, keys.source("real", generation + 1, identity), value)
        with pytest.raises(CorruptError, match="signed with another secret"):
            store.get_replica("moved")
        assert store.get_replica("real").generation == generation


def test_a_damaged_description_is_an_error(etcd: Etcd) -> None:
    calls, keys = EtcdCalls(etcd.where.partition("://")[2]), Keys("default")
    with P2PStore(etcd.where) as store:
        store.register("damaged", b"bytes")
        start = keys.of_name("damaged")[0].replace("/source/", "/pieces/")
        ((_, found),) = calls.call(
            lambda client: client.get(start.encode(), metadata=True, range_end=start[:-1] + "0")
        )
        put(etcd, bytes(found["key"]).decode(), b"{}")
        with pytest.raises(CorruptError, match="has signed"):
            store.get_replica("damaged")


def test_who_has_another_secret_gets_nothing(etcd: Etcd) -> None:
    with (
        P2PStore(etcd.where, secret="ours") as store,
        P2PStore(etcd.where, secret="theirs") as stranger,
        P2PStore(etcd.where, secret="ours") as friend,
    ):
        store.register("private", b"bytes")
        assert stranger.list() == []
        with pytest.raises(CorruptError, match="same secret"):
            stranger.get_replica("private")
        with pytest.raises(CorruptError, match="same secret"):
            stranger.register("private", b"others", replace=True)
        assert friend.get_replica("private").size_bytes == 5
        # One who could forge the entry still does not get in.
        with pytest.raises(Error, match="secret"):
            stranger.engine.open(store.engine.address)


def test_whole_sources_are_seen_behind_any_number_of_others(etcd: Etcd) -> None:
    """Of a large cluster a reader looks at a part: those that have all of it come first."""
    key = signing_key("many")
    calls = EtcdCalls(etcd.where.partition("://")[2])
    catalogue = Catalogue(calls, key)
    content = encode_description(DESCRIPTION)[1]
    whole = dataclasses.replace(
        SOURCE, name="crowd", content=content, size_bytes=10_000, spans=((8, 10_000),)
    )
    assert catalogue.publish(dataclasses.replace(whole, id="0" * 16), DESCRIPTION)
    keys = Keys("default")
    for number in range(SOURCES_MAX + 10):
        one = dataclasses.replace(whole, id=f"{2**63 + number:016x}", map_address=8)
        path = keys.source("crowd", 7, one.id, is_whole=False)
        value = encode_source(one, path, key)
        calls.call(lambda client, path=path, value=value: client.put(path.encode(), value))
    found = catalogue.read("crowd")
    assert len(found.sources) == SOURCES_MAX
    assert found.sources[0].is_whole
    assert len(catalogue.list("crowd")[0]) == SOURCES_MAX + 11
    catalogue.close()


def test_clusters_do_not_see_each_other(etcd: Etcd) -> None:
    with (
        P2PStore(etcd.where, cluster="a") as one,
        P2PStore(etcd.where, cluster="a/b") as other,
    ):
        one.register("same name", b"one")
        other.register("same name", b"another")
        assert [len(store.list()) for store in (one, other)] == [1, 1]
        assert other.get_replica("same name").size_bytes == 7


def test_wrong_pieces_are_told_in_the_log(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    memory = bytearray(content_of(1, 10_000))
    with P2PStore(etcd.where) as store, P2PStore(etcd.where) as reader:
        store.register("logged", memory)
        memory[0] ^= 1
        with caplog.at_level(logging.WARNING), pytest.raises(CorruptError):
            reader.get_replica("logged")
        assert f"piece 0 of logged from {store.engine.address}" in caplog.text


def test_the_command_line_lists_names(etcd: Etcd) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "mooncake_hicache", "p2p", "list", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    with P2PStore(etcd.where, cluster="cli") as store:
        store.register("weights/v1", content_of(1, 3 << 20))
        put(etcd, Keys("cli").source("weights/v2", 1, "0" * 16), b"garbage")
        to = ("--metadata", etcd.where, "--cluster", "cli")
        shown = run(*to)
        assert "weights/v1" in shown
        assert "3 MiB" in shown
        assert "1 entries do not count" in shown
        found = json.loads(run(*to, "--json", "weights/"))
        assert [one["name"] for one in found["names"]] == ["weights/v1"]
        assert found["names"][0]["whole_count"] == 1
        assert json.loads(run(*to, "--json", "nothing"))["names"] == []
