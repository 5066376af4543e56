"""teardown leaves the host as it was found, but for the data."""

from __future__ import annotations

import re

# What jobs, Sage, Jupyter and Podman keep; settings that others may rely on by now, which the README names; what packages bring along.
DATA = re.compile(
    r"/home/researcher(/sagequeue(/var(/|$)|/sage(/|$)|/adopted(/|$)|$)|/Jupyter|/\.jupyter|/\.sagequeue-|/\.cache)"
    r"|/home/researcher/\.(local(/share(/containers(/|$)|$)|$)|config$)"
    r"|/etc/(wsl\.conf|sysctl\.d/60-sagequeue\.conf|sub[ug]id|mtab|ld\.so|alternatives|apparmor|containers|\.updated)|/mnt/c/Users/anna/\.wslconfig"
)


def differences(before, after):
    return sorted(line for line in set(before) ^ set(after) if not DATA.search(line.split(" ")[0]))


def test_teardown_leaves_the_host_as_it_was(site):
    queue = site.queue()
    assert site.play("teardown", remove_image=True).changed
    left = differences(site.found, site.listing())
    assert not left, "\n".join(left)
    assert site.queue() == queue
    # Empty slices, which systemd has made for the units, stay until the user's manager ends.
    units = "systemctl --user list-units --all --plain --no-legend | grep -v '\\.slice '"
    left = site.sh(f"podman ps -a; podman images; podman secret ls; {units}").splitlines()
    assert [line for line in left if "sagequeue" in line.replace("sagequeue-sage-base", "")] == []
    assert site.play("teardown", remove_image=True).changed == []
