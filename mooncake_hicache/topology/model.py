"""The topology as the transfer engine uses it: for each place of memory, what each device costs.

    {"version": 1,
     "locations": {"cpu:0":  {"preferred": ["mlx5_0"], "others": ["mlx5_1"],
                              "costs": {"mlx5_0": {"fixed_ns": 2000, "ns_per_byte": 0.04},
                                        "mlx5_1": {"fixed_ns": 2900, "ns_per_byte": 0.08}}}}}

A device of the two lists that `costs` leaves out has the costs of its list below; one that only
`costs` names can be used when nothing else is left. The location `*` counts for memory of a place
that is not listed. The original's form is read as well: `{"cpu:0": [["mlx5_0"], ["mlx5_1"]]}`.

csrc/transfer/topology.h reads the same; both are held to tests/topology/samples.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mooncake_hicache.errors import InvalidArgumentError

__all__ = [
    "COST_OTHER",
    "COST_PREFERRED",
    "VERSION",
    "Cost",
    "Location",
    "Topology",
    "parse_topology",
]

VERSION = 1
TEXT_SIZE_MAX = 1 << 20
LOCATIONS_MAX = 4096
DEVICES_MAX = 1024
NAME_SIZE_MAX = 64

_LOCATION = re.compile(r"\*|[a-z]{1,16}:[0-9]{1,4}")
_FORM = '{"cpu:0": [["mlx5_0"], ["mlx5_1"]]}'


@dataclass(frozen=True)
class Cost:
    """What a transfer is expected to take: `fixed_ns + size * ns_per_byte`.

    A first guess, from what the devices are said to be; the engine measures and corrects it.
    """

    fixed_ns: float
    ns_per_byte: float

    def of(self, size_bytes: int) -> float:
        """Return the nanoseconds that so many bytes take."""
        return self.fixed_ns + size_bytes * self.ns_per_byte


COST_PREFERRED = Cost(2000.0, 0.08)
"""Of a listed device whose costs are not told: 100 Gb/s."""
COST_OTHER = Cost(3000.0, 0.16)


@dataclass(frozen=True)
class Location:
    """The devices for memory of one place, best first."""

    preferred: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)

    def cost(self, device: str) -> Cost | None:
        """Return what a device costs from here; None if it is not known."""
        told = self.costs.get(device)
        if told is not None:
            return told
        if device in self.preferred:
            return COST_PREFERRED
        return COST_OTHER if device in self.others else None


@dataclass(frozen=True)
class Topology:
    """All places of memory of one machine, and their devices."""

    locations: Mapping[str, Location] = field(default_factory=dict)

    def location(self, name: str) -> Location | None:
        """Return the place of memory of that name, or what counts for any; None if neither is."""
        return self.locations.get(name) or self.locations.get("*")

    def cost(self, location: str, device: str) -> Cost | None:
        """Return what a device costs for memory at a location; None if it is not known."""
        found = self.location(location)
        return found.cost(device) if found else None

    def devices(self) -> tuple[str, ...]:
        """Return every device that is named, each once."""
        names: dict[str, None] = {}
        for place in self.locations.values():
            names |= dict.fromkeys((*place.preferred, *place.others, *place.costs))
        return tuple(names)

    def to_json(self) -> dict[str, Any]:
        """Return our own form, ready for `json.dumps`."""
        return {
            "version": VERSION,
            "locations": {
                name: {
                    "preferred": list(place.preferred),
                    "others": list(place.others),
                    "costs": {
                        device: {"fixed_ns": cost.fixed_ns, "ns_per_byte": cost.ns_per_byte}
                        for device, cost in place.costs.items()
                    },
                }
                for name, place in self.locations.items()
            },
        }

    def to_original(self) -> dict[str, list[list[str]]]:
        """Return the original's form."""
        return {
            name: [list(place.preferred), list(place.others)]
            for name, place in self.locations.items()
        }


def parse_topology(text: str | bytes, where: str = "the topology") -> Topology:
    """Read either form.

    Args:
        text: JSON.
        where: What the messages call it, such as the name of its file.

    Raises:
        InvalidArgumentError: It is not JSON of one of the forms; the message says where and why.
    """
    if len(text) > TEXT_SIZE_MAX:
        raise InvalidArgumentError(f"{where}: more than {TEXT_SIZE_MAX >> 20} MiB of text")
    try:
        if isinstance(text, bytes):
            text = text.decode()
        tree = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except _RepeatedError as error:
        raise InvalidArgumentError(f"{where}: {error} is there twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where}: not valid JSON: {error}") from None
    return _Reader(where).topology(tree)


class _RepeatedError(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON permits it, and then half of what somebody wrote would count.
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _RepeatedError(json.dumps(name))
        found[name] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class _Reader:
    """Checks a tree and says where it is wrong."""

    def __init__(self, where: str) -> None:
        self._where = where

    def _wrong(self, at: str, why: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._where}{at and ', '}{at}: {why}")

    def topology(self, tree: object) -> Topology:
        if not isinstance(tree, dict):
            raise self._wrong("", f"an object is expected, such as {_FORM}")
        if "nics" in tree or "mems" in tree:
            raise self._wrong(
                "", f"this is the form of the original's TENT, which is not read; write {_FORM}"
            )
        is_own = "locations" in tree or "version" in tree
        if is_own:
            version = tree.get("version")
            if version != VERSION or isinstance(version, bool):
                raise self._wrong("version", f"{version!r:.40}, and this release reads {VERSION}")
            tree = tree.get("locations")
            if not isinstance(tree, dict):
                raise self._wrong("locations", "an object is expected")
        if len(tree) > LOCATIONS_MAX:
            raise self._wrong("", f"more than {LOCATIONS_MAX} locations")
        read = self._own if is_own else self._original
        return Topology({name: read(self._location(name), place) for name, place in tree.items()})

    def _location(self, name: str) -> str:
        if not _LOCATION.fullmatch(name):
            raise self._wrong(
                f"location {name!r:.80}", 'not a place of memory; "cpu:0", "cuda:0" and "*" are'
            )
        return f"location {name}"

    def _original(self, at: str, place: object) -> Location:
        if not isinstance(place, list) or len(place) != 2:
            raise self._wrong(
                at, f"two lists are expected, of preferred and of other devices, as in {_FORM}"
            )
        return self._listed(at, place[0], place[1], {})

    def _own(self, at: str, place: object) -> Location:
        if not isinstance(place, dict):
            raise self._wrong(at, 'an object with "preferred" and "others" is expected')
        for name in place:
            if name not in ("preferred", "others", "costs"):
                raise self._wrong(
                    at, f"unknown member {name!r:.80}; preferred, others and costs are known"
                )
        costs = place.get("costs", {})
        if not isinstance(costs, dict) or len(costs) > DEVICES_MAX:
            raise self._wrong(
                f"{at}, costs", f"an object of at most {DEVICES_MAX} devices is expected"
            )
        read = {
            self._device(f"{at}, costs", device): self._cost(f"{at}, costs of {device}", cost)
            for device, cost in costs.items()
        }
        return self._listed(at, place.get("preferred", []), place.get("others", []), read)

    def _listed(
        self, at: str, preferred: object, others: object, costs: dict[str, Cost]
    ) -> Location:
        first = self._devices(f"{at}, preferred devices", preferred)
        second = self._devices(f"{at}, other devices", others)
        for device in second:
            if device in first:
                raise self._wrong(at, f"{device} is both preferred and other")
        return Location(first, second, costs)

    def _devices(self, at: str, names: object) -> tuple[str, ...]:
        if not isinstance(names, list) or len(names) > DEVICES_MAX:
            raise self._wrong(at, f"a list of at most {DEVICES_MAX} names is expected")
        found = tuple(self._device(at, name) for name in names)
        if len(set(found)) != len(found):
            raise self._wrong(at, "a device is named twice")
        return found

    def _device(self, at: str, name: object) -> str:
        # Halves of surrogate pairs, which JSON can write and UTF-8 cannot.
        size = len(name.encode(errors="ignore")) if isinstance(name, str) else 0
        if not isinstance(name, str) or not 0 < size <= NAME_SIZE_MAX:
            raise self._wrong(
                at, f"{name!r:.80} is no device's name: 1 to {NAME_SIZE_MAX} bytes of text"
            )
        return name

    def _cost(self, at: str, cost: object) -> Cost:
        if not isinstance(cost, dict) or set(cost) != {"fixed_ns", "ns_per_byte"}:
            raise self._wrong(at, 'an object of "fixed_ns" and "ns_per_byte" is expected')
        for name, value in cost.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or not 0 <= value <= 1e12:
                raise self._wrong(f"{at}, {name}", f"{value!r:.40} is not between 0 and 10^12")
        return Cost(float(cost["fixed_ns"]), float(cost["ns_per_byte"]))
