from __future__ import annotations

import pytest
from cluster_site import Cluster

COMMON = {"script": "job.sh", "command": ["/bin/sh"], "workdir": "/shared/work", "grace": 3, "recover_every": 5, "idle": 5}


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return Cluster(
        "slurm",
        tmp_path_factory.mktemp("site"),
        {
            "quick": {**COMMON, "workers": 4},
            "long": {**COMMON, "workers": 3, "memory": "64M", "cpus": 1, "partition": "main", "engine_options": {"nice": 10}},
            "limited": {**COMMON, "workers": 1, "grace": 1, "time_limit": 120},
        },
    )
