"""What stands in the `limits.py` of each package: each limit once, with its reason, and kept to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path
    for place in ("framework", "protocols", "plugins")
    for path in (ROOT / place).glob("*/limits.py")
)


def reasons(path: Path) -> dict[str, str]:
    """Return the reason of each limit; several in a row share the one that follows them."""
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in ast.parse(path.read_text()).body[1:]:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.update(dict.fromkeys(waiting, str(node.value.value)))
            waiting.clear()
    assert not waiting, f"{path.parent.name}.limits gives no reason for {', '.join(waiting)}"
    return found


def test_the_packages_with_limits() -> None:
    assert {path.parent.name for path in MODULES} >= {
        "dialkey",
        "dialkey_mdns",
        "dialkey_pkarr",
        "dialkey_rendezvous",
        "dialkey_rpc",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_every_limit_has_a_reason_and_a_user(path: Path) -> None:
    listed = reasons(path)
    assert listed
    text = "".join(
        each.read_text()
        for place in ("framework", "protocols", "plugins")
        for each in (ROOT / place).rglob("*.py")
        if each != path
    )
    own = path.read_text()
    unused = [name for name in listed if name not in text and own.count(name) < 2]
    assert not unused, f"nobody keeps to {', '.join(unused)}"


def test_no_limit_of_the_framework_stands_in_a_package_again() -> None:
    framework = reasons(ROOT / "framework/dialkey/limits.py")
    for path in MODULES:
        if path.parent.name != "dialkey":
            assert not framework.keys() & reasons(path).keys(), path
