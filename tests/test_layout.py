"""The rules of the house: who may import whom, and what no file may contain."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

ROOT: Final = Path(__file__).parents[1]

FLOORS: Final = (
    (
        "allowance",
        "errors",
        "event_queue",
        "extras",
        "lazy",
        "limits",
        "native",
        "opening",
        "places",
        "printable",
        "shares",
        "signals",
    ),
    ("configuration", "identity", "hooks", "hookspecs", "presets"),
    ("quic",),
    ("network",),
    ("endpoint",),
    ("router",),
    ("testing",),
    ("cli",),
    ("__init__", "__main__"),
)
"""From the ground up. Rooms of one floor may know each other. Hooks and presets are below
the endpoint, which uses them; they know it by type alone."""

PUBLIC: Final = frozenset(
    {
        "dialkey",
        "dialkey.allowance",
        "dialkey.cli",
        "dialkey.configuration",
        "dialkey.endpoint",
        "dialkey.errors",
        "dialkey.event_queue",
        "dialkey.extras",
        "dialkey.hooks",
        "dialkey.identity",
        "dialkey.identity.base32",
        "dialkey.identity.postcard",
        "dialkey.lazy",
        "dialkey.limits",
        "dialkey.native",
        "dialkey.network",
        "dialkey.opening",
        "dialkey.places",
        "dialkey.presets",
        "dialkey.printable",
        "dialkey.router",
        "dialkey.shares",
        "dialkey.testing",
    }
)
"""What protocols, plugins and applications may import; `dialkey.quic` is nobody's but ours."""

NOT_SANS_IO: Final = frozenset({"asyncio", "select", "selectors", "socket", "time"})
CHANCE: Final = frozenset({"random"})
"""A core may name the type of what it is handed; the two that keep secrets may not even do that."""
SANS_IO: Final = ("framework/dialkey/quic", "framework/dialkey/identity")
CORES: Final = {
    "framework/dialkey": "allowance",
    "framework/dialkey/endpoint": "door path_policy paths",
    "plugins/dialkey_mdns": "book machine messages",
    "plugins/dialkey_pkarr": "dns_query packets records server/quotas server/web server/zone",
    "plugins/dialkey_relay": "frames grants handshake http1 hub keepalive rates session websocket",
    "plugins/dialkey_rendezvous": "allowances codes desk exchange frames words",
    "protocols/dialkey_blobs": (
        "bitfield collection decoder encoder hash hash_seq lanes names outboard ranges response tree"
    ),
    "protocols/dialkey_gossip": "framing hyparview messages pace plumtree quota signing tickets",
    "protocols/dialkey_rpc": "checking codec convert frames order packing schema",
}
"""The sans-IO modules of packages that have shells beside them."""


@attrs.frozen
class Import:
    """One imported module; `name` is what is taken from it, or None for the module itself."""

    file: Path
    line: int
    module: str
    name: str | None

    def __str__(self) -> str:
        what = f"{self.module}.{self.name}" if self.name else self.module
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {what}"


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def imports_of(file: Path, *, at_run_time: bool = False) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; write the full name"
            for alias in node.names:
                yield Import(file, node.lineno, node.module or "", alias.name)
        elif at_run_time and isinstance(node, ast.If) and _is_type_checking(node.test):
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def complain(found: list[Import], rule: str) -> None:
    assert not found, "\n".join([rule, *map(str, found)])


def test_framework_knows_no_protocol_and_no_plugin() -> None:
    complain(
        [
            found
            for file in python_files("framework")
            for found in imports_of(file)
            if found.module.startswith("dialkey_")
        ],
        "the framework must not import protocols or plugins",
    )


def _room(module: str, name: str | None) -> str | None:
    """Return the room of `dialkey` that an import enters, or None for another package."""
    parts = module.split(".")
    if parts[0] != "dialkey":
        return None
    if len(parts) > 1:
        return parts[1]
    is_room = name is not None and any(name in floor for floor in FLOORS)
    return name if is_room else "__init__"


def _floor(room: str) -> int:
    for number, floor in enumerate(FLOORS):
        if room in floor:
            return number
    raise AssertionError(f"dialkey.{room} stands on no floor; give it one in FLOORS")


def _lazily_exported(file: Path, found: Import) -> bool:
    """The package's own `__init__` may be asked for names by commands, when they run."""
    return found.module == "dialkey" and file.is_relative_to(ROOT / "framework/dialkey/cli")


def test_upper_floors_import_lower_ones_never_the_other_way() -> None:
    package = ROOT / "framework" / "dialkey"
    wrong = []
    for file in python_files("framework"):
        here = file.relative_to(package).parts[0].removesuffix(".py")
        for found in imports_of(file, at_run_time=True):
            there = _room(found.module, found.name)
            if there is None or there == here or _lazily_exported(file, found):
                continue
            if _floor(there) > _floor(here):
                wrong.append(found)
    complain(wrong, "an upper floor imports lower ones, never the other way")


def _distributions() -> list[Path]:
    return sorted(
        path
        for folder in ("protocols", "plugins")
        for path in (ROOT / folder).glob("dialkey_*")
        if path.is_dir()
    )


@pytest.mark.parametrize("package", _distributions(), ids=lambda path: path.name)
def test_protocols_and_plugins_import_only_public_names(package: Path) -> None:
    wrong = []
    for file in sorted(package.rglob("*.py")):
        for found in imports_of(file):
            if found.module.split(".")[0] == "dialkey":
                if not _is_public(found):
                    wrong.append(found)
            elif found.module.startswith("dialkey_") and not _within(found.module, package.name):
                wrong.append(found)
    complain(wrong, f"{package.name} may import public names of dialkey, and no other plugin")


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _is_public(found: Import) -> bool:
    if found.name is None:
        return found.module in PUBLIC
    if f"{found.module}.{found.name}" in PUBLIC:
        return True
    if found.module not in PUBLIC or found.name.startswith("_"):
        return False
    module = importlib.import_module(found.module)
    return found.name in getattr(module, "__all__", dir(module))


def test_the_cores_know_no_sockets_and_no_clocks() -> None:
    cores = [ROOT / folder / f"{name}.py" for folder in CORES for name in CORES[folder].split()]
    missing = [str(file) for file in cores if not file.is_file()]
    assert not missing, f"name the cores in CORES as they are called now: {missing}"
    strict = python_files(*SANS_IO)
    complain(
        [
            found
            for file in [*strict, *cores]
            for found in imports_of(file, at_run_time=True)
            if found.module.split(".")[0]
            in (NOT_SANS_IO | CHANCE if file in strict else NOT_SANS_IO)
        ],
        "a sans-IO core gets bytes, events, chance and the time as arguments",
    )


FORBIDDEN: Final = {
    "a path of somebody's machine": re.compile(r"(?<![\w.])/(?:work|root|Users)/\w"),
    "a note to oneself": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
}
TEXT: Final = frozenset(
    {"", ".cfg", ".md", ".py", ".pyi", ".rs", ".sh", ".toml", ".txt", ".yaml", ".yml"}
)
FOLDERS: Final = (
    ".ci",
    "benchmarks",
    "cookbook",
    "docs",
    "framework",
    "native/src",
    "plugins",
    "protocols",
    "tests",
)


def text_files() -> list[Path]:
    # In a worktree of git `.git` is a file, which holds a path of this machine and is not committed.
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        files.extend(path for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix in TEXT and "__pycache__" not in path.parts)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str) -> None:
    found = []
    for file in text_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if FORBIDDEN[what].search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join([what, *found])


UNANNOUNCED: Final[frozenset[str]] = frozenset()
"""In the tree and tested, and not in the wheel before an endpoint can use them."""


def test_every_package_is_in_the_wheel_and_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    on_disk = [
        f"{path.parent.name}/{path.name}"
        for path in _distributions()
        if (path / "__init__.py").is_file()
    ]
    expected = {"framework/dialkey", *on_disk}
    assert expected - UNANNOUNCED <= set(packages) <= expected
    for package in packages:
        assert (ROOT / package / "py.typed").is_file(), f"{package} has no py.typed"


def _declared(project: dict[str, Any], *, for_tests: bool) -> set[str]:
    """Return the names of the distributions that pyproject.toml declares, in normal form."""
    requirements = list(project["project"]["dependencies"])
    for extra in project["project"].get("optional-dependencies", {}).values():
        requirements += extra
    if for_tests:
        requirements += project["dependency-groups"]["dev"]
    return {
        re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        for requirement in requirements
    }


@pytest.mark.parametrize("for_tests", [False, True], ids=["code", "tests"])
def test_every_imported_distribution_is_declared(for_tests: bool) -> None:
    """What is only by chance installed here would be missing on a new machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = ("tests",) if for_tests else ("framework", "protocols", "plugins")
    providers = importlib.metadata.packages_distributions()
    own = {path.stem for folder in folders for path in (ROOT / folder).rglob("*")}
    missing = []
    for file in python_files(*folders):
        room = "/".join(file.relative_to(ROOT).parts[:2])
        declared_here = _declared(project, for_tests=for_tests or room in UNANNOUNCED)
        for found in imports_of(file):
            package = found.module.split(".")[0]
            if package in sys.stdlib_module_names or package in own:
                continue
            if package == "dialkey" or package.startswith("dialkey_"):
                continue
            names = {name.lower().replace("_", "-") for name in providers.get(package, [package])}
            if names.isdisjoint(declared_here):
                missing.append(found)
    complain(missing, "pyproject.toml declares no distribution that provides these")


def test_no_path_is_expanded() -> None:
    """Shells expand; a path that we are given is what it says (DESIGN 6)."""
    sources = [
        path
        for folder in ("framework", "protocols", "plugins", "cookbook", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
    ]
    for path in [*sources, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "expanduser" not in text, path
        assert "expandvars" not in text, path


# --- citations ------------------------------------------------------------------------------------

CITING: Final = (
    "benchmarks",
    "cookbook",
    "framework",
    "native/src",
    "plugins",
    "protocols",
    "tests",
)
"""Comments and docstrings cite pages below docs/ by path and the numbers of sections, such as
"docs/wire/quic.md 3.4 and 3.13", or by titles in quotation marks."""

NUMBER: Final = r"\d+(?:\.\d+)*"
CITATION: Final = re.compile(
    rf"docs/(?P<page>[\w/-]+\.md)"
    rf"(?: (?P<numbers>{NUMBER}(?:(?:,? (?:and|to) |, ){NUMBER}(?![\w.]*/))*)"
    rf'|, (?P<titles>"[^"]+"(?:(?:,? and |, )"[^"]+")*))?'
)
WRAPPED: Final = re.compile(r"\n[ \t]*(?:#|//[/!]?)?[ \t]*")
HEADING: Final = re.compile(rf"^#+ (?:(?P<number>{NUMBER})\.? )?(?P<title>.*)$", re.MULTILINE)
ELSEWHERE: Final = re.compile(
    r"wire " + r"reference|(?<!docs/)\bwire/(?:quic|relay|discovery|blobs|gossip)\.md"
)


def sources_without_wrapping() -> Iterator[tuple[Path, str]]:
    for folder in CITING:
        for suffix in ("py", "rs"):
            for file in sorted((ROOT / folder).rglob(f"*.{suffix}")):
                if file != Path(__file__):  # this one shows what is wrong
                    yield file, WRAPPED.sub(" ", file.read_text(encoding="utf-8"))


@functools.cache
def headings_of(page: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the numbers and the titles of a page's sections."""
    headings = list(HEADING.finditer(page.read_text(encoding="utf-8")))
    return (
        frozenset(heading["number"] for heading in headings),
        frozenset(heading["title"] for heading in headings),
    )


def unresolved(text: str) -> list[str]:
    """Return what of a text's citations names nothing."""
    found = []
    for citation in CITATION.finditer(text):
        page = ROOT / "docs" / citation["page"]
        if not page.is_file():
            found.append(citation[0])
            continue
        numbers, titles = headings_of(page)
        missing = [n for n in re.findall(NUMBER, citation["numbers"] or "") if n not in numbers]
        missing += [t for t in re.findall('"([^"]+)"', citation["titles"] or "") if t not in titles]
        found += [f"docs/{citation['page']}: {what}" for what in missing]
    return found


def test_what_the_code_cites_is_there() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {what}"
        for file, text in sources_without_wrapping()
        for what in unresolved(text)
    ]
    assert not found, "\n".join(found)


def test_the_references_are_cited_by_the_name_of_a_page() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file, text in sources_without_wrapping()
        for match in ELSEWHERE.finditer(text)
    ]
    assert not found, "cite docs/wire/NAME.md and a section\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("docs/wire/quic.md 3.4 and 3.13.", []),
        ("docs/wire/quic.md 3.4, 99.1; RFC 9000", ["docs/wire/quic.md: 99.1"]),
        ("docs/wire/blobs.md 1.1 to 1.99", ["docs/wire/blobs.md: 1.99"]),
        ("docs/wire/nothing.md 1", ["docs/wire/nothing.md 1"]),
        ('docs/rpc-wire.md, "Calls" and "Nothing"', ["docs/rpc-wire.md: Nothing"]),
        ("docs/wire/quic.md, RFC 9002", []),
    ],
)
def test_a_citation_of_nothing_is_found(text: str, missing: list[str]) -> None:
    assert unresolved(text) == missing
