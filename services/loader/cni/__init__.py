"""The node's side of the CNI plugin.

``fimbria_cni.c`` is what a container runtime executes; it hands each call over a unix socket to
:class:`~services.loader.cni.server.CniServer`, which checks it, asks a
:class:`~services.loader.cni.server.CniHandler` to do the work, and answers in the words of the CNI
specification. Nothing in this package knows what an endpoint is made of.

Traded away: the plugin could have done the networking itself, as others do, and would then need Python or
a second implementation of everything. A DEL that finds no loader is the one thing it must do alone: it
leaves the request as a file, see :mod:`~services.loader.cni.delete_queue`.
"""
