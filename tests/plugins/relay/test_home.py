"""Choosing the home relay: the sequences of docs/wire/relay.md 6.2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.identity import RelayUrl
from dialkey_relay.client.home import HomeSelector, Report

D1, D2, D3 = (RelayUrl(f"https://d{n}.example") for n in (1, 2, 3))


def report(d1=None, d2=None, d3=None):
    latencies = {D1: d1, D2: d2, D3: d3}
    return Report(ipv4={url: value for url, value in latencies.items() if value is not None})


FIRST = [(0, report(2, 3))]
SECOND = [*FIRST, (1, report(4, 3))]
THIRD = [*SECOND, (2, report(None, 3))]


@pytest.mark.parametrize(
    ("sequence", "preferred", "kept"),
    [
        (FIRST, D1, 1),
        (SECOND, D1, 2),
        (THIRD, D2, 3),
        ([*THIRD, (3, report(4, 3))], D1, 4),
        ([(1, report(1, 2))] * 4 + [(600, report(None, None, 3))], D3, 1),
        ([(0, report(4, 5)), (1, report(4, 3))], D1, 2),
        ([(0, report(4, 5)), (1, report(4, 1))], D2, 2),
    ],
)
def test_sequences_of_the_reference(sequence, preferred, kept) -> None:
    selector = HomeSelector()
    now = 100.0
    for gap, each in sequence:
        now += gap
        found = selector.add(each, now)
    assert found == selector.preferred == preferred
    assert selector.kept == kept


def test_nobody_answers_and_home_stays() -> None:
    selector = HomeSelector()
    assert selector.add(Report(), 0.0) is None
    selector.add(report(1, 2), 1.0)
    assert selector.add(Report(), 2.0) == D1


def test_after_a_change_of_network_loyalty_means_nothing() -> None:
    selector = HomeSelector()
    selector.add(report(4, 5), 0.0)
    assert selector.add(report(4, 3), 1.0) == D1
    assert selector.add(report(4, 3), 2.0, full=True) == D2


def test_a_relay_can_be_forgotten() -> None:
    selector = HomeSelector()
    selector.add(report(1, 50), 0.0)
    selector.forget(D1)
    assert selector.preferred is None
    assert selector.add(report(None, 50), 1.0) == D2
    # Its old, better times do not call it back; new ones do.
    assert selector.add(report(40, 50), 2.0) == D2
    assert selector.add(report(10, 50), 3.0) == D1


def test_equal_relays_are_taken_in_the_order_of_their_urls() -> None:
    assert HomeSelector().add(report(2, 2, 2), 0.0) == D1
    mixed = Report(https={D3: 1.0}, ipv4={D1: 1.0})
    assert HomeSelector().add(mixed, 0.0) == D3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 400),
            st.dictionaries(st.sampled_from([D1, D2, D3]), st.floats(0.001, 3)),
        ),
        max_size=20,
    )
)
def test_the_choice_answered_and_is_not_far_from_the_best(sequence) -> None:
    selector = HomeSelector()
    now = 0.0
    for gap, latencies in sequence:
        now += gap
        previous = selector.preferred
        found = selector.add(Report(https=latencies), now)
        if not latencies:
            assert found == previous
            continue
        assert found in latencies
        if found != previous and previous in latencies:
            assert selector._best()[found] <= latencies[previous] * 2 / 3
