"""What strangers said reaches no log as it came: an application's own handlers escape nothing.

`DialkeyError` escapes its text when it is built. Any other exception may repeat what it was given, so it
goes to a log through `dialkey.printable`, and never as `exc_info`, which handlers print as it is.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from endpoints import virtual

from dialkey import Endpoint, hookimpl
from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.errors import DialkeyError
from dialkey.identity import EndpointId, IpAddr, SecretKey
from dialkey.testing import MemoryNetwork

ROOT = Path(__file__).parent.parent
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
SAFE_CALLS = {"printable", "printable_bytes", "printable_traceback", "type"}
WORDLESS = {"TimeoutError", "EOFError"}
"""Without text of anybody: asyncio's and the standard library's own."""
SAFE_ATTRIBUTES = {"errno", "strerror"}
"""Of an `OSError`: the words are the system's own."""


def sources() -> list[Path]:
    folders = ("framework", "plugins", "protocols", "cookbook")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(node: ast.expr) -> str:
    """Give the last part of a name: `Refused` for ``errors.Refused``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def safe_errors(trees: list[ast.Module]) -> set[str]:
    """Return the names of all classes that derive from `DialkeyError`, and of tuples of such."""
    bases: dict[str, list[set[str]]] = {}
    for node in (each for tree in trees for each in ast.walk(tree)):
        # Where a name stands for an error and for a value, too, only the error can be caught.
        if isinstance(node, ast.ClassDef) and node.bases:
            bases.setdefault(node.name, []).append({name_of(base) for base in node.bases})
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple(elts=kinds)):
                bases.setdefault(name, []).extend({name_of(kind)} for kind in kinds)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Tuple(elts=kinds)):
                bases.setdefault(name, []).extend({name_of(kind)} for kind in kinds)
    safe = {"DialkeyError", *WORDLESS}
    while (
        more := {name for name, found in bases.items() if all(each & safe for each in found)} - safe
    ):
        safe |= more
    return safe


def is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and name_of(node.func.value).lower().strip("_") in {"logger", "log"}
    )


def raw_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that an expression shows as they are."""
    match node:
        case ast.Call() if name_of(node.func) in SAFE_CALLS:
            return
        case ast.Attribute() if node.attr in SAFE_ATTRIBUTES:
            return
        case ast.Name():
            yield node.id
        case _:
            for child in ast.iter_child_nodes(node):
                yield from raw_names(child)


def foreign(kind: ast.expr | None, safe: set[str]) -> bool:
    """Say whether an ``except`` clause catches anything but errors of ours."""
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    if isinstance(kind, ast.BinOp):
        kinds = [kind.left, kind.right]
    return not all(name_of(each) in safe for each in kinds)


def faults(tree: ast.Module, safe: set[str]) -> Iterator[int]:
    """Yield the lines where a foreign exception goes to a log as it is."""
    for node in ast.walk(tree):
        if is_log_call(node):
            assert isinstance(node, ast.Call)
            assert isinstance(node.func, ast.Attribute)
            is_raw = node.func.attr == "exception"
            if is_raw or any(each.arg == "exc_info" for each in node.keywords):
                yield node.lineno
        names: set[str] = set()
        body: list[ast.stmt] = []
        match node:
            case ast.ExceptHandler(type=kind, name=str(name)) if foreign(kind, safe):
                names, body = {name}, node.body
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                # An exception that was handed over is foreign unless its type says otherwise.
                for argument in [*node.args.args, *node.args.kwonlyargs]:
                    kind = argument.annotation
                    if kind is not None and name_of(kind) in {
                        "BaseException",
                        "Exception",
                        "OSError",
                    }:
                        names.add(argument.arg)
                body = node.body
        for call in (each for part in body for each in ast.walk(part) if is_log_call(each)):
            assert isinstance(call, ast.Call)
            if names & {name for arg in call.args for name in raw_names(arg)}:
                yield call.lineno


def test_no_foreign_exception_goes_to_a_log_as_it_is() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    safe = safe_errors(list(trees.values()))
    assert {"DialkeyError", "Refused", "RelayUnreachable", "StoreClosed"} <= safe
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, tree in trees.items()
        for line in faults(tree, safe)
    ]
    assert not found, f"log these through dialkey.printable: {found}"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("except ValueError as e: logger.warning('%s', e)", 1),
        ("except (Refused, OSError) as e: _log.info('%s: %s', 1, e)", 1),
        ("except Exception as e: self.logger.info(f'it said {e}')", 1),
        ("except Exception as e: logger.info('%s', str(e))", 1),
        ("except Refused: logger.exception('oh')", 1),
        ("except Refused as e: logger.error('oh', exc_info=e)", 1),
        ("except Refused as e: logger.warning('%s', e)", 0),
        ("except Exception as e: logger.warning('%s', printable(str(e)))", 0),
        ("except Exception as e: logger.warning('%s', printable_traceback(e))", 0),
        ("except OSError as e: logger.warning('%s', e.strerror)", 0),
    ],
)
def test_what_the_search_finds(body: str, count: int) -> None:
    tree = ast.parse(f"try: pass\n{body}")
    assert len(set(faults(tree, {"Refused"}))) == count


# --- what an application's handler gets -----------------------------------------------------------

EVIL = "\x1b]0;owned\x07 \r\nERROR root: \u202eall is lost"


class _Evil:
    """A lookup and a plugin that repeat what a stranger said in errors of their own."""

    name = "evil"

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        raise RuntimeError(EVIL)
        yield

    async def publish(self, info: EndpointInfo) -> None:
        raise RuntimeError(EVIL)

    async def close(self) -> None:
        raise RuntimeError(EVIL)

    @hookimpl
    def dialkey_events(self, event: object) -> None:
        raise RuntimeError(EVIL)


@virtual
async def test_what_lookups_and_plugins_repeat_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    evil = _Evil()
    network = MemoryNetwork()
    transport = network.transport(IpAddr.parse("192.0.2.1:1"))
    async with Endpoint.bind(
        transports=[transport], address_lookups=[evil], plugins=[evil]
    ) as endpoint:
        with pytest.raises(DialkeyError) as caught:
            await endpoint.connect(SecretKey(b"\x01" * 32).id, "x/1")
        assert "owned" in str(caught.value)
        (report,) = [
            each
            for each in await endpoint.look_up(SecretKey(b"\x01" * 32).id)
            if each.lookup == "evil"
        ]
        endpoint.network_changed()
        troubles = str(endpoint.lookup_troubles())
    texts = [record.getMessage() for record in caplog.records]
    assert sum("owned" in text for text in texts) >= 4
    for text in [*texts, str(caught.value), str(report.error), troubles]:
        assert not set("\x1b\x07\r\u202e") & set(text)
        assert not any(line.startswith("ERROR root") for line in text.splitlines())
    assert not any(record.exc_info for record in caplog.records)
