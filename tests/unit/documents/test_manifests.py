"""The manifests in systemd/kubernetes: valid in each version of Kubernetes, complete, and unprivileged.

What "restricted" forbids is from the Pod Security Standards of Kubernetes' own documentation.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from agent import __version__, config
from agent.cli.options import SYSTEM_CONFIG
from tests.support.documents import ROOT, links, read

Json = dict[str, Any]
OLDEST = (1, 29)
DIRECTORY = ROOT / "systemd/kubernetes"
VERSIONS = [version for version in dict.fromkeys(all_versions()) if tuple(map(int, version.split(".")[:2])) >= OLDEST]
AGENTS = ("sidecar", "daemonset")
PODS = (*AGENTS, "relay")
MANIFESTS = (*PODS, "networkpolicy")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@cache
def _parsed(name: str) -> list[Json]:
    return list(yaml.safe_load_all((DIRECTORY / f"{name}.yaml").read_text()))


def manifests(name: str) -> list[Json]:
    """Return all manifests in the file of that name, to be changed at will."""
    return copy.deepcopy(_parsed(name))


def manifest(name: str, kind: str = "") -> Json:
    """Return one of them: of that kind, or else the one with a pod, or the only one."""
    found = manifests(name)
    chosen = [each for each in found if each["kind"] == (kind or ("Deployment" if len(found) > 1 else each["kind"]))]
    (only,) = chosen
    return only


def pod_of(manifest: Json) -> Json:
    """Return the pod's spec."""
    spec: Json = manifest["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def agent_of(pod: Json) -> Json:
    """Return the agent's container."""
    found: list[Json] = [each for each in containers(pod) if each["name"] == "artifacts-agent"]
    return found[0]


def containers(pod: Json) -> list[Json]:
    """Return all containers."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def violations(pod: Json) -> Iterator[str]:
    """Yield what the standard "restricted" has against a pod."""
    shared = pod.get("securityContext", {})
    yield from (f"{name} of the pod" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    yield from (f"volume {volume['name']}" for volume in pod["volumes"] if not VOLUMES & volume.keys())
    for container in containers(pod):
        own = {**shared, **container.get("securityContext", {})}
        capabilities = own.get("capabilities", {})
        faults = {
            "runAsNonRoot": own.get("runAsNonRoot") is not True,
            "runAsUser": own.get("runAsUser") == 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "privileged": own.get("privileged", False),
            "capabilities": capabilities.get("drop") != ["ALL"]
            or {*capabilities.get("add", [])} - {"NET_BIND_SERVICE"},
        }
        yield from (f"{name} of {container['name']}" for name, at_fault in faults.items() if at_fault)


def test_each_manifest_is_here_and_on_the_page() -> None:
    assert {path.stem for path in DIRECTORY.iterdir()} == {*MANIFESTS}
    assert {f"kubernetes/{name}.yaml" for name in MANIFESTS} <= {*links(read("systemd/README.md"))}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_are_valid(name: str, version: str) -> None:
    for each in manifests(name):
        assert kubernetes_validate.validate(each, version, strict=True) == version.rpartition(".")[0]


def misspell(pod: Json) -> None:
    agent_of(pod)["readinessProb"] = agent_of(pod).pop("readinessProbe")


def give_a_word_for_a_number(pod: Json) -> None:
    agent_of(pod)["readinessProbe"]["periodSeconds"] = "thirty"


def forget_a_mount_path(pod: Json) -> None:
    del agent_of(pod)["volumeMounts"][0]["mountPath"]


def forget_the_containers(pod: Json) -> None:
    del pod["containers"]


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("mistake", [misspell, give_a_word_for_a_number, forget_a_mount_path, forget_the_containers])
@pytest.mark.parametrize("name", PODS)
def test_a_mistake_in_a_manifest_would_be_noticed(name: str, mistake: Callable[[Json], None], version: str) -> None:
    wrong = manifest(name)
    mistake(pod_of(wrong))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def misspell_egress(spec: Json) -> None:
    spec["egres"] = spec.pop("egress")


def give_a_number_for_a_protocol(spec: Json) -> None:
    spec["egress"][0]["ports"][0]["protocol"] = 17


def give_a_list_of_labels(spec: Json) -> None:
    spec["podSelector"]["matchLabels"] = ["artifacts-agent"]


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("mistake", [misspell_egress, give_a_number_for_a_protocol, give_a_list_of_labels])
@pytest.mark.parametrize("name", ["networkpolicy", "relay"])
def test_a_mistake_in_the_policy_would_be_noticed(name: str, mistake: Callable[[Json], None], version: str) -> None:
    wrong = manifest(name, "NetworkPolicy")
    mistake(wrong["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def misspell_the_spread(spec: Json) -> None:
    spread = spec["template"]["spec"]["topologySpreadConstraints"][0]
    spread["whenUnsatisfied"] = spread.pop("whenUnsatisfiable")


def give_no_selector(spec: Json) -> None:
    del spec["selector"]


def project_a_list(spec: Json) -> None:
    spec["template"]["spec"]["volumes"][1]["projected"]["sources"][0]["configMap"] = ["artifacts-agent-relay"]


def misspell_what_becomes_of_the_unready(spec: Json) -> None:
    spec["unhealthyPodEvictionPolicies"] = spec.pop("unhealthyPodEvictionPolicy")


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("Deployment", misspell_the_spread),
        ("Deployment", give_no_selector),
        ("Deployment", project_a_list),
        ("PodDisruptionBudget", misspell_what_becomes_of_the_unready),
    ],
)
def test_a_mistake_in_what_only_relays_have_would_be_noticed(
    kind: str, mistake: Callable[[Json], None], version: str
) -> None:
    wrong = manifest("relay", kind)
    mistake(wrong["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_page_says_which_versions_were_tried() -> None:
    oldest, newest = (version.rpartition(".")[0] for version in (VERSIONS[0], VERSIONS[-1]))
    assert oldest == ".".join(map(str, OLDEST))
    page = read("systemd/README.md")
    assert f"(Kubernetes {oldest} or later)" in page
    assert f"the schemas of Kubernetes {oldest} to {newest}" in page


def test_the_policy_is_for_the_daemonsets_pods_and_lets_them_out_alone() -> None:
    spec, daemonset = manifest("networkpolicy")["spec"], manifest("daemonset")["spec"]
    assert spec["podSelector"]["matchLabels"] == daemonset["template"]["metadata"]["labels"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 443}


@pytest.mark.parametrize("name", PODS)
def test_the_image_is_this_version(name: str) -> None:
    assert agent_of(pod_of(manifest(name)))["image"] == f"artifacts-agent:{__version__}"


@pytest.mark.parametrize("name", ["sidecar", "relay"])
def test_the_sidecar_and_relays_keep_to_the_standard(name: str) -> None:
    assert [*violations(pod_of(manifest(name)))] == []


def test_the_daemonset_departs_from_the_standard_only_in_what_the_page_says() -> None:
    expected = ["volume sockets", "volume queue"]
    expected += [f"{name} of directories" for name in ("runAsNonRoot", "runAsUser", "capabilities")]
    pod = pod_of(manifest("daemonset"))
    assert [*violations(pod)] == expected
    assert pod["initContainers"][0]["securityContext"]["capabilities"]["add"] == ["CHOWN"]


@pytest.mark.parametrize("name", PODS)
@pytest.mark.parametrize("key", ["allowPrivilegeEscalation", "capabilities", "runAsNonRoot", "seccompProfile"])
def test_each_part_of_the_standard_is_looked_at(name: str, key: str) -> None:
    pod = pod_of(manifest(name))
    pod["securityContext"].pop(key, None)
    agent_of(pod)["securityContext"].pop(key, None)
    assert f"{key} of artifacts-agent" in violations(pod)


@pytest.mark.parametrize("name", AGENTS)
def test_a_slow_start_is_waited_for(name: str) -> None:
    agent = agent_of(pod_of(manifest(name)))
    probe = agent["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert agent["resources"]["requests"]["cpu"] == "100m"


@pytest.mark.parametrize("name", AGENTS)
def test_both_are_complete(name: str) -> None:
    pod = pod_of(manifest(name))
    agent, other = agent_of(pod), agent_of(pod_of(manifest(next(each for each in AGENTS if each != name))))
    for key in ("env", "image", "lifecycle", "readinessProbe", "resources", "startupProbe"):
        assert agent[key] == other[key]
    assert agent["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", AGENTS)
def test_the_hook_for_kubernetes_is_part_of_the_manifests(name: str) -> None:
    hook = yaml.safe_load((ROOT / "agent/hooks/kubernetes.yaml").read_text())["spec"]
    pod = pod_of(manifest(name))
    assert pod["terminationGracePeriodSeconds"] == hook["terminationGracePeriodSeconds"]
    assert agent_of(pod)["lifecycle"] == agent_of({**hook, "containers": []})["lifecycle"]


# Relays


def test_all_that_is_about_relays_means_the_same_pods() -> None:
    labels = {"app": "artifacts-agent-relay"}
    deployment, budget, policy = (
        manifest("relay", kind) for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy")
    )
    pod = pod_of(deployment)
    assert deployment["spec"]["template"]["metadata"]["labels"] == labels
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert [each["labelSelector"]["matchLabels"] for each in pod["topologySpreadConstraints"]] == [labels]
    assert {each["metadata"]["name"] for each in manifests("relay")} == {"artifacts-agent-relay"}
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


def test_relays_may_reach_names_the_engine_and_the_api_and_nobody_reaches_them() -> None:
    spec, of_agents = manifest("relay", "NetworkPolicy")["spec"], manifest("networkpolicy")["spec"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
    assert spec["egress"][0] == of_agents["egress"][0]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 443, 4222}


def test_a_relay_has_a_configuration_that_is_valid_and_finds_what_its_secret_has(tmp_path: Path) -> None:
    pod = pod_of(manifest("relay"))
    relay = agent_of(pod)
    mounts = {mount["name"]: mount["mountPath"] for mount in relay["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    secret = Path(mounts["config"])
    assert Path(mounts["config"], "config.toml") == SYSTEM_CONFIG
    assert set(manifest("relay", "ConfigMap")["data"]) == {"config.toml"}
    (tmp_path / "config.toml").write_text(manifest("relay", "ConfigMap")["data"]["config.toml"])
    loaded = config.load(
        tmp_path / "config.toml", {"RUNTIME_DIRECTORY": "/run/artifacts-agent", "STATE_DIRECTORY": "/s"}
    )
    assert (loaded.relay.credentials, loaded.api.token_file) == (secret / "relay.creds", secret / "token")
    assert loaded.relay.team is not None
    assert loaded.forward.servers is None
    sockets = {probe: relay[probe]["exec"]["command"][1] for probe in ("livenessProbe", "readinessProbe")}
    assert sockets == dict.fromkeys(sockets, str(loaded.metrics.socket))
    assert loaded.metrics.socket is not None
    assert loaded.metrics.socket.parent.parent == Path(mounts["run"])
    assert loaded.shutdown.deadline < pod["terminationGracePeriodSeconds"] / 2


def test_a_relay_has_the_rights_and_the_room_of_an_agent() -> None:
    relay, agent = (agent_of(pod_of(manifest(name))) for name in ("relay", "sidecar"))
    for key in ("image", "resources", "securityContext"):
        assert relay[key] == agent[key]
