"""The node's and the pods' network devices, addresses and routes.

:mod:`~services.loader.netlink.node` makes what a node has once, through pyroute2;
:mod:`~services.loader.netlink.links` makes what each pod has, over a socket of its own that is several times
quicker (:mod:`~services.loader.netlink.rtnetlink` says why). Everything here is synchronous and works in the
network namespace of the thread that calls it; a pod's namespace is entered only by the thread of
:mod:`~services.loader.netlink.namespace`.
"""
