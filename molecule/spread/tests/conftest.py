from __future__ import annotations

import pytest
from spread_site import Hosts


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return Hosts(tmp_path_factory.mktemp("site"))
