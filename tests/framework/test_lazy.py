"""Names of packages that are imported when they are first used."""

from __future__ import annotations

import importlib

import pytest

PACKAGES = (
    "dialkey",
    "dialkey_blobs",
    "dialkey_gossip",
    "dialkey_mdns",
    "dialkey_pkarr",
    "dialkey_relay",
    "dialkey_rendezvous",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_found_and_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in vars(module), "the second use looks nothing up"


@pytest.mark.parametrize("package", PACKAGES)
def test_another_name_is_an_attribute_error_that_names_the_package(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
