"""The rules of the neighbourhood, one by one: docs/wire/gossip.md 3.3, and what is better here."""

from __future__ import annotations

import itertools

import pytest
from gossip_machines import ME, Swarmer, peer

from dialkey.allowance import Allowance
from dialkey.errors import InvalidInput
from dialkey_gossip import MembershipConfig
from dialkey_gossip.ids import PeerId
from dialkey_gossip.messages import (
    Disconnect,
    ForwardJoin,
    Join,
    Message,
    Neighbor,
    PeerInfo,
    Shuffle,
    ShuffleReply,
)
from dialkey_gossip.pace import PeerPace

HIGH, LOW = Neighbor(True), Neighbor(False)


def names(sent: list[tuple[PeerId, Message]]) -> list[str]:
    return [type(message).__name__ for _, message in sent]


# --- joining ------------------------------------------------------------------------------------


def test_join_asks_each_contact_once_but_not_ourselves() -> None:
    swarm = Swarmer()
    swarm.machine.own_data = b"me"
    swarm.machine.join([peer(1), peer(2), peer(1), ME], 0.0)
    assert swarm.taken() == [(peer(1), Join(b"me")), (peer(2), Join(b"me"))]


def test_a_contact_that_does_not_answer_is_asked_again_with_growing_pauses() -> None:
    swarm = Swarmer()
    swarm.machine.join([peer(1)], 0.0)
    swarm.taken()
    at = []
    for _ in range(3000):
        swarm.run_for(0.1)
        at += [swarm.now for _ in swarm.taken()]
    pauses = [after - before for before, after in itertools.pairwise(at)]
    assert 0.7 <= at[0] <= 1.4
    assert pauses[1] > pauses[0]
    assert all(20 <= pause <= 40 for pause in pauses[5:])
    assert 12 <= len(at) <= 18


def test_retries_of_a_swarm_are_not_in_step() -> None:
    firsts = set()
    for seed in range(10):
        swarm = Swarmer(seed=seed)
        swarm.machine.join([peer(1)], 0.0)
        swarm.taken()
        while not swarm.taken():
            swarm.run_for(0.01)
        firsts.add(round(swarm.now, 2))
    assert len(firsts) >= 7


def test_a_contact_that_answered_is_not_asked_again() -> None:
    swarm = Swarmer()
    swarm.machine.join([peer(1)], 0.0)
    assert swarm.hear(peer(1), HIGH) == [(peer(1), Neighbor(True))]
    swarm.run_for(100)
    assert Join() not in [message for _, message in swarm.taken()]


def test_a_joiner_is_taken_in_and_made_known() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    sent = swarm.hear(peer(3), Join(b"there"))
    assert sent[0] == (peer(3), HIGH)
    forward = ForwardJoin(PeerInfo(peer(3), b"there"), 6)
    assert sorted(sent[1:]) == [(peer(1), forward), (peer(2), forward)]
    assert swarm.up == [peer(3)]
    assert swarm.learnt == [(peer(3), b"there")]
    assert swarm.hear(peer(3), HIGH) == []  # its answer


def test_a_joiner_without_data_is_forwarded_without() -> None:
    swarm = Swarmer().with_neighbors(1)
    assert swarm.hear(peer(2), Join())[1:] == [(peer(1), ForwardJoin(PeerInfo(peer(2)), 6))]


def test_a_joiner_of_a_full_node_takes_the_place_of_somebody() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5)
    sent = swarm.hear(peer(6), Join())
    [victim] = swarm.down
    assert names([each for each in sent if each[0] == victim]) == ["ShuffleReply", "Disconnect"]
    assert (victim, Disconnect(True)) in sent
    assert len(swarm.active) == 5
    assert peer(6) in swarm.active
    assert victim in swarm.passive
    assert victim in swarm.released


def test_an_evicted_joiner_that_answers_is_not_taken_in_again() -> None:
    swarm = Swarmer(active_capacity=2).with_neighbors(1, 2)
    for number in range(10, 20):
        swarm.hear(peer(number), Join())
    evicted = [each for each in swarm.down if each not in (peer(1), peer(2))]
    assert evicted
    before = swarm.active
    for each in evicted:
        assert swarm.hear(each, HIGH) == []
    assert swarm.active == before


def test_forward_join_goes_on_to_somebody_else() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3)
    for _ in range(20):
        [(to, message)] = swarm.hear(peer(1), ForwardJoin(PeerInfo(peer(9), b"d"), 5))
        assert to in (peer(2), peer(3))
        assert message == ForwardJoin(PeerInfo(peer(9), b"d"), 4)
    assert swarm.passive == set()


def test_forward_join_enters_the_passive_view_on_its_way() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    swarm.hear(peer(1), ForwardJoin(PeerInfo(peer(9)), 3))
    assert swarm.passive == {peer(9)}


@pytest.mark.parametrize(("neighbors", "ttl"), [((1,), 5), ((1, 2, 3), 0)])
def test_forward_join_ends(neighbors: tuple[int, ...], ttl: int) -> None:
    swarm = Swarmer().with_neighbors(*neighbors)
    end = ForwardJoin(PeerInfo(peer(9)), ttl)
    assert swarm.hear(peer(1), end) == [(peer(9), HIGH)]
    assert peer(9) not in swarm.active  # before it answers
    assert swarm.hear(peer(1), end) == []  # asked already
    assert swarm.hear(peer(9), HIGH) == []
    assert peer(9) in swarm.active


def test_forward_join_about_ourselves_and_far_walks() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    assert swarm.hear(peer(1), ForwardJoin(PeerInfo(ME), 0)) == []
    [(_, message)] = swarm.hear(peer(1), ForwardJoin(PeerInfo(peer(9)), 65535))
    assert message == ForwardJoin(PeerInfo(peer(9)), 5)


# --- requests -----------------------------------------------------------------------------------


def test_a_request_is_answered_in_its_priority() -> None:
    swarm = Swarmer()
    assert swarm.hear(peer(1), HIGH) == [(peer(1), HIGH)]
    assert swarm.hear(peer(2), LOW) == [(peer(2), LOW)]
    assert swarm.active == {peer(1), peer(2)}


def test_low_priority_is_refused_where_there_is_no_room() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5)
    sent = swarm.hear(peer(6), LOW)
    assert [to for to, _ in sent] == [peer(6), peer(6)]
    assert isinstance(sent[0][1], ShuffleReply)
    assert {each.id for each in sent[0][1].nodes} == {peer(n) for n in range(1, 6)}
    assert sent[1][1] == Disconnect(True)
    assert swarm.active == {peer(n) for n in range(1, 6)}
    assert peer(6) in swarm.released


def test_high_priority_is_granted_to_each_some_times_and_then_only_where_there_is_room() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5)
    granted = 0
    for _ in range(20):
        swarm.hear(peer(9), HIGH)
        granted += peer(9) in swarm.active
        swarm.hear(peer(9), Disconnect(True))
        for number in range(1, 6):
            swarm.hear(peer(number), LOW)
    assert granted == 4
    swarm.run_for(60)
    swarm.hear(peer(9), HIGH)
    assert peer(9) in swarm.active


def test_a_peer_that_joins_all_the_time_evicts_few() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5)
    sent = []
    for _ in range(50):
        sent += swarm.hear(peer(9), Join())
    assert len(swarm.down) <= 1
    assert len([m for _, m in sent if isinstance(m, ForwardJoin)]) <= 16


def test_ourselves_are_never_a_neighbour() -> None:
    swarm = Swarmer()
    for message in (Join(), HIGH, LOW, ShuffleReply((PeerInfo(ME),))):
        swarm.hear(ME, message)
    assert ME not in swarm.active | swarm.passive


def test_answers_are_not_answered_forever() -> None:
    swarm = Swarmer()
    assert swarm.hear(peer(1), HIGH)
    for _ in range(5):
        assert swarm.hear(peer(1), HIGH) == []


def test_requests_without_an_answer_are_bounded() -> None:
    swarm = Swarmer().with_neighbors(1)
    asked = 0
    for number in range(1000):
        asked += len(swarm.hear(peer(1), ForwardJoin(PeerInfo(peer(100 + number), b"x"), 0)))
    assert asked == 64
    assert len(swarm.machine._hearsay) <= 64 + 31
    swarm.run_for(30)
    assert not swarm.machine.pending
    assert not swarm.machine._late
    assert len(swarm.machine._hearsay) <= 31


# --- leaving ------------------------------------------------------------------------------------


def test_a_neighbour_that_leaves_in_good_order_is_replaced() -> None:
    swarm = Swarmer().with_neighbors(1, 2).with_passive(7)
    assert swarm.hear(peer(1), Disconnect(True)) == [(peer(7), LOW)]
    assert swarm.down == [peer(1)]
    assert peer(1) in swarm.passive
    assert peer(1) in swarm.released


def test_a_neighbour_that_ends_is_not_kept() -> None:
    swarm = Swarmer().with_neighbors(1, 2).with_passive(7)
    swarm.hear(peer(1), Disconnect(False))
    assert peer(1) not in swarm.passive


def test_the_last_neighbour_is_replaced_with_high_priority() -> None:
    swarm = Swarmer().with_neighbors(1).with_passive(7)
    assert swarm.hear(peer(1), Disconnect(False)) == [(peer(7), HIGH)]


def test_whoever_left_is_not_asked_at_once() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    assert swarm.hear(peer(1), Disconnect(True)) == []


def test_a_lost_neighbour_is_replaced_and_tried_again() -> None:
    swarm = Swarmer().with_neighbors(1, 2).with_passive(7)
    assert swarm.lose(peer(1)) == [(peer(7), LOW)]
    assert swarm.down == [peer(1)]
    assert peer(1) not in swarm.passive
    swarm.hear(peer(7), LOW)
    swarm.run_for(2)
    assert (peer(1), HIGH) in swarm.taken()
    swarm.hear(peer(1), HIGH)
    swarm.run_for(1000)
    assert [to for to, message in swarm.taken() if message == HIGH] == []


def test_a_lost_peer_is_given_up_at_last() -> None:
    swarm = Swarmer(lost_retention_s=3600).with_neighbors(1, 2)
    swarm.lose(peer(1))
    tries = []
    for _ in range(8000):
        swarm.run_for(1)
        if any(to == peer(1) for to, _ in swarm.taken()):
            tries.append(swarm.now)
            swarm.lose(peer(1))
    assert 10 <= len(tries) <= 30
    assert tries[-1] < 4200
    assert not len(swarm.machine._contacts)


def test_quit_says_goodbye_to_neighbours_and_to_those_just_asked() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    swarm.hear(peer(1), ForwardJoin(PeerInfo(peer(9)), 0))
    swarm.machine.quit(swarm.now)
    sent = swarm.taken()
    for number in (1, 2):
        own = [message for to, message in sent if to == peer(number)]
        assert isinstance(own[0], ShuffleReply)
        assert own[1:] == [Disconnect(False)]
    assert [message for to, message in sent if to == peer(9)] == [Disconnect(False)]
    assert swarm.down == []
    assert set(swarm.released) >= {peer(1), peer(2), peer(9)}


def test_content_from_a_stranger_is_answered_with_goodbye_now_and_then() -> None:
    swarm = Swarmer().with_neighbors(1)
    for _ in range(10):
        swarm.machine.heard_content(peer(9), swarm.now)
    assert names(swarm.taken()) == ["ShuffleReply", "Disconnect"]
    swarm.machine.heard_content(peer(1), swarm.now)
    assert swarm.taken() == []
    swarm.run_for(3)
    swarm.taken()
    swarm.machine.heard_content(peer(9), swarm.now)
    assert names(swarm.taken()) == ["ShuffleReply", "Disconnect"]


def test_late_content_does_not_undo_our_own_join() -> None:
    """A neighbour announces something to us, we leave and join again, the announcement comes."""
    swarm = Swarmer()
    swarm.machine.join([peer(1)], 0.0)
    swarm.taken()
    swarm.machine.heard_content(peer(1), 0.1)
    assert swarm.taken() == []
    assert swarm.hear(peer(1), HIGH) == [(peer(1), Neighbor(True))]
    assert swarm.active == {peer(1)}


def test_late_content_does_not_undo_the_join_of_one_who_was_cut_off() -> None:
    swarm = Swarmer(retry_s=1.0).with_neighbors(1)
    swarm.lose(peer(1))
    swarm.run_for(2)
    assert (peer(1), Join()) in swarm.taken()
    swarm.machine.heard_content(peer(1), swarm.now)
    assert swarm.taken() == []


def test_a_join_without_an_answer_excuses_nobody_for_ever() -> None:
    swarm = Swarmer(retry_s=100.0)
    swarm.machine.join([peer(1)], 0.0)
    swarm.run_for(11)
    swarm.taken()
    swarm.machine.heard_content(peer(1), swarm.now)
    assert names(swarm.taken()) == ["ShuffleReply", "Disconnect"]


# --- refilling ----------------------------------------------------------------------------------


def test_all_free_places_are_filled_at_once() -> None:
    swarm = Swarmer().with_neighbors(1, 2).with_passive(*range(10, 30))
    sent = swarm.hear(peer(1), Disconnect(False))
    assert len(sent) == 4
    assert len({to for to, _ in sent}) == 4


def test_a_request_that_is_late_does_not_block_and_then_counts_as_lost() -> None:
    swarm = Swarmer(active_capacity=2).with_neighbors(1, 2).with_passive(7, 8)
    [(first, _)] = swarm.hear(peer(1), Disconnect(False))
    swarm.run_for(0.6)
    [(second, _)] = swarm.taken()
    assert {first, second} == {peer(7), peer(8)}
    assert first in swarm.passive
    swarm.run_for(6)
    assert swarm.passive.isdisjoint({first, second})
    assert first in swarm.released


def test_a_late_answer_still_counts() -> None:
    swarm = Swarmer(active_capacity=2).with_neighbors(1, 2).with_passive(7)
    swarm.hear(peer(1), Disconnect(False))
    swarm.run_for(2)
    assert swarm.hear(peer(7), LOW) == []
    assert peer(7) in swarm.active


def test_refusals_in_a_row_end() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5).with_passive(*range(10, 40))
    asked = [to for to, _ in swarm.hear(peer(1), Disconnect(False))]
    total = len(asked)
    while asked:
        asked = [to for to, _ in swarm.hear(asked[0], Disconnect(True))]
        total += len(asked)
    assert total == 4


def test_two_that_leave_in_turn_do_not_keep_us_busy() -> None:
    """A neighbour that agrees and leaves at once, with another that does the same: no cascade."""
    swarm = Swarmer()
    swarm.hear(peer(1), HIGH)
    swarm.hear(peer(2), HIGH)
    asked = 0
    for _ in range(500):
        for number in (1, 2):
            if swarm.machine.uses(peer(number)):
                swarm.hear(peer(number), LOW)
                asked += len(swarm.hear(peer(number), Disconnect(True)))
    assert asked <= 40
    swarm.run_for(5)
    assert swarm.taken()  # but it goes on, slowly


def test_a_swarm_of_pairs_is_refused() -> None:
    with pytest.raises(InvalidInput, match="active_capacity"):
        MembershipConfig(active_capacity=1)


# --- shuffling ----------------------------------------------------------------------------------


def shuffles(swarm: Swarmer) -> list[Shuffle]:
    return [message for _, message in swarm.taken() if isinstance(message, Shuffle)]


def test_shuffles_come_with_jitter_once_a_minute_in_the_end() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5)
    at = []
    for _ in range(12_000):
        swarm.run_for(0.1)
        at += [swarm.now for _ in shuffles(swarm)]
    pauses = [after - before for before, after in itertools.pairwise(at)][-12:]
    assert all(47 <= pause <= 73 for pause in pauses)
    assert len({round(pause, 1) for pause in pauses}) > 6


def test_what_a_shuffle_offers() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3, 4, 5).with_passive(*range(10, 30))
    swarm.machine.own_data = b"me"
    swarm.run_for(200)
    for message in shuffles(swarm):
        assert message.origin == ME
        assert message.ttl == 6
        ids = [each.id for each in message.nodes]
        assert message.nodes[-1] == PeerInfo(ME, b"me")
        assert len(set(ids)) == len(ids) == 8
        assert len(set(ids) & swarm.active) == 3
        assert len(set(ids) & swarm.passive) == 4


def test_a_shuffle_walks_on_and_is_not_opened() -> None:
    swarm = Swarmer().with_neighbors(1, 2, 3)
    for _ in range(10):
        [(to, message)] = swarm.hear(peer(1), Shuffle(peer(2), (PeerInfo(peer(9)),), 4))
        assert to == peer(3)
        assert message == Shuffle(peer(2), (PeerInfo(peer(9)),), 3)
    assert swarm.passive == set()


@pytest.mark.parametrize(("neighbors", "ttl"), [((1, 2), 0), ((1,), 4)])
def test_a_shuffle_ends_and_is_answered_to_its_origin(neighbors: tuple[int, ...], ttl: int) -> None:
    swarm = Swarmer().with_neighbors(*neighbors).with_passive(20, 21)
    nodes = tuple(PeerInfo(peer(n), b"at %d" % n) for n in (30, 31, 32))
    [(to, message)] = swarm.hear(peer(1), Shuffle(peer(9), nodes, ttl))
    assert to == peer(9)
    assert isinstance(message, ShuffleReply)
    assert len(message.nodes) == 3
    assert swarm.passive >= {peer(30), peer(31), peer(32)}
    assert peer(9) in swarm.released


def test_our_own_shuffle_that_comes_back_is_dropped() -> None:
    swarm = Swarmer().with_neighbors(1, 2)
    assert swarm.hear(peer(1), Shuffle(ME, (), 3)) == []


def test_shuffles_of_strangers_are_bounded() -> None:
    swarm = Swarmer().with_neighbors(1)
    nodes = tuple(PeerInfo(peer(n), b"x" * 600) for n in range(100, 400))
    swarm.hear(peer(1), Shuffle(peer(9), nodes, 0))
    assert len(swarm.passive) <= 30
    assert swarm.learnt == []  # more than 512 bytes of data


def test_a_reply_that_nobody_asked_for_is_ignored() -> None:
    swarm = Swarmer().with_neighbors(1)
    swarm.run_for(1000)
    swarm.taken()
    swarm.machine._is_shuffle_open = False
    swarm.hear(peer(9), ShuffleReply((PeerInfo(peer(10)),)))
    assert swarm.passive == set()
    swarm.hear(peer(1), ShuffleReply((PeerInfo(peer(10)),)))
    assert swarm.passive == {peer(10)}


def test_the_passive_view_is_bounded_and_data_goes_with_its_peer() -> None:
    swarm = Swarmer().with_neighbors(1)
    for start in range(100, 1000, 10):
        nodes = tuple(PeerInfo(peer(n), b"at %d" % n) for n in range(start, start + 10))
        swarm.hear(peer(1), ShuffleReply(nodes))
        swarm.run_for(10)
    assert len(swarm.passive) <= 30
    assert len(swarm.machine._hearsay) <= 30 + 64


# --- being alone --------------------------------------------------------------------------------


def test_a_node_that_was_cut_off_asks_bootstrap_peers_and_lost_ones() -> None:
    swarm = Swarmer()
    swarm.machine.join([peer(1)], 0.0)
    swarm.hear(peer(1), HIGH)
    swarm.hear(peer(2), HIGH)
    swarm.run_for(10)
    swarm.lose(peer(2))
    swarm.lose(peer(1))
    swarm.run_for(5)
    asked = {to for to, message in swarm.taken() if isinstance(message, Join | Neighbor)}
    assert asked >= {peer(1), peer(2)}


def test_an_offline_node_keeps_its_address_book() -> None:
    swarm = Swarmer().with_neighbors(1).with_passive(*range(10, 20))
    for each, _ in swarm.lose(peer(1)):
        swarm.lose(each)
    for _ in range(600):
        swarm.run_for(1)
        for each in {to for to, _ in swarm.taken()}:
            swarm.lose(each)
    known = swarm.passive | set(swarm.machine._contacts)
    assert known >= {peer(1), *(peer(n) for n in range(10, 20))}
    swarm.machine.hurry(swarm.now)
    swarm.run_for(3)
    assert swarm.taken()


def test_a_clean_end_does_not_strike_a_passive_peer() -> None:
    swarm = Swarmer().with_neighbors(1, 2).with_passive(7, 8)
    swarm.lose(peer(7), is_clean=True)
    swarm.lose(peer(8))
    assert swarm.passive == {peer(7)}


# --- paces --------------------------------------------------------------------------------------


def test_paces() -> None:
    pace = Allowance(3, 0.5)
    assert [pace.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [pace.take(102.0) for _ in range(2)] == [True, False]
    peers = PeerPace(1, 0.1)
    assert peers.take(peer(1), 0.0)
    assert not peers.take(peer(1), 1.0)
    for number in range(2, 2000):
        assert peers.take(peer(number), 1.0)
    assert len(peers) == 256
