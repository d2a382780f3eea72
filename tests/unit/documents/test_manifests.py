"""The manifests in systemd/kubernetes: valid in each version of Kubernetes, complete, and unprivileged.

What "restricted" forbids is from the Pod Security Standards of Kubernetes' own documentation.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from agent import __version__
from tests.support.documents import ROOT, links, read

Json = dict[str, Any]
OLDEST = (1, 29)
DIRECTORY = ROOT / "systemd/kubernetes"
VERSIONS = [version for version in dict.fromkeys(all_versions()) if tuple(map(int, version.split(".")[:2])) >= OLDEST]
PODS = ("sidecar", "daemonset")
MANIFESTS = (*PODS, "networkpolicy")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@cache
def _parsed(name: str) -> Json:
    manifest: Json = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    return manifest


def manifest(name: str) -> Json:
    """Return the manifest of that name, to be changed at will."""
    return copy.deepcopy(_parsed(name))


def pod_of(manifest: Json) -> Json:
    """Return the pod's spec."""
    spec: Json = manifest["spec"]["template"]["spec"] if manifest["kind"] == "DaemonSet" else manifest["spec"]
    return spec


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
    assert kubernetes_validate.validate(manifest(name), version, strict=True) == version.rpartition(".")[0]


def misspell(pod: Json) -> None:
    agent_of(pod)["startupProb"] = agent_of(pod).pop("startupProbe")


def give_a_word_for_a_number(pod: Json) -> None:
    agent_of(pod)["startupProbe"]["failureThreshold"] = "sixty"


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
def test_a_mistake_in_the_policy_would_be_noticed(mistake: Callable[[Json], None], version: str) -> None:
    wrong = manifest("networkpolicy")
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


def test_the_sidecar_keeps_to_the_standard() -> None:
    assert [*violations(pod_of(manifest("sidecar")))] == []


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


@pytest.mark.parametrize("name", PODS)
def test_a_slow_start_is_waited_for(name: str) -> None:
    agent = agent_of(pod_of(manifest(name)))
    probe = agent["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert agent["resources"]["requests"]["cpu"] == "100m"


@pytest.mark.parametrize("name", PODS)
def test_both_are_complete(name: str) -> None:
    pod = pod_of(manifest(name))
    agent, other = agent_of(pod), agent_of(pod_of(manifest(next(each for each in PODS if each != name))))
    for key in ("env", "image", "lifecycle", "readinessProbe", "resources", "startupProbe"):
        assert agent[key] == other[key]
    assert agent["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", PODS)
def test_the_hook_for_kubernetes_is_part_of_the_manifests(name: str) -> None:
    hook = yaml.safe_load((ROOT / "agent/hooks/kubernetes.yaml").read_text())["spec"]
    pod = pod_of(manifest(name))
    assert pod["terminationGracePeriodSeconds"] == hook["terminationGracePeriodSeconds"]
    assert agent_of(pod)["lifecycle"] == agent_of({**hook, "containers": []})["lifecycle"]
