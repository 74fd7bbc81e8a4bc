"""The hooks that plugins implement, and the manager that calls them.

A plugin is any object, or module, with functions named after the hooks of `HookSpecs`. `@hookimpl`
marks them for readers and takes pluggy's options `tryfirst`, `trylast` and `specname`; a function
whose name begins with `dialkey_` counts as an implementation without it, so a forgotten decorator
is not a hook that silently never runs. An implementation takes those arguments of its hook that it
needs, by name, and may return an awaitable, which the framework awaits.

A plugin may define hooks of its own: it keeps their specifications in a class, as `HookSpecs` does, and
names the class in an attribute `dialkey_hookspecs`. So the relay server defines who is asked before a
client is let in.

Each endpoint has its own `Plugins`; nothing is global. Plugins come from two sources: objects
passed to `Endpoint.bind` or `Router.add`, then the entry points in group ``dialkey`` of installed
distributions. Of the latter a router serves no protocol unasked, see `Router.add_installed`: what an
application answers to is for the application to say. Implementations run one after another in that
order, except that `dialkey_endpoint_closing` runs backwards. When something goes wrong in a plugin
decides what follows:

- at registration (an unknown hook, a wrong argument name): `PluginError`, naming plugin and hook;
- while the endpoint starts: `PluginError`, naming plugin and hook, with the cause chained;
- later: logged, counted in `Plugins.failures()`, and the endpoint goes on. A *filter* that fails or
  hangs refuses, because a broken lock must not leave the door open.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib.metadata
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import attrs
import pluggy

from dialkey.errors import PluginError
from dialkey.hookspecs import (
    PREFIX,
    PROJECT,
    HookRules,
    HookSpecs,
    Plugin,
    Refusal,
    RelayChoice,
    RelayWithUrl,
    hookimpl,
    hookspec,
    rules_of,
)
from dialkey.printable import printable, printable_traceback

__all__ = [
    "Answer",
    "HookSpecs",
    "Plugin",
    "Plugins",
    "Refusal",
    "RelayChoice",
    "RelayWithUrl",
    "hookimpl",
    "hookspec",
]

START_TIMEOUT_S: Final = 30.0
"""A plugin may open databases and dial a first server at start-up; beyond this it hangs."""

CALL_TIMEOUT_S: Final = 10.0
"""Later hooks stand between a peer and its handshake, which gives up after as long."""

MAX_PENDING_EVENTS: Final = 1024
"""Results of `dialkey_events` being awaited; a slow plugin loses events, not our memory."""

logger = logging.getLogger("dialkey.hooks")


@attrs.frozen
class Answer:
    """What one plugin returned from one hook."""

    plugin: str
    value: object


@attrs.frozen
class _Hook:
    """A hook that is specified: by which class, with which arguments, and how it is called."""

    specs: type
    arguments: tuple[str, ...]
    rules: HookRules


def _hooks_of(specs: type) -> dict[str, _Hook]:
    return {
        name: _Hook(specs, tuple(inspect.signature(function).parameters)[1:], rules_of(function))
        for name, function in vars(specs).items()
        if name.startswith(PREFIX) and inspect.isfunction(function)
    }


def _near(word: str, words: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else None


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None and name.startswith(PREFIX) and _function(plugin, name) is not None:
            return {"tryfirst": False, "trylast": False, "specname": None, "optionalhook": False}
        return options


def _function(plugin: object, name: str) -> Callable[..., object] | None:
    """Find a function or method without running properties."""
    static = inspect.getattr_static(plugin, name, None)
    if isinstance(static, (staticmethod, classmethod)) or inspect.isroutine(static):
        found = getattr(plugin, name)
        return found if inspect.isroutine(found) else None
    return None


class Plugins:
    """The plugins of one endpoint, or of the command line.

    Calls are made in the event loop of the caller. All methods without `async` are immediate.

    Args:
        specs: classes with hook specifications of plugins, beside those of the framework.
        start_timeout_s: deadline for one plugin in a call that must succeed.
        call_timeout_s: deadline for one plugin in every other call.
    """

    def __init__(
        self,
        *specs: type,
        start_timeout_s: float = START_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._manager = _Manager(PROJECT)
        self._hooks: dict[str, _Hook] = {}
        self._order: dict[str, int] = {}
        self._installed: set[str] = set()
        self._implementations: dict[str, tuple[pluggy.HookImpl, ...]] = {}
        self._failures: Counter[tuple[str, str]] = Counter()
        self._pending: dict[asyncio.Task[None], None] = {}
        self._start_timeout_s = start_timeout_s
        self._call_timeout_s = call_timeout_s
        self.dropped_events = 0
        for each in (HookSpecs, *specs):
            self.add_specs(each)

    # --- registration ---------------------------------------------------------------------------

    def add_specs(self, specs: type) -> None:
        """Let plugins implement further hooks: those that a class of a plugin specifies.

        Args:
            specs: its functions whose names begin with ``dialkey_`` are marked with `hookspec`. Adding
                it again changes nothing.

        Raises:
            PluginError: one of its hooks is specified already, by something else.
        """
        hooks = _hooks_of(specs)
        for name in hooks:
            other = self._hooks.get(name)
            if other is not None and other.specs is not specs:
                raise PluginError(
                    f"{specs.__qualname__} specifies {name}, as does {other.specs.__qualname__}"
                )
        new = {name: hook for name, hook in hooks.items() if name not in self._hooks}
        if not new:
            return
        self._manager.add_hookspecs(specs)
        self._hooks.update(new)
        for name in new:
            self._implementations[name] = self._sorted(name)

    def register(self, plugin: Plugin, name: str | None = None, *, late: bool = False) -> str:
        """Check a plugin against the hook specifications and add it.

        Args:
            plugin: an object or a module; registering it again changes nothing. If it has an attribute
                `dialkey_hookspecs`, a class, that is added first, see `add_specs`.
            name: what messages call it; by default the module's name or the object's class, with a
                number where that is taken.
            late: refuse hooks that are asked only while an endpoint binds, because it is bound.

        Returns:
            The name.

        Raises:
            PluginError: it implements an unknown hook, with unknown arguments, too late, or none
                at all.
        """
        known = self.name_of(plugin)
        if known is not None:
            return known
        name = self._free_name(name or getattr(plugin, "__name__", None) or type(plugin).__name__)
        self._add_specs_of(plugin)
        implemented = _validate(plugin, name, self._hooks)
        missed = {hook for hook in implemented if self._hooks[hook].rules.while_binding}
        if late and missed:
            raise PluginError(
                f"plugin {name!r} implements {min(missed)}, which is asked while an endpoint binds",
                hint="pass it to Endpoint.bind(plugins=[…])",
            )
        try:
            self._manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name!r} cannot be registered: {error}") from error
        self._order[name] = len(self._order)
        for hook in self._hooks:
            self._implementations[hook] = self._sorted(hook)
        return name

    def _add_specs_of(self, plugin: Plugin) -> None:
        specs = inspect.getattr_static(plugin, "dialkey_hookspecs", None)
        if inspect.isclass(specs):
            self.add_specs(specs)

    def load_entry_points(self, *, skip_broken: bool = False) -> tuple[str, ...]:
        """Import and register what installed distributions offer in entry point group ``dialkey``.

        Args:
            skip_broken: log and count a plugin that cannot be imported or registered, instead of
                raising; the command line does, so that one broken plugin spoils no other command.

        Returns:
            The names of the plugins that were added, sorted.

        Raises:
            PluginError: an entry point cannot be imported, or breaks a hook's contract.
        """
        added: list[str] = []
        loaded: list[tuple[str, object]] = []

        def go_on(name: str, error: PluginError) -> None:
            if not skip_broken:
                raise error
            self._failures[name, "registration"] += 1
            logger.warning("%s", error)

        for entry in sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: e.name):
            try:
                loaded.append((entry.name, _load(entry)))
                # All specifications come first: an implementation may belong to another plugin's.
                self._add_specs_of(loaded[-1][1])
            except PluginError as error:
                go_on(entry.name, error)
        for name, plugin in loaded:
            try:
                if self.name_of(plugin) is None:
                    added.append(self.register(plugin, name))
                    self._installed.add(added[-1])
            except PluginError as error:
                go_on(name, error)
        return tuple(added)

    def name_of(self, plugin: object) -> str | None:
        """Return the name under which this very object is registered, or None."""
        for name, other in self._manager.list_name_plugin():
            if other is plugin:
                return name
        return None

    def get(self, name: str) -> object:
        """Return the plugin of that name, or None."""
        return self._manager.get_plugin(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of all plugins in the order of registration."""
        return tuple(self._order)

    def is_installed(self, name: str) -> bool:
        """Return whether a plugin is there only because its distribution is installed."""
        return name in self._installed

    def has(self, hook: str) -> bool:
        """Return whether any plugin implements a hook, to skip preparing its arguments."""
        return bool(self._implementations[hook])

    def failures(self) -> Mapping[tuple[str, str], int]:
        """Return how often each (plugin, hook) failed since the start."""
        return dict(self._failures)

    def count_failure(self, plugin: str, hook: str, error: BaseException) -> None:
        """Log and count what went wrong in a plugin outside a call of this class."""
        self._failures[plugin, hook] += 1
        logger.error(
            "plugin %r failed in hook %s: %s: %s\n%s",
            plugin,
            hook,
            type(error).__name__,
            printable(str(error)),
            printable_traceback(error),
        )

    # --- calls ----------------------------------------------------------------------------------

    async def call(
        self,
        hook: str,
        /,
        *,
        must_succeed: bool = False,
        only: object | None = None,
        **arguments: object,
    ) -> list[Answer]:
        """Call a hook in every plugin, one after another, awaiting what is awaitable.

        Cancelling it cancels the implementation that is running and calls no further one.

        Args:
            must_succeed: raise for the first plugin that fails, as while an endpoint starts.
            only: call no plugin but this one.
            arguments: all arguments of the hook, by name.

        Returns:
            The answers other than None, each with its plugin's name. For a first-result hook, the
            first one only.

        Raises:
            PluginError: `must_succeed` and a plugin raised or ran out of time.
        """
        answers: list[Answer] = []
        for impl in self._implementations[hook]:
            if only is not None and impl.plugin is not only:
                continue
            try:
                value = await self._await_one(impl, arguments, must_succeed=must_succeed)
            except Exception as error:
                if must_succeed:
                    raise _failure(impl.plugin_name, hook, error) from error
                self.count_failure(impl.plugin_name, hook, error)
                continue
            if value is not None:
                answers.append(Answer(impl.plugin_name, value))
                if self._hooks[hook].rules.first_result:
                    break
        return answers

    async def collect(self, hook: str, /, **arguments: object) -> list[Answer]:
        """Call a hook whose plugins return one thing or an iterable of things; flatten them.

        Raises:
            PluginError: a plugin raised or ran out of time.
        """
        answers: list[Answer] = []
        for answer in await self.call(hook, must_succeed=True, **arguments):
            if isinstance(answer.value, Iterable):
                answers.extend(Answer(answer.plugin, value) for value in answer.value)
            else:
                answers.append(answer)
        return answers

    async def refusal(self, hook: str, /, **arguments: object) -> Refusal | None:
        """Ask a filter hook; return the first refusal, or None when nobody objects.

        A filter that raises, hangs or returns something else refuses, and is logged and counted.
        """
        for impl in self._implementations[hook]:
            try:
                value = await self._await_one(impl, arguments, must_succeed=False)
                if value is not None and not isinstance(value, Refusal):
                    raise TypeError(
                        f"a filter returns None or Refusal(…), not {type(value).__name__}"
                    )
            except Exception as error:
                self.count_failure(impl.plugin_name, hook, error)
                return Refusal(reason=b"internal error")
            if value is not None:
                return value
        return None

    def call_now(
        self,
        hook: str,
        /,
        *,
        only: object | None = None,
        may_await: bool = False,
        **arguments: object,
    ) -> list[Answer]:
        """Call a hook without awaiting; every plugin must succeed.

        Args:
            only: call no plugin but this one.
            may_await: hand awaitable results to the caller, who awaits them, instead of refusing.
            arguments: all arguments of the hook, by name.

        Raises:
            PluginError: a plugin raised, or returned an awaitable that it may not.
        """
        answers: list[Answer] = []
        for impl in self._implementations[hook]:
            if only is not None and impl.plugin is not only:
                continue
            try:
                value = _invoke(impl, arguments)
                if inspect.isawaitable(value) and not may_await:
                    discard(value)
                    raise TypeError("this hook must not return an awaitable")
            except Exception as error:
                raise _failure(impl.plugin_name, hook, error) from error
            if value is not None:
                answers.append(Answer(impl.plugin_name, value))
        return answers

    async def settle(self, hook: str, answer: Answer) -> object:
        """Await the value of an answer that `call_now` handed over with `may_await`.

        Raises:
            PluginError: it raised or ran out of time.
        """
        if not inspect.isawaitable(answer.value):
            return answer.value
        try:
            return await _within(answer.value, self._start_timeout_s)
        except Exception as error:
            raise _failure(answer.plugin, hook, error) from error

    def emit(self, event: object) -> None:
        """Hand an event to `dialkey_events` of every plugin, inside a running event loop.

        Never waits, and raises nothing that a plugin raised.
        """
        hook = "dialkey_events"
        for impl in self._implementations[hook]:
            try:
                value = _invoke(impl, {"event": event})
            except Exception as error:
                self.count_failure(impl.plugin_name, hook, error)
                continue
            if not inspect.isawaitable(value):
                continue
            if len(self._pending) >= MAX_PENDING_EVENTS:
                discard(value)
                self.dropped_events += 1
                continue
            task = asyncio.create_task(self._observe(impl, value))
            self._pending[task] = None
            task.add_done_callback(self._pending.pop)

    async def close(self) -> None:
        """Cancel what `emit` left running and wait for its end. Idempotent."""
        pending = list(self._pending)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    # --- inside ---------------------------------------------------------------------------------

    def _free_name(self, name: str) -> str:
        number, candidate = 2, name
        while candidate in self._order:
            candidate, number = f"{name}#{number}", number + 1
        return candidate

    def _sorted(self, hook: str) -> tuple[pluggy.HookImpl, ...]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        found = sorted(
            caller.get_hookimpls(),
            key=lambda impl: (not impl.tryfirst, impl.trylast, self._order[impl.plugin_name]),
        )
        return tuple(reversed(found) if self._hooks[hook].rules.backwards else found)

    async def _await_one(
        self, impl: pluggy.HookImpl, arguments: Mapping[str, object], *, must_succeed: bool
    ) -> object:
        value = _invoke(impl, arguments)
        if not inspect.isawaitable(value):
            return value
        return await _within(value, self._start_timeout_s if must_succeed else self._call_timeout_s)

    async def _observe(self, impl: pluggy.HookImpl, value: Awaitable[object]) -> None:
        try:
            await _within(value, self._call_timeout_s)
        except Exception as error:
            self.count_failure(impl.plugin_name, "dialkey_events", error)


def _load(entry: importlib.metadata.EntryPoint) -> Plugin:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(
            f"plugin {entry.name!r} ({entry.value}) cannot be imported: "
            f"{type(error).__name__}: {error}",
            hint="reinstall or remove the distribution that provides it",
        ) from error


def _invoke(impl: pluggy.HookImpl, arguments: Mapping[str, object]) -> object:
    result: object = impl.function(*[arguments[name] for name in impl.argnames])
    return result


async def _within(value: Awaitable[object], deadline_s: float) -> object:
    timeout = asyncio.timeout(deadline_s)
    try:
        async with timeout:
            return await value
    except TimeoutError as error:
        if timeout.expired():
            raise TimeoutError(f"no answer within {deadline_s:g} s") from error
        raise


def discard(value: object) -> None:
    """End an awaitable that nobody will await, without a warning about it."""
    if inspect.iscoroutine(value):
        value.close()
    elif isinstance(value, asyncio.Future):
        value.cancel()


def _failure(plugin: str, hook: str, error: Exception) -> PluginError:
    text = str(error)
    return PluginError(
        f"plugin {plugin!r} failed in hook {hook}: {type(error).__name__}"
        + (f": {text}" if text else "")
    )


def _validate(plugin: Plugin, name: str, known: Mapping[str, _Hook]) -> frozenset[str]:
    """Check every hook that a plugin implements against the specifications; return them."""
    if inspect.isclass(plugin):
        raise PluginError(
            f"plugin {name!r} is a class", hint=f"pass an instance: {plugin.__name__}()"
        )
    hooks: set[str] = set()
    for attribute in dir(plugin):
        function = _function(plugin, attribute)
        if function is None:
            continue
        options = getattr(function, f"{PROJECT}_impl", None)
        if options is None and not attribute.startswith(PREFIX):
            continue
        options = options if isinstance(options, dict) else {}
        hook = str(options.get("specname") or attribute)
        if hook not in known:
            if options.get("optionalhook"):
                continue
            raise PluginError(
                f"plugin {name!r} implements {hook}, which is not a hook of dialkey",
                hint=_near(hook, known)
                or "dialkey.hooks.HookSpecs lists them; one that another plugin specifies is there"
                " once that is registered, or may be missing with @hookimpl(optionalhook=True)",
            )
        if options.get("hookwrapper") or options.get("wrapper"):
            raise PluginError(
                f"plugin {name!r} implements hook {hook} as a wrapper, which dialkey does not call",
                hint="hooks may be asynchronous; use tryfirst or trylast to set the order",
            )
        _validate_arguments(name, hook, function, known[hook].arguments)
        hooks.add(hook)
    if not hooks:
        raise PluginError(
            f"plugin {name!r} implements no hook",
            hint="a protocol handler goes to Router.accept(alpn, handler)",
        )
    return frozenset(hooks)


def _validate_arguments(
    name: str, hook: str, function: Callable[..., object], allowed: tuple[str, ...]
) -> None:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter.name in allowed:
            continue
        takes = f"the hook takes ({', '.join(allowed)})"
        near = _near(parameter.name, allowed)
        raise PluginError(
            f"plugin {name!r}, hook {hook}: unknown argument {parameter.name!r}",
            hint=f"{near} {takes}" if near else takes,
        )
