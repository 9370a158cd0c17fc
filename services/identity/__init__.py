"""identity: one number for one label set in the whole cluster, and what each IP means.

The model: an *identity* is a number that stands for a set of labels, the same for every workload that has
them. Prefixes outside the cluster that policies name have identities too, in a range of their own. The
*ipcache* maps prefixes to identities; each node publishes its own and watches everybody's.

Two feeds, each with its own revisions: a new identity is an event of the first, a changed entry of the
second. An entry carries the identity feed's revision at which its identity came into being
(`identity_revision`), so that a node can hold it back until its policy knows the identity.

An identity is in use while a holder says so (leases, `use_store.py`) or an ipcache entry has it. One that
nobody has used for a while is collected (`collector.py` says why that is safe), so that a number never comes
to mean another label set while anybody uses it. Which labels count is the label filter's (`label_filter.py`).
`ipcache.py` has the rules of who may change an entry.
"""
