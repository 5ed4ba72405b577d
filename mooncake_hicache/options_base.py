"""Where options come from: arguments, environment, file, defaults; and how mistakes are told.

The options themselves are in `config.py`. Every class of options is a subclass of `OptionsBase`;
its names, with its prefix, are those that the environment and options files may hold.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import PrivateAttr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.options_types import absolute_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

__all__ = [
    "ENVIRONMENT_PREFIX",
    "OptionsBase",
    "environment_name",
    "read_options_file",
    "source_of",
]

ENVIRONMENT_PREFIX = "MOONCAKE_HICACHE_"

_Options = TypeVar("_Options", bound="OptionsBase")

_known: dict[str, None] = {}
"""Every option's full name, in the order of definition."""


def environment_name(option: str) -> str:
    """Return the environment variable that sets an option."""
    return ENVIRONMENT_PREFIX + option.upper()


class OptionsBase(BaseSettings):
    """Options with their sources. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    prefix: ClassVar[str] = ""
    """What the names begin with in the environment and in files."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.model_config["env_prefix"] = environment_name(cls.prefix)
        for name in cls.model_fields:
            # A file is named once for all of them.
            if name != "config" or not cls.prefix:
                _known[cls.prefix + name] = None

    def __init__(self, **values: Any) -> None:
        prefix = type(self).prefix
        config = values.get("config") or os.environ.get(environment_name("config")) or ""
        path = str(absolute_path(config))
        file_values = read_options_file(path) if path else {}
        _check_names(values, "the arguments", list(type(self).model_fields))
        _check_names(file_values, f"the file {path}", list(_known))
        _check_environment()
        own = {
            name: file_values[prefix + name]
            for name in type(self).model_fields
            if prefix + name in file_values
        }
        try:
            super().__init__(**values, _file_values=own)
        except ValidationError as error:
            raise _explained(error, prefix, values, path, own) from None
        self._sources = {
            name: source_of(environment_name(prefix + name), name, values, path, own)
            for name in type(self).model_fields
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, file (handed in by `__init__`)."""
        assert isinstance(init_settings, InitSettingsSource)
        file_values = init_settings.init_kwargs.pop("_file_values", {})
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict(file_values))

    def source_of(self, name: str) -> str:
        """Return where an option's value came from: `argument`, `environment NAME`, `file PATH` or
        `default`."""
        return self._sources.get(name, "default")

    def replaced(self: _Options, **overrides: Any) -> _Options:
        """Return a copy in which the given options have other values, checked like arguments."""
        if not overrides:
            return self
        given = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if self.source_of(name) == "argument"
        }
        return type(self)(**{**given, **overrides})


def read_options_file(path: str) -> dict[str, Any]:
    """Return what an options file says, by name.

    Raises:
        InvalidArgumentError: It cannot be read, or holds no table of options.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read the options file {path} ({environment_name('config')}): {error.strerror}"
        ) from None
    try:
        text = raw.decode()
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.endswith(".json") else "TOML"
        raise InvalidArgumentError(
            f"the options file {path} is not valid {kind}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"the options file {path} holds no table of options")
    return values


def source_of(
    variable: str, name: str, values: dict[str, Any], path: str, file_values: dict[str, Any]
) -> str:
    """Return where an option's value comes from; `variable` is its name in the environment."""
    if name in values:
        return "argument"
    if os.environ.get(variable):
        return f"environment {variable}"
    return f"file {path}" if name in file_values else "default"


def _check_names(values: dict[str, Any], where: str, known: list[str]) -> None:
    for name in values:
        if name not in known:
            raise InvalidArgumentError(_unknown(name, where, known))


def _check_environment() -> None:
    known = {environment_name(name) for name in _known}
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            raise InvalidArgumentError(_unknown(name, "the environment", list(_known)))


def _unknown(name: str, where: str, known: list[str]) -> str:
    # Without the prefix, which is so long that any two names with it look alike.
    prefix = ENVIRONMENT_PREFIX if name.startswith(ENVIRONMENT_PREFIX) else ""
    near = difflib.get_close_matches(name[len(prefix) :].lower(), known, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {environment_name(near[0]) if prefix else near[0]}?"
    else:
        hint = "`mooncake-hicache config` lists all options"
    return f"unknown option {name} in {where}: {hint}"


def _explained(
    error: ValidationError,
    prefix: str,
    values: dict[str, Any],
    path: str,
    file_values: dict[str, Any],
) -> InvalidArgumentError:
    lines = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else "options"
        cause = item.get("ctx", {}).get("error")
        reason = str(cause) if cause else f"{item['input']!r}: {item['msg']}"
        source = source_of(environment_name(prefix + name), name, values, path, file_values)
        lines.append(f"option {prefix}{name} ({source}): {reason}")
    return InvalidArgumentError("; ".join(lines))
