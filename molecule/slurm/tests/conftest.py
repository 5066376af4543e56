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
            # Its workers stay, so that one has always time to look for orphans.
            "long": {**COMMON, "workers": 3, "memory": "64M", "cpus": 1, "partition": "main", "engine_options": {"nice": 10}, "lease": 20,
                     "idle": 10000},
            "limited": {**COMMON, "workers": 1, "grace": 1, "time_limit": 120},
            "sage": Cluster.SAGE,
        },
        {"Nice": "10", "Requeue": "1", "ArrayTaskThrottle": "3", "ReqTRES": "cpu=1,mem=64M,node=1,billing=1"},
    )
