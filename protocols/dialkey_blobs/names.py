"""Names of transferred files: one rule for both ends, and what each system makes of the names.

A *dangerous* name is refused by sender and receiver alike: an empty name or component, `.`, `..`,
absolute names (including Windows' forms), control and direction-changing characters, text that is not
UTF-8, names above 4096 bytes or 64 components, duplicate names, a name that is a directory of another.

Everything else goes over the wire as it is. What a receiver can hold depends on its file system, which a
`Naming` describes: Windows has no names with a colon, some systems take `README` and `readme` to be the
same. `place` gives such a file another name there, distinct from all others; the sender can tell
beforehand which names would be changed somewhere, by asking for `ANYWHERE`.

Source: docs/wire/blobs.md 6.4.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import attrs
from blake3 import blake3

from dialkey.errors import InvalidInput, ProtocolViolation
from dialkey.limits import MAX_COLLECTION_NAME_BYTES, MAX_COLLECTION_NAME_COMPONENTS
from dialkey.printable import printable

__all__ = [
    "ANYWHERE",
    "Naming",
    "Placement",
    "Renamed",
    "UnsafeName",
    "UnsendableName",
    "check_names",
    "check_own_names",
    "place",
    "show_name",
    "split_name",
]

MAX_SHOWN_CHARS: Final = 80
MAX_CLASHES: Final = 10_000
"""How many names may clash on a file system that cannot tell them apart: far more than in an ordinary
folder, and each takes some kilobytes while it is being renamed."""
MAX_ROUNDS: Final = 8
"""A new name may itself clash with one below another folder; a hostile list could prolong that."""
DIGEST_CHARS: Final = 8
"""How much of a hash a new name contains: collisions are unlikely, and refused."""
MAX_EXTENSION_CHARS: Final = 16
"""How much of a name's end is kept, so that programs still recognise the kind of file."""

_DIRECTION_CHARACTERS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})
_DRIVE_PATH: Final = re.compile(r"[A-Za-z]:\\")
_WINDOWS_CHARACTERS: Final = re.compile(r'[<>:"|?*\\]')
# The digits are also reserved as superscripts; a device name with an extension is still a device.
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])[ ]*(?:\..*)?",
    re.IGNORECASE,
)


class UnsafeName(ProtocolViolation):
    """A received name must not become a path.

    Attributes:
        name: the name.
    """

    code = "remote.protocol.unsafe_name"

    def __init__(self, name: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"the name {show_name(name)} is refused: {reason}", hint=hint)
        self.name = name


class UnsendableName(InvalidInput):
    """One of our own files has a name that no receiver accepts.

    Attributes:
        name: the name.
    """

    code = "local.input.name"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{show_name(name)} cannot be sent: {reason}", hint="rename it, or leave it out"
        )
        self.name = name


def show_name(name: str) -> str:
    """Return a name as people write it, with what is dangerous on a terminal escaped.

    The middle of a long one is left out: paths often differ only at their end.
    """
    if len(name) > MAX_SHOWN_CHARS:
        half = MAX_SHOWN_CHARS // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return f"'{printable(name)}'"


# --- what is refused ------------------------------------------------------------------------------


def split_name(name: str) -> tuple[str, ...]:
    """Return the components of a name.

    Raises:
        UnsafeName: it is dangerous.
    """
    fault = _fault(name)
    if fault is not None:
        raise UnsafeName(name, fault)
    return tuple(name.split("/"))


def check_names(names: Sequence[str]) -> None:
    """Check names that are to become files below one directory.

    Takes memory of the order of the names themselves, and time of that by the logarithm of their
    number, whatever they are.

    Args:
        names: relative paths with `/` between components.

    Raises:
        UnsafeName: a name is dangerous, by itself or together with another one.
    """
    for name, reason in _faults(names):
        raise UnsafeName(name, reason)


def check_own_names(names: Sequence[str]) -> None:
    """Check names that we are about to offer, by the rule of `check_names`.

    Raises:
        UnsendableName: a name would be refused by every receiver.
    """
    for name, reason in _faults(names):
        raise UnsendableName(name, reason)


def _faults(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        fault = _fault(name)
        if fault is not None:
            yield name, fault
    # Zero bytes were refused, and sort before all else: so a directory is directly followed by what
    # is in it, and whatever clashes stands side by side.
    keys = sorted(name.replace("/", "\0") for name in names)
    for left, right in pairwise(keys):
        if left == right:
            yield left.replace("\0", "/"), "it is there twice"
        elif right.startswith(left + "\0"):
            folder = show_name(right.replace("\0", "/"))
            yield left.replace("\0", "/"), f"it is a file, and a directory of {folder}"


def _fault(name: str) -> str | None:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not name:
        return "it is empty"
    if length > MAX_COLLECTION_NAME_BYTES:
        return f"it is longer than {MAX_COLLECTION_NAME_BYTES} bytes"
    if name.startswith(("/", "\\")) or _DRIVE_PATH.match(name):
        return "it is absolute"
    components = name.split("/")
    if len(components) > MAX_COLLECTION_NAME_COMPONENTS:
        return f"it has more than {MAX_COLLECTION_NAME_COMPONENTS} components"
    return next((fault for part in components if (fault := _component_fault(part))), None)


def _component_fault(component: str) -> str | None:
    if not component:
        return "it has an empty component"
    # A backslash is a character like any other here, and separates directories on Windows.
    if component == "." or ".." in component.split("\\"):
        return f"{show_name(component)} is not the name of a file"
    if not component.isprintable() and any(
        unicodedata.category(character) in _CONTROL_CATEGORIES or character in _DIRECTION_CHARACTERS
        for character in component
    ):
        return "it has control characters"
    return None


# --- what a system can hold -----------------------------------------------------------------------


@attrs.frozen
class Naming:
    """Which names a file system can hold, and which it can tell apart.

    Attributes:
        is_windows: it has no names with ``< > : " | ? *`` or a backslash, none that end in a dot or
            space, and none of devices.
        ignores_case: `README` and `readme` are one name.
        ignores_form: the ways of writing `é` in Unicode are one name.
        max_component_bytes: how long a component may be.
    """

    is_windows: bool = False
    ignores_case: bool = False
    ignores_form: bool = False
    max_component_bytes: int = 255

    def fold(self, text: str) -> str:
        """Return the same text for all names that are the same name here."""
        if self.ignores_form or self.ignores_case:
            text = unicodedata.normalize("NFC", text)
        if self.ignores_case:
            text = unicodedata.normalize("NFC", text.casefold())
        return text

    def fault(self, component: str) -> str | None:
        """Return why a component cannot be held; None if it can."""
        if self.is_windows:
            found = _WINDOWS_CHARACTERS.search(component)
            if found:
                return f"Windows has no names with {found[0]}"
            if component[-1] in ". ":
                return "Windows has no names that end in a dot or space"
            if _DEVICE.fullmatch(component):
                return f"{component} is a device on Windows"
        if len(component.encode("utf-8")) > self.max_component_bytes:
            return f"a name has at most {self.max_component_bytes} bytes"
        return None

    def safe(self, component: str) -> str:
        """Return a component that can be held, to replace one that cannot."""
        safe = component
        if self.is_windows:
            safe = _WINDOWS_CHARACTERS.sub("_", safe)
            kept = safe.rstrip(". ")
            if kept != safe:
                safe = f"{kept}_"
            if _DEVICE.fullmatch(safe):
                safe = f"_{safe}"
        if len(safe.encode("utf-8")) > self.max_component_bytes:
            safe = self.distinct(safe, component)
        return safe

    def distinct(self, component: str, original: str) -> str:
        """Return a component that no other original gets: by a hash, before the extension."""
        mark = "~" + blake3(original.encode("utf-8")).hexdigest()[:DIGEST_CHARS]
        stem, dot, extension = component.rpartition(".")
        if not stem or len(extension) > MAX_EXTENSION_CHARS:
            stem, dot, extension = component, "", ""
        end = f"{mark}{dot}{extension}"
        room = self.max_component_bytes - len(end.encode("utf-8"))
        return stem.encode("utf-8")[: max(room, 0)].decode("utf-8", "ignore") + end


ANYWHERE: Final = Naming(is_windows=True, ignores_case=True, ignores_form=True)
"""What every system can hold."""


@attrs.frozen
class Renamed:
    """A name that a system cannot hold as it is.

    Attributes:
        name: the name in the collection.
        local_name: what it becomes.
        reason: why.
    """

    name: str
    local_name: str
    reason: str


@attrs.frozen
class Placement:
    """Where the files of a collection go, below one directory.

    Attributes:
        names: local names, one for each name in the collection, in the same order.
        renamed: those that were changed.
    """

    names: tuple[str, ...]
    renamed: tuple[Renamed, ...]


def place(names: Sequence[str], naming: Naming) -> Placement:
    """Map each name to one that a file system can hold, no two the same.

    Names stay as they are where they can. Of several that are the same name here, the first keeps it.

    Args:
        names: names that passed `check_names`.
        naming: what the file system can hold.

    Raises:
        UnsafeName: so many names clash, or in such a way, that it must be deliberate.
    """
    local: list[str] = []
    reasons: dict[int, str] = {}
    for number, name in enumerate(names):
        faults = [(part, naming.fault(part)) for part in name.split("/")]
        if any(fault for _, fault in faults):
            reasons[number] = next(fault for _, fault in faults if fault)
            name = "/".join(naming.safe(part) if fault else part for part, fault in faults)
        local.append(name)
    if reasons or naming.ignores_case or naming.ignores_form:
        _tell_apart(names, local, naming, reasons)
    renamed = [Renamed(names[number], local[number], reasons[number]) for number in sorted(reasons)]
    return Placement(tuple(local), tuple(renamed))


def _tell_apart(
    names: Sequence[str], local: list[str], naming: Naming, reasons: dict[int, str]
) -> None:
    """Change local names until they are as distinct as the originals."""
    for _ in range(MAX_ROUNDS):
        clashes = _clashes(names, local, naming.fold)
        if not clashes:
            return
        # Whoever has kept the original name so far goes on keeping it.
        order = sorted(range(len(names)), key=lambda number: (number in reasons, number))
        owners: dict[str, str] = {}
        for number in order:
            changed = _distinct(names[number], local[number], naming, clashes, owners)
            if changed is not None:
                local[number], other = changed
                reasons.setdefault(number, f"some systems take it for {show_name(other)}")
    raise UnsafeName(names[0], "too many names beside it cannot be told apart here")


def _clashes(
    names: Sequence[str], local: Sequence[str], fold: Callable[[str], str]
) -> frozenset[str]:
    """Return the folded paths that several originals have."""
    keys = sorted(
        (fold(path).replace("/", "\0"), names[number], number) for number, path in enumerate(local)
    )
    clashes: set[str] = set()
    for (left_key, left, _), (right_key, right, _) in pairwise(keys):
        left_folded, right_folded = left_key.split("\0"), right_key.split("\0")
        for depth, (left_part, right_part, left_name, right_name) in enumerate(
            zip(left_folded, right_folded, left.split("/"), right.split("/"), strict=False), 1
        ):
            if left_part != right_part:
                break
            if left_name != right_name:
                clashes.add("/".join(left_folded[:depth]))
                break
        if len(clashes) > MAX_CLASHES:
            raise UnsafeName(right, "too many names beside it cannot be told apart here")
    return frozenset(clashes)


def _distinct(
    name: str, local: str, naming: Naming, clashes: frozenset[str], owners: dict[str, str]
) -> tuple[str, str] | None:
    """Return a local name that differs from the owner's, and the owner; None if there is no other."""
    parts = local.split("/")
    originals = name.split("/")
    folded = ""
    other: str | None = None
    for depth, part in enumerate(parts):
        path = f"{folded}/{naming.fold(part)}" if depth else naming.fold(part)
        if path in clashes:
            original = "/".join(originals[: depth + 1])
            owner = owners.setdefault(path, original)
            if owner != original:
                other = other or owner
                parts[depth] = naming.distinct(part, original)
                path = (
                    f"{folded}/{naming.fold(parts[depth])}" if depth else naming.fold(parts[depth])
                )
        folded = path
    return ("/".join(parts), other) if other is not None else None
