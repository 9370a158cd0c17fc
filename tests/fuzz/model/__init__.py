"""What docs/datapath.md says, as plain Python: bytes in, a decision out.

Slow and obvious on purpose: policy is a search of a list, the ipcache another one, nothing is cached.
Nothing in here may know how the programs do it. Addresses are network bytes (4 or 16), MACs 6 bytes, ports
host order.
"""
