"""The node's BPF datapath as the loader sees it.

Layers, each knowing only those before it: ``native`` (libbpf through cffi), ``layout`` (what is in the maps),
``maps``, ``objects`` and ``attach`` (one kernel object each), ``compiler`` (C to objects), ``datapath`` (all
of it together). What was traded away: only the calls of libbpf that are used are bound, and everything is
synchronous, because each call costs microseconds and the slow ones (compile, load) happen at start.
"""
