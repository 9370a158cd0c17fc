"""ipam: nodes, the pod CIDRs they hold, and who owns which address.

The model: a *pool* is a set of CIDRs of IPv4, IPv6 or both; a *node* gets a CIDR of each family that its
pool has; an *address* of each of these is held by an *owner* (an endpoint), all of them or none. Names are
the natural keys, so that every mutation can be replayed: a node is its name, an allocation is (node, owner).

A pool never changes, so which families a node and its owners have is settled when the node is registered.

What can never be true is refused by the tables themselves (`schema.py`): an address with two owners, an
owner with two addresses of a family, a CIDR with two nodes, a CIDR that goes away under a held address. The
code above them (`cidr.py`, `addresses.py`: pure) only chooses well.

Traded away: an address lookup goes to the database each time and nothing is cached, which costs a little
and means that any number of processes over one database agree. A released address is not quarantined for
a set time; the rotation of the choice keeps it unused for as long as the CIDR allows.
"""
