"""The barrier, who wins, and what is left over."""

from __future__ import annotations

from services.loader.ipcache.table import Changes, FeedEntry, IpcacheTable, Meaning

POD = "10.244.1.7/32"


def flush(table: IpcacheTable) -> Changes:
    changes = table.changes()
    table.written(changes)
    return changes


def entry(identity: int, tunnel: str = "", *, since: int = 0, revision: int = 1) -> FeedEntry:
    return FeedEntry(Meaning(identity, tunnel), since, revision)


def here(identity: int) -> FeedEntry:
    return FeedEntry(Meaning(identity), 0, 1, here=True)


def test_an_address_means_a_new_identity_only_when_the_policy_maps_know_it() -> None:
    table = IpcacheTable({})
    table.reach(4)
    table.put_feed(POD, entry(300, "172.31.1.2", since=5, revision=9))
    table.received(9)
    assert not flush(table)
    assert table.waiting == {POD}
    assert table.applied_revision == 8
    table.reach(5)
    assert flush(table).puts == {POD: Meaning(300, "172.31.1.2")}
    assert not table.waiting
    assert table.applied_revision == 9


def test_while_it_waits_an_address_keeps_its_old_meaning() -> None:
    table = IpcacheTable({})
    table.put_feed(POD, entry(300, revision=1))
    flush(table)
    table.put_feed(POD, entry(301, since=7, revision=2))
    assert not flush(table)
    assert table.kernel()[POD] == Meaning(300)


def test_a_removal_does_not_wait() -> None:
    table = IpcacheTable({})
    table.put_feed(POD, entry(300))
    flush(table)
    table.put_feed(POD, entry(301, since=7, revision=2))
    flush(table)
    table.delete_feed(POD)
    table.received(3)
    assert flush(table).deletes == (POD,)
    assert not table.waiting
    assert table.applied_revision == 3


def test_after_a_restart_what_the_kernel_holds_already_does_not_wait() -> None:
    table = IpcacheTable({POD: Meaning(300, "172.31.1.2")})
    table.begin_snapshot()
    table.put_feed(POD, entry(300, "172.31.1.2", since=50, revision=9))
    table.received(9)
    table.end_snapshot()
    assert not flush(table)
    assert table.applied_revision == 9


def test_a_leftover_goes_only_when_all_have_told_all() -> None:
    table = IpcacheTable({POD: Meaning(300), "10.244.9.9/32": Meaning(301)})
    table.begin_snapshot()
    table.put_feed(POD, entry(300))
    assert not flush(table)
    table.end_snapshot()
    assert not flush(table)
    table.settle()
    assert flush(table).deletes == ("10.244.9.9/32",)


def test_a_feed_that_starts_over_removes_what_it_no_longer_names() -> None:
    table = IpcacheTable({})
    table.put_feed(POD, entry(300))
    table.put_feed("10.244.1.8/32", entry(301))
    flush(table)
    table.begin_snapshot()
    table.put_feed(POD, entry(300))
    table.end_snapshot()
    assert flush(table).deletes == ("10.244.1.8/32",)


def test_nobody_takes_over_a_nodes_address() -> None:
    table = IpcacheTable({})
    node = "172.31.1.1/32"
    table.set_host({node: Meaning(1)})
    flush(table)
    table.put_feed(node, entry(300))
    table.put_local(node, 301, 0)
    assert not flush(table)
    assert table.kernel()[node] == Meaning(1)
    table.delete_feed(node)
    assert not flush(table)


def test_an_endpoint_here_outranks_the_feed() -> None:
    table = IpcacheTable({})
    table.put_local(POD, 300, 0)
    assert flush(table).puts == {POD: Meaning(300)}
    table.put_feed(POD, entry(299, "172.31.1.2"))
    assert not flush(table)
    table.delete_feed(POD)
    assert not flush(table)
    table.remove_local(POD)
    assert flush(table).deletes == (POD,)


def test_when_an_endpoint_goes_the_feeds_word_of_it_goes_too() -> None:
    table = IpcacheTable({})
    table.put_local(POD, 300, 0)
    table.put_feed(POD, here(300))
    flush(table)
    table.remove_local(POD)
    assert flush(table).deletes == (POD,)


def test_an_address_that_moved_to_another_node_stays() -> None:
    table = IpcacheTable({})
    table.put_local(POD, 300, 0)
    table.put_feed(POD, entry(300, "172.31.1.2"))
    flush(table)
    table.remove_local(POD)
    assert flush(table).puts == {POD: Meaning(300, "172.31.1.2")}


def test_an_address_that_moved_to_a_node_without_a_tunnel_stays_too() -> None:
    table = IpcacheTable({})
    table.put_local(POD, 300, 0)
    table.put_feed(POD, entry(301))
    flush(table)
    table.remove_local(POD)
    assert flush(table).puts == {POD: Meaning(301)}


def test_a_failed_write_stays_to_be_done() -> None:
    table = IpcacheTable({})
    table.put_feed(POD, entry(300, revision=4))
    table.received(4)
    assert table.changes().puts == {POD: Meaning(300)}
    assert table.applied_revision == 3
    assert table.changes().puts == {POD: Meaning(300)}
    table.written(table.changes())
    assert table.applied_revision == 4
    assert not table.changes()


def test_a_node_that_leaves_takes_its_addresses_along() -> None:
    table = IpcacheTable({})
    table.set_host({"172.31.1.2/32": Meaning(6), "10.244.2.1/32": Meaning(6, "172.31.1.2")})
    flush(table)
    table.set_host({})
    assert set(flush(table).deletes) == {"172.31.1.2/32", "10.244.2.1/32"}
