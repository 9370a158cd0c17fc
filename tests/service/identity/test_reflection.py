"""A stranger's client lists and calls every method of identity by reflection, JSON in and out."""

from __future__ import annotations

from tests.service.curl import bad_request, call, error_info, listed, refuse
from tests.service.identity.conftest import Place
from tests.service.processes import ServiceProcess

IDENTITIES = "fimbria.identity.v1.IdentityService"
IPCACHE = "fimbria.identity.v1.IpCacheService"


def test_every_service_and_method_is_listed(identity: ServiceProcess) -> None:
    assert {IDENTITIES, IPCACHE, "grpc.health.v1.Health"} <= listed(identity.target, "--list-services")
    methods = listed(identity.target, "--list-methods")
    named: tuple[str, ...] = (
        "Resolve",
        "GetIdentity",
        "ListIdentities",
        "WatchIdentities",
        "ReportUse",
        "EndUse",
    )
    assert {f"{IDENTITIES}/{name}" for name in named} <= methods
    named = ("ListHolders", "GetLabelFilter", "SetLabelFilter", "GetIdentityStatus", "ResolvePrefixes")
    assert {f"{IDENTITIES}/{name}" for name in named} <= methods
    named = ("Publish", "Withdraw", "ListIpCacheEntries", "WatchIpCache")
    assert {f"{IPCACHE}/{name}" for name in named} <= methods


def test_a_whole_life_by_json(identity: ServiceProcess, place: Place) -> None:
    target = identity.target
    made = call(target, f"{IDENTITIES}/Resolve", {"labels": place.labels("web")})
    assert call(target, f"{IDENTITIES}/GetIdentity", {"id": made["id"]}) == made
    first = call(target, f"{IDENTITIES}/ListIdentities", {"includeReserved": True, "pageSize": 1})
    assert first["identities"] == [{"id": 1, "labels": ["reserved:host"], "name": "host"}]
    holder = f"node/{place.name}"
    report = {"holder": holder, "identities": [made["id"], 65001]}
    used = call(target, f"{IDENTITIES}/ReportUse", report)
    assert used["unknown"] == [65001] and used["leaseSeconds"] > 0
    holders = call(target, f"{IDENTITIES}/ListHolders", {"pageSize": 1000})["holders"]
    assert [each["identities"] for each in holders if each["name"] == holder] == [1]
    assert call(target, f"{IDENTITIES}/EndUse", {"holder": holder}) == {}
    filter_ = call(target, f"{IDENTITIES}/GetLabelFilter", {})
    wanted = {"patterns": ["k8s:app"], "validateOnly": True}
    assert call(target, f"{IDENTITIES}/SetLabelFilter", wanted)["filter"]["patterns"] == ["k8s:app"]
    assert call(target, f"{IDENTITIES}/GetLabelFilter", {}) == filter_
    spaces = call(target, f"{IDENTITIES}/GetIdentityStatus", {})["spaces"]
    assert [space["name"] for space in spaces] == ["cluster", "prefixes"]
    entry = {"prefix": place.prefix(1), "identity": made["id"], "tunnelEndpoint": "172.31.0.1"}
    revision = call(target, f"{IPCACHE}/Publish", {"node": place.name, "entries": [entry]})["revision"]
    held = call(target, f"{IPCACHE}/ListIpCacheEntries", {"node": place.name})["entries"]
    assert held == [{**entry, "node": place.name, "identityRevision": made["revision"], "revision": revision}]
    call(target, f"{IPCACHE}/Withdraw", {"node": place.name, "prefixes": [place.prefix(1)]})
    assert "entries" not in call(target, f"{IPCACHE}/ListIpCacheEntries", {"node": place.name})


def test_an_error_says_code_reason_and_field(identity: ServiceProcess) -> None:
    error = refuse(identity.target, f"{IDENTITIES}/Resolve", {"labels": ["app=web"]})
    assert error["code"] == "invalid_argument"
    assert error_info(error).reason == "LABEL_INVALID"
    assert [violation.field for violation in bad_request(error).field_violations] == ["labels"]
