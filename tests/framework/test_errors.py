"""One tree of errors: drawn, exported and complete."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from dialkey import errors
from dialkey.errors import Busy, DialkeyError, EndOfStream, LocalError, WireError

FRAMEWORK = Path(errors.__file__).parent


def classes() -> dict[str, type[DialkeyError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, DialkeyError) and not name.startswith("_")
    }


def test_the_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (found := re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)", line)):
            continue
        depth = (line.index(found.group(2)) - 4) // 4
        del above[depth:]
        drawn[found.group(2)] = above[-1] if above else "Exception"
        above.append(found.group(2))
    real = {}
    for name, cls in classes().items():
        parent = next(each for each in cls.__mro__[1:] if not each.__name__.startswith("_"))
        real[name] = parent.__name__
    assert drawn == real


def test_all_are_exported_and_have_codes_of_their_own() -> None:
    assert set(errors.__all__) == set(classes())
    codes = [cls.code for cls in classes().values()]
    assert len(set(codes)) == len(codes)
    for cls in classes().values():
        parent = next(each for each in cls.__mro__[1:] if not each.__name__.startswith("_"))
        if issubclass(parent, DialkeyError) and parent is not DialkeyError:
            assert cls.code.startswith(parent.code.split(".")[0])


INTERNAL = {"TransportError", "KeyUpdateRefused", "IllegalTransition", "ClosedByPeer", "Deadlock"}
"""Ends of work inside `dialkey.quic`, which never leave it, and what the clock of tests raises."""


def test_the_framework_defines_no_exception_elsewhere() -> None:
    known = {*classes(), "Exception", "BaseException", "RuntimeError", "ValueError", "TypeError"}
    strangers = []
    for file in FRAMEWORK.rglob("*.py"):
        if file.name == "errors.py" and file.parent == FRAMEWORK:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in INTERNAL:
                bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
                if bases & known:
                    strangers.append(f"{file.relative_to(FRAMEWORK)}: {node.name}")
    assert not strangers


def test_the_newer_ones_are_what_they_were() -> None:
    assert issubclass(Busy, LocalError)
    error = EndOfStream("it ended", partial=b"ab")
    assert isinstance(error, WireError)
    assert error.partial == b"ab"
