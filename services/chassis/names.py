"""Every name that leaves the process in a trace, a metric or a log line.

Names are an interface: dashboards, the lab's trace view and other people's alerts are written against them.
They stand here and nowhere else, because the semantic conventions for RPC are still moving.
"""

from __future__ import annotations

from typing import Final

# Spans: the cause of a chain.
CNI_ADD: Final = "cni.add"
CNI_DEL: Final = "cni.del"
CNI_CHECK: Final = "cni.check"
POLICY_APPLY: Final = "policy.apply"
POLICY_DELETE: Final = "policy.delete"
IDENTITY_UPDATE: Final = "identity.update"
LOADER_RESTART: Final = "loader.restart"

# Spans: what a node does about it.
ENDPOINT_REGENERATE: Final = "endpoint.regenerate"
POLICY_SUBSCRIBE: Final = "policy.Subscribe"
ENDPOINT_LINK: Final = "endpoint.link"
BPF_COMPILE: Final = "bpf.compile"
BPF_LOAD: Final = "bpf.load"
BPF_MIGRATE: Final = "bpf.migrate"
BPF_ATTACH: Final = "bpf.attach"
BPF_MAPS_SYNC: Final = "bpf.maps.sync"
ENDPOINT_REALIZED: Final = "endpoint.realized"

# Attributes of RPC spans and metrics.
RPC_SYSTEM: Final = "rpc.system.name"
RPC_SYSTEM_GRPC: Final = "grpc"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"

# Attributes of the spans above.
ENDPOINT_ID: Final = "endpoint.id"
ENDPOINT_IDS: Final = "endpoint.ids"
IDENTITY: Final = "identity"
REGENERATION_LEVEL: Final = "level"
REGENERATION_CAUSE: Final = "cause"
POLICY_REVISION: Final = "policy.revision"
NODE_NAME: Final = "node.name"
CACHE_HIT: Final = "cache.hit"
INSNS: Final = "insns"
VERIFIER_TIME: Final = "verifier.time"
ADDS: Final = "adds"
DELETES: Final = "deletes"
SOURCE: Final = "source"
RESTORED_ENDPOINTS: Final = "endpoints"
CONTAINER_ID: Final = "container.id"
POD: Final = "pod"
SUBJECT: Final = "subject"
MAP: Final = "map"
ENTRIES: Final = "entries"
ADOPTED: Final = "adopted"
RECOVERED: Final = "recovered"

# Metrics.
RPC_SERVER_DURATION: Final = "rpc.server.call.duration"
RPC_CLIENT_DURATION: Final = "rpc.client.call.duration"
CALLS_RUNNING: Final = "fimbria.calls.running"
CALLS_REFUSED: Final = "fimbria.calls.refused"
DATAPATH_PACKETS: Final = "fimbria.datapath.packets"
DATAPATH_BYTES: Final = "fimbria.datapath.bytes"
ENDPOINTS: Final = "fimbria.endpoints"
FLOWS_LOST: Final = "fimbria.flows.lost"
REGENERATION_DURATION: Final = "fimbria.endpoint.regeneration.duration"
REGENERATION_RETRIES: Final = "fimbria.endpoint.regeneration.retries"
BPF_PHASE_DURATION: Final = "fimbria.bpf.phase.duration"
REGENERATIONS: Final = "fimbria.endpoint.regenerations"
PROGRAMS_ATTACHED: Final = "fimbria.programs.attached"
MAP_PRESSURE: Final = "fimbria.map.pressure"
MAP_ENTRIES: Final = "fimbria.map.entries"
WATCH_SYNC_AGE: Final = "fimbria.watch.sync.age"
WATCH_CONNECTED: Final = "fimbria.watch.connected"
IDENTITIES_COLLECTED: Final = "fimbria.identity.collected"
IDENTITIES_UNUSED: Final = "fimbria.identity.unused"
IDENTITY_BACKLOG: Final = "fimbria.identity.collection.backlog"
IDENTITY_LAG: Final = "fimbria.identity.collection.lag"
IDENTITY_UTILISATION: Final = "fimbria.identity.space.utilisation"

# Attributes of metrics.
REASON: Final = "reason"
DIRECTION: Final = "direction"
STATE: Final = "state"
PHASE: Final = "phase"
OUTCOME: Final = "outcome"
PROGRAM: Final = "program"
KIND: Final = "kind"
WATCH: Final = "watch"
SPACE: Final = "space"

# Keys of structured log lines.
LOG_TRACE_ID: Final = "trace_id"
LOG_SPAN_ID: Final = "span_id"

# gRPC metadata (W3C Trace Context).
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"


def rpc_span_name(path: str) -> str:
    """``/fimbria.ipam.v1.AddressService/Allocate`` → ``ipam.Allocate``, on both sides of the call."""
    service, _, method = path.strip("/").partition("/")
    parts = service.split(".")
    return f"{parts[1] if len(parts) > 2 else parts[0]}.{method}"
