import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import sage_host


@pytest.fixture(scope="session")
def podman_host(request, tmp_path_factory):
    yield from sage_host.make(request, tmp_path_factory)
