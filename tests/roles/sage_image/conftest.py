import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import sage_host


@pytest.fixture(scope="session")
def image_host(request, tmp_path_factory):
    for host in sage_host.make(request, tmp_path_factory):
        assert host.play("linger").rc == 0
        sage_host.give_base(host)
        yield host
