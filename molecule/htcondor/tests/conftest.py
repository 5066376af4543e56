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
    # Its folder is on the controller alone.
    far = {
        **COMMON, "supervisor": "systemd", "runner": "condor_job", "workdir": "/home/researcher/far", "workers": 6,
        "inputs": ["data", "own/{job}"], "outputs": ["out"], "state_file": "state_{job}", "secrets": {"TOKEN": "it's a secret"},
    }
    asked = {"RequestMemory": 64, "RequestDisk": 1024, "RequestCpus": 1, "JobLeaseDuration": 60}
    return Cluster("htcondor", tmp_path_factory.mktemp("site"), {**jobsets, "sage": Cluster.SAGE, "far": far}, asked)
