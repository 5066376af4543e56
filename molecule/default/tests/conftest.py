from __future__ import annotations

import os

import pytest
from batch_site import Site

# The later ones need what the earlier ones leave.
ORDER = ["test_host", "test_jobsets", "test_faults", "test_check_mode"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.module.__name__.rpartition(".")[2]))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The host that Molecule has made."""
    name = os.environ.get("SAGEQUEUE_TEST_HOST", "sagequeue-default")
    return Site(name, tmp_path_factory.mktemp("site"))
