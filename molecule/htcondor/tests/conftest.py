from __future__ import annotations

import pytest
from cluster_site import Cluster

COMMON = {"script": "job.sh", "command": ["/bin/sh"], "workdir": "/shared/work", "grace": 3, "recover_every": 5, "idle": 5}


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    jobsets = {
        "quick": {**COMMON, "workers": 4},
        "long": {**COMMON, "workers": 3, "memory": "64M", "disk": "1M", "lease": 20, "engine_options": {"requirements": "Cpus >= 1"}},
    }
    return Cluster("htcondor", tmp_path_factory.mktemp("site"), jobsets)
