"""The policy of paths alone: no connection, no loop, and a clock that is a number."""

from __future__ import annotations

import itertools

import attrs
import pytest

from dialkey import limits
from dialkey.endpoint.path_policy import (
    MAX_DIRECT_ATTEMPTS,
    QUARANTINE_FIRST_S,
    QUARANTINE_MOST_S,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    SETTLE_S,
    VALIDATION_TIMEOUT_S,
    Leave,
    PathPolicy,
    PathView,
)
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress

HERE = IpAddr.parse("192.0.2.1:1")
RELAY = "a relay"


def direct(id: int = 0, remote: PathAddress = HERE, **more: object) -> PathView:
    return attrs.evolve(
        PathView(id=id, remote=remote, is_relayed=False, is_validated=True),
        **more,  # type: ignore[arg-type]
    )


def relayed(id: int = 1, **more: object) -> PathView:
    return attrs.evolve(
        PathView(id=id, remote=RELAY, is_relayed=True, is_validated=True),
        **more,  # type: ignore[arg-type]
    )


def addresses(count: int) -> list[IpAddr]:
    return [IpAddr.parse(f"198.51.100.{number}:1") for number in range(1, count + 1)]


def attempts(
    policy: PathPolicy, paths: list[PathView], until: float, begin: float = 0.0
) -> list[tuple[float, PathAddress]]:
    """Run the policy against a network that never answers; return when it tried what."""
    tried = []
    pending: list[PathView] = []
    now, number = begin, 100
    while now < until:
        open_paths = [*paths, *pending]
        policy.candidates(open_paths, now)
        left = {each.path_id for each in policy.to_leave(open_paths, now)}
        pending = [each for each in pending if each.id not in left]
        open_paths = [*paths, *pending]
        for address in policy.to_open(open_paths, now):
            policy.opened(address, open_paths, now)
            tried.append((now, address))
            number += 1
            pending.append(
                PathView(number, address, address == RELAY, is_validated=False, tried_since=now)
            )
        at = policy.next_look([*paths, *pending], now)
        assert at is not None
        assert at > now, "a look that changes nothing must not follow at once"
        now = at
    return tried


# --- choosing -----------------------------------------------------------------------------------


def test_an_address_that_failed_is_not_chosen_before_its_time_which_doubles() -> None:
    policy = PathPolicy(is_client=True)
    paths = [direct(), relayed()]
    now, pause = 1000.0, QUARANTINE_FIRST_S
    for _ in range(8):
        policy.on_suspected(HERE, now)
        assert policy.candidates(paths, now + pause - 0.01) == [paths[1]]
        assert policy.next_look(paths, now) == now + min(pause, RETRY_MOST_S)
        assert policy.candidates(paths, now + pause) == paths
        now, pause = now + pause, min(2 * pause, QUARANTINE_MOST_S)


def test_where_all_are_in_quarantine_any_will_do_and_suspect_ones_will_not() -> None:
    policy = PathPolicy(is_client=True)
    policy.on_suspected(HERE, 0.0)
    assert policy.candidates([direct()], 0.1) == [direct()]
    assert policy.candidates([direct(is_suspect=True)], 0.1) == []
    assert policy.candidates([direct(is_validated=False)], 0.1) == []


# --- leaving ------------------------------------------------------------------------------------


def test_an_attempt_is_given_up_when_its_time_is_over() -> None:
    policy = PathPolicy(is_client=True)
    attempt = direct(2, is_validated=False, tried_since=10.0)
    paths = [relayed(is_selected=True), attempt]
    assert policy.to_leave(paths, 10.0 + VALIDATION_TIMEOUT_S - 0.01) == []
    assert policy.to_leave(paths, 10.0 + VALIDATION_TIMEOUT_S) == [Leave(2, is_attempt=True)]


def test_a_further_direct_path_is_left_when_the_selected_one_has_settled() -> None:
    policy = PathPolicy(is_client=True)
    other = direct(2, IpAddr.parse("192.0.2.2:1"))
    paths = [direct(is_selected=True), relayed(), other]
    policy.on_answered(0, HERE, 10.0)
    assert policy.to_leave(paths, 10.0 + SETTLE_S - 0.01) == []
    assert policy.to_leave(paths, 10.0 + SETTLE_S) == [Leave(2, is_attempt=False)]


# --- opening ------------------------------------------------------------------------------------


def test_direct_addresses_are_tried_while_no_direct_path_works_a_few_at_a_time() -> None:
    policy = PathPolicy(is_client=True)
    for each in addresses(10):
        policy.learn(each, is_relayed=False)
    policy.learn(RELAY, is_relayed=True)
    assert policy.to_open([direct(is_selected=True)], 0.0) == [RELAY]
    assert len(policy.to_open([relayed(is_selected=True)], 0.0)) == MAX_DIRECT_ATTEMPTS


def test_an_address_that_answered_is_tried_for_as_long_as_the_connection_lasts() -> None:
    policy = PathPolicy(is_client=True)
    policy.learn(HERE, is_relayed=False)
    policy.on_answered(0, HERE, 0.0)
    tried = attempts(policy, [relayed(is_selected=True)], 3600)
    assert len(tried) > 50
    gaps = [later - at for (at, _), (later, _) in itertools.pairwise(tried)]
    assert max(gaps) <= RETRY_MOST_S + VALIDATION_TIMEOUT_S


def test_an_address_that_never_answered_is_left_alone_after_a_few_attempts() -> None:
    policy = PathPolicy(is_client=True)
    policy.learn(HERE, is_relayed=False)
    tried = [at for at, _ in attempts(policy, [relayed(is_selected=True)], 24 * 3600)]
    assert len(tried) == limits.MAX_PATH_ATTEMPTS
    gaps = [later - at for at, later in itertools.pairwise(tried)]
    assert gaps == pytest.approx([RETRY_FIRST_S * 2**number for number in range(len(gaps))])


def test_all_ports_of_one_machine_share_its_attempts() -> None:
    policy = PathPolicy(is_client=True)
    for port in range(1, 101):
        policy.learn(IpAddr.parse(f"198.51.100.7:{port}"), is_relayed=False)
        policy.learn(IpAddr.parse(f"[::ffff:198.51.100.7]:{port}"), is_relayed=False)
    tried = attempts(policy, [relayed(is_selected=True)], 24 * 3600)
    assert len(tried) == limits.MAX_PATH_ATTEMPTS


def test_being_stranded_again_and_again_gives_no_further_attempts() -> None:
    policy = PathPolicy(is_client=True)
    policy.learn(HERE, is_relayed=False)
    tried = 0
    for hour in range(20):
        begin = 3600.0 * hour
        tried += len(attempts(policy, [relayed(is_suspect=True)], begin + 30, begin))
        tried += len(attempts(policy, [relayed(is_selected=True)], begin + 3600, begin + 30))
    assert tried == limits.MAX_PATH_ATTEMPTS


def test_a_relay_that_never_answered_is_still_the_last_way() -> None:
    policy = PathPolicy(is_client=True)
    policy.learn(RELAY, is_relayed=True)
    assert len(attempts(policy, [direct(is_selected=True)], 24 * 3600)) == limits.MAX_PATH_ATTEMPTS
    assert policy.to_open([direct(is_selected=True)], 25 * 3600) == []
    assert policy.to_open([direct(is_suspect=True)], 25 * 3600) == [RELAY]


def test_another_network_of_ours_is_another_chance() -> None:
    policy = PathPolicy(is_client=True)
    policy.learn(HERE, is_relayed=False)
    attempts(policy, [relayed(is_selected=True)], 24 * 3600)
    policy.on_network_changed()
    assert policy.to_open([relayed(is_selected=True)], 25 * 3600) == [HERE]


def test_a_peer_names_a_limited_number_of_addresses() -> None:
    policy = PathPolicy(is_client=True)
    for each in addresses(200):
        policy.learn(each, is_relayed=False)
    relays = [f"relay {number}" for number in range(50)]
    assert sum(policy.learn(each, is_relayed=True) for each in relays) == limits.MAX_PATH_RELAYS
    tried = attempts(policy, [relayed(7, is_selected=True)], 48 * 3600)
    most = limits.MAX_PATH_ADDRESSES + limits.MAX_PATH_RELAYS
    assert len({address for _, address in tried}) == most
    assert len(tried) == most * limits.MAX_PATH_ATTEMPTS
    # What had its chance gives way to what is new.
    assert policy.learn(HERE, is_relayed=False)


def test_whoever_accepted_opens_nothing() -> None:
    policy = PathPolicy(is_client=False)
    policy.on_suspected(HERE, 0.0)
    assert policy.next_look([direct(), relayed()], 0.0) == QUARANTINE_FIRST_S
    assert policy.next_look([direct()], 0.0) is None
