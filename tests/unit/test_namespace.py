"""Namespaces and keys: equal exactly when they should be."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache.pages.key import KEY_SIZE, page_key, page_keys
from mooncake_hicache.pages.namespace import canonical, namespace_digest, namespace_text

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
descriptions = st.dictionaries(st.text(max_size=8), plain, max_size=6)


def same(a: object, b: object) -> bool:
    """Equality that keeps True and 1 apart, as a description does."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(descriptions, descriptions)
def test_digest_is_equal_exactly_for_equal_descriptions(a, b):
    assert (namespace_digest(a) == namespace_digest(b)) == same(a, b)


@given(descriptions)
def test_digest_does_not_depend_on_the_order_of_items(description):
    backwards = dict(reversed(list(description.items())))
    assert namespace_digest(description) == namespace_digest(backwards)
    assert len(namespace_digest(description)) == 32


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"tp": 1}, {"tp": True}),
        ({"tp": 1}, {"tp": "1"}),
        ({"tp": None}, {}),
        ({"shape": [1, 2]}, {"shape": [2, 1]}),
        ({"shape": [12]}, {"shape": [1, 2]}),
        ('{"a":1}', {"a": 1}),
        ({"a": "1,b=2"}, {"a": "1", "b": "2"}),
    ],
)
def test_descriptions_that_look_alike_stay_apart(a, b):
    assert namespace_digest(a) != namespace_digest(b)


def test_digest_of_a_description_never_changes():
    # Pages outlive processes: another version of this code must find what this one wrote.
    digest = namespace_digest({"model": "m", "pages": [1, 2], "deep": {"b": None, "a": True}})
    assert digest.hex() == "fc3653dfe5fd85f7fee06815c406b5e12f9defa92f63f5ea330f0e500b08230d"


@pytest.mark.parametrize("value", [1.5, b"x", {1: 2}, {"a": {2: 3}}, {"a": object()}, {"a": {1}}])
def test_value_without_canonical_form_is_refused(value):
    with pytest.raises(TypeError):
        canonical(value if isinstance(value, dict) else {"a": value})


def test_error_says_where_the_value_is():
    with pytest.raises(TypeError, match=r"description\.a\.b\[1\]"):
        canonical({"a": {"b": [1, 2.5]}})


def test_items_of_a_text_can_be_told_apart():
    """The core reads the tenant from it: what begins as JSON does is JSON to its end."""
    values = {"a": "x", "b": 'y"', "c": '"z', "d": "{", "e": "two words", "f": ["g h"]}
    assert namespace_text(values) == ('a=x b=y" c="\\"z" d="{" e="two words" f=["g h"]')


def test_text_is_one_readable_line():
    text = namespace_text({"model": "a b", "tp": [0, 2], "pp": None, "pool": "kv"})
    assert text == 'model="a b" tp=[0,2] pool=kv'
    assert namespace_text("plain") == "plain"


@given(st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE))
def test_a_hash_is_its_own_key(raw):
    assert page_key(raw) == page_key(raw.hex()) == page_key(raw.hex().upper()) == raw


@given(st.text(), st.binary())
def test_other_names_are_hashed(text, raw):
    for name in (text, raw):
        key = page_key(name)
        assert len(key) == KEY_SIZE
        if len(name) not in (KEY_SIZE, 2 * KEY_SIZE):
            assert page_key(name) == key
    if len(text.encode("utf-8", "surrogatepass")) != KEY_SIZE:
        assert page_key(text) != page_key(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", ["g" * 64, "0" * 63 + " ", "٣" * 64, "0x" + "0" * 62])
def test_sixty_four_characters_that_are_not_hexadecimal_are_hashed(name):
    expected = hashlib.blake2b(
        name.encode(), digest_size=32, person=b"hicache-key-1", salt=b"str"
    ).digest()
    assert page_key(name) == expected


def test_keys_keep_their_order():
    assert page_keys(["a", b"\0" * 32]) == [page_key("a"), b"\0" * 32]


def test_name_of_another_type_is_refused():
    with pytest.raises(TypeError, match="int"):
        page_key(7)
