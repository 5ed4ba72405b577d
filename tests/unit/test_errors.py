"""The exception tree and its table of codes."""

from __future__ import annotations

import pytest

from mooncake_hicache import _core, errors


def test_every_code_but_ok_has_a_class_and_no_other_name_has() -> None:
    assert set(errors.CLASS_BY_CODE_NAME) == {code.name for code in _core.Code} - {"OK"}


def test_every_class_of_the_tree_is_exported_and_documented() -> None:
    def below(kind: type[errors.Error]) -> set[type[errors.Error]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    ours = {k for k in below(errors.Error) if k.__module__ == errors.__name__}
    assert {kind.__name__ for kind in ours} <= set(errors.__all__)
    assert all(kind.__doc__ for kind in ours)
    assert set(errors.CLASS_BY_CODE_NAME.values()) <= ours


@pytest.mark.parametrize("kind", sorted(set(errors.CLASS_BY_CODE_NAME.values()), key=str))
def test_each_class_is_made_from_a_message_alone(kind: type[errors.Error]) -> None:
    assert str(kind("what was tried")) == "what was tried"


def test_classes_are_caught_by_their_builtin_relatives() -> None:
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.IoError, OSError)
    assert issubclass(errors.TimeoutError_, TimeoutError)
    assert issubclass(errors.UnavailableError, errors.TransientError)


def test_an_unknown_code_is_a_bug_and_not_a_crash() -> None:
    assert errors.class_for_code_name("NEW_CODE") is errors.InternalError


def test_the_core_raises_these_classes() -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        client = _core.Client(
            copy_threads=1, put_copy_threads=1, call_timeout_ms=100, verify=True, name="test"
        )
        client.connect("/nonexistent/node.sock", 100)
    assert "/nonexistent/node.sock" in str(caught.value)
