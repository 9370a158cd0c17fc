"""What a configuration and CNI_ARGS say about a pod, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.pod import NamedPort, parse_args, parse_pod

ARGS = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web"}


def config(**conventions: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "fimbria", "args": {"cni": conventions}}


def refusal(conf: dict[str, Any], args: dict[str, str] | None = None) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_pod(ARGS if args is None else args, conf, "c1")
    return caught.value


def test_labels_ports_and_names_arrive() -> None:
    pod = parse_pod(
        ARGS,
        config(
            labels=[{"key": "app", "value": "web"}, {"key": "app.kubernetes.io/part-of", "value": ""}],
            namespaceLabels=[{"key": "team", "value": "a"}],
            ports=[
                {"name": "http", "port": 80, "protocol": "TCP"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ],
        ),
        "c1",
    )
    assert (pod.namespace, pod.name) == ("shop", "web")
    assert pod.ports == (NamedPort("http", 80, "TCP"), NamedPort("dns", 53, "UDP"))
    assert "k8s:app=web" in pod.label_set()
    assert "k8s:io.kubernetes.pod.namespace=shop" in pod.label_set()
    assert "k8s:io.cilium.k8s.namespace.labels.team=a" in pod.label_set()


def test_the_service_account_is_a_label() -> None:
    said = "k8s:io.cilium.k8s.policy.serviceaccount=front"
    assert said in parse_pod(ARGS, config(serviceAccount="front"), "c1").label_set()
    args = {**ARGS, "FIMBRIA_SERVICE_ACCOUNT": "front"}
    assert said in parse_pod(args, config(serviceAccount="back"), "c1").label_set()
    assert not any("serviceaccount" in label for label in parse_pod(ARGS, config(), "c1").label_set())


@pytest.mark.parametrize("value", ["Not Valid", "x" * 64])
def test_a_malformed_service_account_is_refused(value: str) -> None:
    assert refusal(config(serviceAccount=value)).details == "args.cni.serviceAccount"


def test_a_pod_cannot_give_itself_a_service_account() -> None:
    annotations = {"io.fimbria.labels": "io.cilium.k8s.policy.serviceaccount=admin"}
    conf = {**config(), "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}
    assert refusal(conf).code == CniCode.INVALID_CONFIG


def test_a_port_is_tcp_unless_it_says_otherwise() -> None:
    pod = parse_pod(ARGS, config(ports=[{"name": "http", "port": 80}]), "c1")
    assert pod.ports[0].protocol == "TCP"


def test_without_kubernetes_the_pod_is_named_after_its_container() -> None:
    pod = parse_pod({}, {"cniVersion": "1.0.0"}, "Ab_c.9-")
    assert (pod.namespace, pod.name) == ("default", "ab-c.9")


@pytest.mark.parametrize(
    ("conventions", "field"),
    [
        ({"labels": {"app": "web"}}, "args.cni.labels"),
        ({"labels": ["app=web"]}, "args.cni.labels[0]"),
        ({"labels": [{"value": "web"}]}, "args.cni.labels[0].key"),
        ({"labels": [{"key": "app", "value": 1}]}, "args.cni.labels[0].value"),
        ({"labels": [{"key": "app", "value": "ok"}, {"key": "-bad", "value": ""}]}, "args.cni.labels[1].key"),
        ({"labels": [{"key": "app", "value": "no spaces"}]}, "args.cni.labels[0].value"),
        ({"labels": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}, "args.cni.labels[1].key"),
        ({"labels": [{"key": "io.kubernetes.pod.namespace", "value": "kube-system"}]}, "args.cni.labels"),
        ({"labels": [{"key": f"k{n}", "value": ""} for n in range(257)]}, "args.cni.labels"),
        ({"namespaceLabels": [{"key": "", "value": ""}]}, "args.cni.namespaceLabels[0].key"),
        ({"ports": [{"name": "http", "port": 0}]}, "args.cni.ports[0].port"),
        ({"ports": [{"name": "http", "port": 65536}]}, "args.cni.ports[0].port"),
        ({"ports": [{"name": "http", "port": True}]}, "args.cni.ports[0].port"),
        ({"ports": [{"name": "http", "port": "80"}]}, "args.cni.ports[0].port"),
        ({"ports": [{"name": "HTTP", "port": 80}]}, "args.cni.ports[0].name"),
        ({"ports": [{"name": "80", "port": 80}]}, "args.cni.ports[0].name"),
        ({"ports": [{"name": "a--b", "port": 80}]}, "args.cni.ports[0].name"),
        ({"ports": [{"port": 80}]}, "args.cni.ports[0].name"),
        ({"ports": [{"name": "http", "port": 80, "protocol": "ICMP"}]}, "args.cni.ports[0].protocol"),
        ({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}, "args.cni.ports[1].name"),
    ],
)
def test_a_bad_field_is_named(conventions: dict[str, Any], field: str) -> None:
    error = refusal(config(**conventions))
    assert error.code is CniCode.INVALID_CONFIG
    assert f": {field}:" in error.msg


def test_args_of_the_wrong_type_are_named() -> None:
    assert "args.cni: got 3" in refusal({"args": {"cni": 3}}).msg
    assert "args: got []" in refusal({"args": []}).msg


@pytest.mark.parametrize(
    "args",
    [
        {"K8S_POD_NAMESPACE": "Shop", "K8S_POD_NAME": "web"},
        {"K8S_POD_NAMESPACE": "", "K8S_POD_NAME": "web"},
        {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web/1"},
        {"K8S_POD_NAMESPACE": "a" * 64, "K8S_POD_NAME": "web"},
    ],
)
def test_bad_pod_names_are_an_environment_error(args: dict[str, str]) -> None:
    error = refusal(config(), args)
    assert error.code is CniCode.INVALID_ENVIRONMENT
    assert "CNI_ARGS" in error.msg


@pytest.mark.parametrize(
    "extra",
    [
        {"ipam": {"type": "host-local"}},
        {"ipMasq": True},
        {"args": {"cni": {"ips": ["10.0.0.9"]}}},
        {"runtimeConfig": {"ips": ["10.0.0.9"]}},
        {"runtimeConfig": {"portMappings": [{"hostPort": 80}]}},
    ],
)
def test_what_would_be_ignored_is_refused_with_code_2(extra: dict[str, Any]) -> None:
    error = refusal({"cniVersion": "1.0.0", **extra})
    assert error.code is CniCode.UNSUPPORTED_FIELD
    assert "unsupported field" in error.msg


def test_cni_args_are_pairs() -> None:
    assert parse_args("IgnoreUnknown=1;;K8S_POD_NAME=a=b") == {"IgnoreUnknown": "1", "K8S_POD_NAME": "a=b"}
    for text in ("noequals", "=value"):
        with pytest.raises(CniError) as caught:
            parse_args(text)
        assert caught.value.code is CniCode.INVALID_ENVIRONMENT


def test_podman_passes_labels_and_ports_on_in_cni_args() -> None:
    args = parse_args(
        "K8S_POD_NAME=Eager_Mendel;FIMBRIA_LABELS=app=web,tier=front;FIMBRIA_PORTS=http:80,dns:53/udp"
    )
    pod = parse_pod({**args, "FIMBRIA_NAMESPACE_LABELS": "team=a"}, config(), "c1")
    assert (pod.namespace, pod.name) == ("default", "eager-mendel")
    assert (pod.labels, pod.namespace_labels) == ({"app": "web", "tier": "front"}, {"team": "a"})
    assert pod.ports == (NamedPort("http", 80, "TCP"), NamedPort("dns", 53, "UDP"))


def test_containerd_passes_labels_and_ports_on_in_annotations() -> None:
    annotations = {"io.fimbria.labels": "app=web, tier=", "io.fimbria.ports": "http:80/TCP", "other": "=,"}
    pod = parse_pod(ARGS, {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}, "c1")
    assert pod.labels == {"app": "web", "tier": ""}
    assert pod.ports == (NamedPort("http", 80, "TCP"),)


def test_annotations_cannot_say_whose_namespace_it_is() -> None:
    annotations = {"io.fimbria.namespace-labels": "team=b", "io.fimbria.namespaceLabels": "team=b"}
    pod = parse_pod(ARGS, {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}, "c1")
    assert pod.namespace_labels == {}


def test_what_is_said_of_a_pod_counts_before_what_is_said_of_all() -> None:
    conf = config(labels=[{"key": "app", "value": "any"}, {"key": "zone", "value": "a"}])
    pod = parse_pod({**ARGS, "FIMBRIA_LABELS": "app=web"}, conf, "c1")
    assert pod.labels == {"app": "web", "zone": "a"}


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        ({"FIMBRIA_LABELS": "app"}, CniCode.INVALID_ENVIRONMENT, "FIMBRIA_LABELS: got 'app'"),
        ({"FIMBRIA_LABELS": "a=b c"}, CniCode.INVALID_CONFIG, "CNI_ARGS.labels[0].value"),
        ({"FIMBRIA_PORTS": "http"}, CniCode.INVALID_ENVIRONMENT, "FIMBRIA_PORTS: got 'http'"),
        ({"FIMBRIA_PORTS": "http:99999"}, CniCode.INVALID_CONFIG, "CNI_ARGS.ports[0].port"),
    ],
)
def test_bad_text_is_named(args: dict[str, str], code: CniCode, part: str) -> None:
    error = refusal(config(), {**ARGS, **args})
    assert error.code is code
    assert part in error.msg


def test_a_bad_annotation_is_named() -> None:
    conf = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"io.fimbria.labels": "app"}}}
    assert "pod annotation io.fimbria.labels: got 'app'" in refusal(conf).msg


def test_a_pod_of_kubernetes_keeps_its_name_as_it_is() -> None:
    error = refusal(config(), {**ARGS, "K8S_POD_NAME": "Web_1", "K8S_POD_INFRA_CONTAINER_ID": "c1"})
    assert error.code is CniCode.INVALID_ENVIRONMENT


def test_annotations_come_from_all_who_know_them() -> None:
    conf = {
        **config(
            annotations=[
                {"key": "fimbria.io/ip-pool", "value": "red"},
                {"key": "note", "value": "a b, c=d;"},
            ],
            namespaceAnnotations=[{"key": "fimbria.io/ip-pool", "value": "blue"}],
        ),
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"fimbria.io/ip-pool": "green", "else": "1"}},
    }
    pod = parse_pod(ARGS, conf, "c1")
    assert pod.annotations == {"fimbria.io/ip-pool": "red", "note": "a b, c=d;", "else": "1"}
    assert pod.namespace_annotations == {"fimbria.io/ip-pool": "blue"}
    pod = parse_pod({**ARGS, "FIMBRIA_IP_POOL": "gold"}, conf, "c1")
    assert pod.annotations["fimbria.io/ip-pool"] == "gold"


@pytest.mark.parametrize(
    ("conventions", "field"),
    [
        ({"annotations": {"a": "b"}}, "args.cni.annotations"),
        ({"annotations": [{"key": "not a key", "value": ""}]}, "args.cni.annotations[0].key"),
        ({"annotations": [{"key": "a", "value": 1}]}, "args.cni.annotations[0].value"),
        (
            {"namespaceAnnotations": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]},
            "args.cni.namespaceAnnotations[1].key",
        ),
    ],
)
def test_malformed_annotations_are_refused(conventions: dict[str, Any], field: str) -> None:
    assert refusal(config(**conventions)).details == field
