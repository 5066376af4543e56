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
            "sage": {
                "script": "rank_boundary_sat_v18.sage",
                "args": "--graph petersen --rank 1 --solver sat --sat_backend cryptominisat --scan_all_J --want_solution --resume "
                        "--stop_file {gate_file} --progress_every 1",
                "workdir": "/shared/work",
                "stride": 3,
                "workers": 2,
                "idle": 5,
                "state_file": "state_{graph}_r{rank}_stride{stride}_off{offset}.txt",
                "environment": {"SAGE_NUM_THREADS": "1"},
            },
        },
    )
