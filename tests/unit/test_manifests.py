"""What the configurations under configs/ say is what our options take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooncake_hicache.cli.app import app
from mooncake_hicache.config import MasterOptions, NodeOptions, TransferOptions
from mooncake_hicache.options_base import ENVIRONMENT_PREFIX

CONFIGS = Path(__file__).parents[2] / "configs"
PORTS = {MasterOptions().port, MasterOptions().http_port}


def containers() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield name, arguments and environment of every container."""
    compose = yaml.safe_load((CONFIGS / "container/compose.yaml").read_text())
    for name, service in compose["services"].items():
        given = {key: str(value) for key, value in service["environment"].items()}
        plain = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text) for key, text in given.items()}
        yield f"compose {name}", service["command"], plain
    for document in kubernetes():
        template = document["spec"].get("template")
        for one in template["spec"]["containers"] if template else ():
            # What Kubernetes fills in: an address, a name, the secret's text.
            given = {item["name"]: item.get("value", "192.0.2.7") for item in one["env"]}
            yield f"kubernetes {one['name']}", one["args"], given


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONFIGS / "container/kubernetes.yaml").read_text()))


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [pytest.param(arguments, given, id=name) for name, arguments, given in containers()],
)
def test_containers_are_given_options_that_there_are(
    arguments: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, flags = arguments[0], arguments[1:]
    assert command in {one.name for one in app.registered_commands}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kinds = (MasterOptions,) if command == "master" else (NodeOptions,)
    found = [kind() for kind in (*kinds, TransferOptions)]
    sources = {one.source_of(name) for one in found for name in type(one).model_fields}
    for name in environment:
        assert name.startswith(ENVIRONMENT_PREFIX)
        assert f"environment {name}" in sources, f"{command} knows no {name}"
    pairs = dict(zip(flags[::2], flags[1::2], strict=True))
    named = {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs.items()}
    kinds[0](**named)


def test_ports_and_probes_are_those_of_the_master() -> None:
    service, master, _ = kubernetes()
    assert {one["port"] for one in service["spec"]["ports"]} == PORTS
    (container,) = master["spec"]["template"]["spec"]["containers"]
    assert {one["containerPort"] for one in container["ports"]} == PORTS
    assert container["readinessProbe"]["httpGet"] == {
        "path": "/health",
        "port": MasterOptions().http_port,
    }
    assert service["spec"]["selector"] == master["spec"]["template"]["metadata"]["labels"]


def test_nodes_end_before_they_are_killed() -> None:
    compose = yaml.safe_load((CONFIGS / "container/compose.yaml").read_text())
    node = compose["services"]["node"]
    daemons = kubernetes()[2]["spec"]["template"]["spec"]
    given = {one["name"]: one.get("value") for one in daemons["containers"][0]["env"]}
    for environment, seconds in (
        (node["environment"], int(node["stop_grace_period"].removesuffix("s"))),
        (given, daemons["terminationGracePeriodSeconds"]),
    ):
        flush = environment["MOONCAKE_HICACHE_FLUSH_TIMEOUT_S"]
        options = NodeOptions(flush_timeout_s=flush)
        assert options.flush_timeout_s + options.drain_timeout_s < seconds


def test_the_file_for_clusters_is_valid() -> None:
    file = str(CONFIGS / "cluster.toml")
    node = NodeOptions(config=file)
    assert node.master == "10.0.0.1:50051"
    assert node.source_of("node_ports") == f"file {file}"
    assert TransferOptions(config=file).secret == "/etc/mooncake-hicache/secret"
