"""Plugins: registration, order, awaiting, isolation."""

from __future__ import annotations

import asyncio
import logging
import types

import pytest

from dialkey.errors import PluginError
from dialkey.hooks import HookSpecs, Plugins, Refusal, hookimpl, hookspec
from dialkey.hookspecs import rules_of


def plugin(**functions: object) -> object:
    return types.SimpleNamespace(**functions)


# --- registration ---------------------------------------------------------------------------------


def test_every_hook_of_the_design_is_specified_and_says_its_contract() -> None:
    names = {name for name in vars(HookSpecs) if name.startswith("dialkey_")}
    assert names == {
        "dialkey_transports",
        "dialkey_address_lookups",
        "dialkey_discovery",
        "dialkey_protocols",
        "dialkey_path_selector",
        "dialkey_congestion",
        "dialkey_relays",
        "dialkey_before_connect",
        "dialkey_before_accept",
        "dialkey_after_handshake",
        "dialkey_endpoint_started",
        "dialkey_endpoint_closing",
        "dialkey_events",
        "dialkey_commands",
    }
    for name in names:
        assert len(getattr(HookSpecs, name).__doc__) > 60


def test_unknown_hook_names_plugin_and_hook_and_the_near_one() -> None:
    class Mistyped:
        @hookimpl
        def dialkey_protocol(self, endpoint: object) -> None: ...

    with pytest.raises(PluginError) as caught:
        Plugins().register(Mistyped())
    text = str(caught.value)
    assert "Mistyped" in text
    assert "dialkey_protocol," in text
    assert "did you mean dialkey_protocols?" in text


def test_wrong_argument_names_plugin_hook_and_arguments() -> None:
    class Filter:
        @hookimpl
        def dialkey_before_connect(self, endpoint: object, remot: object) -> None: ...

    with pytest.raises(PluginError) as caught:
        Plugins().register(Filter(), "door")
    assert "plugin 'door', hook dialkey_before_connect: unknown argument 'remot'" in str(
        caught.value
    )
    assert "did you mean remote? the hook takes (endpoint, remote, alpn)" in str(caught.value)


@pytest.mark.parametrize("bad", [lambda *endpoint: None, lambda **endpoint: None])
def test_star_arguments_are_refused(bad: object) -> None:
    with pytest.raises(PluginError, match="unknown argument 'endpoint'"):
        Plugins().register(plugin(dialkey_endpoint_started=bad))


def test_wrapper_is_refused() -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def dialkey_before_accept(self):  # type: ignore[no-untyped-def]
            return (yield)

    with pytest.raises(PluginError, match="as a wrapper"):
        Plugins().register(Wrapper())


def test_class_and_hookless_object_are_refused_with_advice() -> None:
    class Quiet:
        @hookimpl
        def dialkey_events(self, event: object) -> None: ...

    with pytest.raises(PluginError, match=r"pass an instance: Quiet\(\)"):
        Plugins().register(Quiet)
    with pytest.raises(PluginError, match=r"implements no hook .*Router.accept"):
        Plugins().register(object())


def test_late_plugin_must_not_have_missed_its_hook() -> None:
    late = plugin(dialkey_transports=lambda: None)
    with pytest.raises(PluginError, match=r"dialkey_transports, which .*Endpoint.bind\(plugins="):
        Plugins().register(late, "relay", late=True)
    Plugins().register(late, "relay")


def test_registering_twice_is_once_and_equal_names_get_numbers() -> None:
    class Both:
        @hookimpl
        def dialkey_events(self, event: object) -> None: ...

    plugins, first = Plugins(), Both()
    name = plugins.register(first)
    assert plugins.register(first) == name
    assert plugins.register(Both()) == f"{name}#2"
    assert plugins.names() == (name, f"{name}#2")


def test_properties_do_not_run_at_registration() -> None:
    class Lazy:
        @property
        def dialkey_secret(self) -> object:
            raise AssertionError

        @hookimpl
        def dialkey_events(self, event: object) -> None: ...

    Plugins().register(Lazy())


async def test_module_and_undecorated_function_and_specname_count() -> None:
    module = types.ModuleType("weather")
    module.dialkey_endpoint_started = lambda: "module"  # type: ignore[attr-defined]

    class Named:
        @hookimpl(specname="dialkey_endpoint_started")
        def begin(self, endpoint: object) -> object:
            return endpoint

    plugins = Plugins()
    assert plugins.register(module) == "weather"
    plugins.register(Named(), "named")
    answers = await plugins.call("dialkey_endpoint_started", endpoint="E")
    assert [(answer.plugin, answer.value) for answer in answers] == [
        ("weather", "module"),
        ("named", "E"),
    ]


# --- calls ----------------------------------------------------------------------------------------


async def test_order_is_registration_with_tryfirst_and_trylast() -> None:
    ran: list[str] = []

    def noted(name: str, **options: bool) -> object:
        def dialkey_endpoint_started() -> None:
            ran.append(name)

        def dialkey_endpoint_closing() -> None:
            ran.append(name)

        return plugin(
            dialkey_endpoint_started=hookimpl(dialkey_endpoint_started, **options),
            dialkey_endpoint_closing=hookimpl(dialkey_endpoint_closing, **options),
        )

    plugins = Plugins()
    for name, options in [
        ("last", {"trylast": True}),
        ("one", {}),
        ("two", {}),
        ("first", {"tryfirst": True}),
    ]:
        plugins.register(noted(name, **options))
    await plugins.call("dialkey_endpoint_started", endpoint=None)
    assert ran == ["first", "one", "two", "last"]
    ran.clear()
    await plugins.call("dialkey_endpoint_closing", endpoint=None)
    assert ran == ["last", "two", "one", "first"]


async def test_awaitable_results_are_awaited_and_collected() -> None:
    async def lookups(endpoint: object) -> list[str]:
        await asyncio.sleep(0)
        return ["dns", "mdns"]

    plugins = Plugins()
    plugins.register(plugin(dialkey_address_lookups=lookups), "slow")
    plugins.register(plugin(dialkey_address_lookups=lambda endpoint: 7), "quick")
    plugins.register(plugin(dialkey_address_lookups=lambda endpoint: None), "none")
    answers = await plugins.collect("dialkey_address_lookups", endpoint=None)
    assert [(answer.plugin, answer.value) for answer in answers] == [
        ("slow", "dns"),
        ("slow", "mdns"),
        ("quick", 7),
    ]


async def test_first_result_stops_at_the_first() -> None:
    plugins = Plugins()
    plugins.register(plugin(dialkey_path_selector=lambda: None), "none")
    plugins.register(plugin(dialkey_path_selector=lambda: "mine"), "mine")
    plugins.register(plugin(dialkey_path_selector=lambda: 1 / 0), "never")
    answers = await plugins.call("dialkey_path_selector", must_succeed=True, endpoint=None)
    assert [answer.value for answer in answers] == ["mine"]


async def test_failure_at_start_names_plugin_and_hook() -> None:
    async def broken(endpoint: object) -> None:
        raise OSError("no such table")

    plugins = Plugins()
    plugins.register(plugin(dialkey_endpoint_started=broken), "store")
    with pytest.raises(PluginError) as caught:
        await plugins.call("dialkey_endpoint_started", must_succeed=True, endpoint=None)
    assert "plugin 'store' failed in hook dialkey_endpoint_started: OSError: no such table" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, OSError)


async def test_later_failure_is_logged_and_counted_and_others_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugins = Plugins()
    plugins.register(plugin(dialkey_endpoint_closing=lambda: "well"), "well")
    plugins.register(plugin(dialkey_endpoint_closing=lambda: 1 / 0), "broken")
    with caplog.at_level(logging.ERROR, "dialkey"):
        answers = await plugins.call("dialkey_endpoint_closing", endpoint=None)
    assert [answer.plugin for answer in answers] == ["well"]
    assert plugins.failures() == {("broken", "dialkey_endpoint_closing"): 1}
    assert (
        "plugin 'broken' failed in hook dialkey_endpoint_closing: ZeroDivisionError" in caplog.text
    )


async def test_hanging_plugin_has_a_deadline() -> None:
    plugins = Plugins(start_timeout_s=0.0, call_timeout_s=0.0)
    plugins.register(plugin(dialkey_endpoint_started=asyncio.Event().wait), "stuck")
    with pytest.raises(PluginError, match=r"'stuck'.*no answer within 0 s"):
        await plugins.call("dialkey_endpoint_started", must_succeed=True, endpoint=None)
    assert await plugins.call("dialkey_endpoint_started", endpoint=None) == []
    assert plugins.failures() == {("stuck", "dialkey_endpoint_started"): 1}


async def test_cancelling_a_call_is_not_a_failure_of_the_plugin() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        entered.set()
        await asyncio.Event().wait()

    plugins = Plugins()
    plugins.register(plugin(dialkey_endpoint_closing=wait))
    task = asyncio.create_task(plugins.call("dialkey_endpoint_closing", endpoint=None))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert plugins.failures() == {}


# --- filters --------------------------------------------------------------------------------------


async def test_first_refusal_wins_and_silence_agrees() -> None:
    plugins = Plugins()
    assert await plugins.refusal("dialkey_before_accept", incoming=None) is None
    plugins.register(plugin(dialkey_before_accept=lambda: None))
    assert await plugins.refusal("dialkey_before_accept", incoming=None) is None

    async def no(incoming: object) -> Refusal:
        return Refusal(7, "not today")

    plugins.register(plugin(dialkey_before_accept=no))
    plugins.register(plugin(dialkey_before_accept=lambda: Refusal(8)))
    assert await plugins.refusal("dialkey_before_accept", incoming=None) == Refusal(7, b"not today")


@pytest.mark.parametrize("broken", [lambda: 1 / 0, lambda: False, asyncio.Event().wait])
async def test_broken_filter_refuses(broken: object) -> None:
    plugins = Plugins(call_timeout_s=0.0)
    plugins.register(plugin(dialkey_after_handshake=broken), "door")
    refusal = await plugins.refusal("dialkey_after_handshake", connection=None)
    assert refusal == Refusal(1, b"internal error")
    assert plugins.failures() == {("door", "dialkey_after_handshake"): 1}


@pytest.mark.parametrize("code", [-1, 2**62])
def test_refusal_code_is_a_varint(code: int) -> None:
    with pytest.raises(ValueError, match="code"):
        Refusal(code)


# --- immediate calls and events -------------------------------------------------------------------


def test_call_now_needs_no_loop_and_refuses_awaitables() -> None:
    async def later(cli: object) -> None: ...

    plugins = Plugins()
    plugins.register(plugin(dialkey_commands=lambda cli: cli.append("send")), "blobs")
    commands: list[str] = []
    plugins.call_now("dialkey_commands", cli=commands)
    assert commands == ["send"]
    plugins.register(plugin(dialkey_commands=later), "later")
    with pytest.raises(PluginError, match=r"'later'.*must not return an awaitable"):
        plugins.call_now("dialkey_commands", cli=commands)


async def test_events_reach_all_and_failures_are_counted() -> None:
    seen: list[object] = []
    done = asyncio.Event()

    async def slow(event: object) -> None:
        await asyncio.sleep(0)
        seen.append(("slow", event))
        done.set()

    plugins = Plugins()
    plugins.register(plugin(dialkey_events=lambda event: 1 / 0), "broken")
    plugins.register(plugin(dialkey_events=lambda event: seen.append(event)), "quick")
    plugins.register(plugin(dialkey_events=slow), "slow")
    plugins.emit("path opened")
    assert seen == ["path opened"]
    await done.wait()
    assert seen == ["path opened", ("slow", "path opened")]
    assert plugins.failures() == {("broken", "dialkey_events"): 1}
    await plugins.close()


async def test_pending_events_are_bounded_and_end_with_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialkey.hooks.MAX_PENDING_EVENTS", 3)
    cancelled: list[object] = []

    async def stuck(event: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(event)
            raise

    plugins = Plugins()
    plugins.register(plugin(dialkey_events=stuck))
    for number in range(5):
        plugins.emit(number)
    assert plugins.dropped_events == 2
    await asyncio.sleep(0)
    await plugins.close()
    await plugins.close()
    assert cancelled == [0, 1, 2]


# --- entry points ---------------------------------------------------------------------------------


class FakeEntryPoint:
    def __init__(self, name: str, load: object) -> None:
        self.name, self.value, self.load = name, f"{name}_module", load


def fake_entry_points(monkeypatch: pytest.MonkeyPatch, **loads: object) -> None:
    found = [FakeEntryPoint(name, load) for name, load in loads.items()]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)


def test_entry_points_come_after_objects_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = plugin(dialkey_events=lambda: None)
    other = plugin(dialkey_events=lambda: None)
    fake_entry_points(monkeypatch, shared=lambda: shared, other=lambda: other)
    plugins = Plugins()
    plugins.register(shared, "object")
    assert plugins.load_entry_points() == ("other",)
    assert plugins.names() == ("object", "other")


def test_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise ImportError("no module named 'tor'")

    fake_entry_points(monkeypatch, onion=broken, fine=lambda: plugin(dialkey_events=lambda: None))
    with pytest.raises(PluginError, match=r"plugin 'onion' \(onion_module\) cannot be imported"):
        Plugins().load_entry_points()
    plugins = Plugins()
    assert plugins.load_entry_points(skip_broken=True) == ("fine",)
    assert plugins.failures() == {("onion", "registration"): 1}


# --- hooks of plugins -----------------------------------------------------------------------------


class BellSpecs:
    """What a plugin specifies."""

    @hookspec(first_result=True)
    def dialkey_ring(self, loudness: int) -> str | None:
        """Ring a bell."""


class Bell:
    dialkey_hookspecs = BellSpecs

    def dialkey_events(self, event: object) -> None: ...


async def test_a_plugin_specifies_hooks_that_others_implement() -> None:
    plugins = Plugins()
    plugins.register(Bell())
    plugins.register(plugin(dialkey_ring=lambda loudness: "ding" * loudness), "small")
    plugins.register(plugin(dialkey_ring=lambda loudness: "dong" * loudness), "large")
    answers = await plugins.call("dialkey_ring", loudness=2)
    assert [(each.plugin, each.value) for each in answers] == [("small", "dingding")]
    plugins.register(Bell(), "another")


def test_a_hook_of_a_plugin_is_checked_as_the_others_are() -> None:
    plugins = Plugins(BellSpecs)
    with pytest.raises(PluginError, match=r"unknown argument 'loud' .*\(loudness\)"):
        plugins.register(plugin(dialkey_ring=lambda loud: None))
    with pytest.raises(PluginError, match="did you mean dialkey_ring"):
        plugins.register(plugin(dialkey_rings=lambda loudness: None))


def test_two_plugins_cannot_specify_one_hook() -> None:
    class Other:
        @hookspec()
        def dialkey_ring(self) -> None:
            """Ring something else."""

    with pytest.raises(PluginError, match="specifies dialkey_ring, as does BellSpecs"):
        Plugins(BellSpecs).add_specs(Other)


def test_without_its_specification_a_hook_is_unknown_unless_it_says_that_it_may_be() -> None:
    class Ringer:
        @hookimpl(optionalhook=True)
        def dialkey_ring(self, loudness: int) -> str:
            return "ding"

        @hookimpl
        def dialkey_events(self, event: object) -> None: ...

    with pytest.raises(PluginError, match="is not a hook of dialkey"):
        Plugins().register(plugin(dialkey_ring=lambda loudness: None))
    plugins = Plugins()
    plugins.register(Ringer())
    plugins.add_specs(BellSpecs)
    assert plugins.has("dialkey_ring")


def test_an_installed_plugin_may_come_before_the_one_whose_hook_it_implements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ringer = plugin(dialkey_ring=lambda loudness: None)
    fake_entry_points(monkeypatch, a_ringer=lambda: ringer, bell=Bell)
    plugins = Plugins()
    assert plugins.load_entry_points() == ("a_ringer", "bell")
    assert plugins.has("dialkey_ring")


def test_how_a_hook_is_called_follows_from_its_specification() -> None:
    first = {name for name in vars(HookSpecs) if rules_of(getattr(HookSpecs, name)).first_result}
    assert first == {"dialkey_path_selector", "dialkey_congestion", "dialkey_relays"}
    late = plugin(dialkey_discovery=lambda service: None)
    with pytest.raises(PluginError, match="asked while an endpoint binds"):
        Plugins().register(late, late=True)
