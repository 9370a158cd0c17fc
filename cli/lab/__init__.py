"""The lab: the cluster services and N nodes on one machine, with real BPF.

Every node is a network namespace with its own loader; a bridge in one more namespace joins them.
Pods are network namespaces that the real CNI plugin connects. The host's own network namespace
gets nothing.
"""
