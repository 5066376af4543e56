"""A rootless container and a user really write into each other's folders."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

USER = "sharer"
HOME = f"/home/{USER}"
NOTEBOOKS = f"{HOME}/Jupyter"
WALKER = "/opt/walker"
KEEP_ID = "keep-id"
MAPPED = "mapped"
USERNS = {KEEP_ID: "--userns=keep-id:uid=1000,gid=1000", MAPPED: "--userns=host"}
SHARE = "Share the folders between the user and the container"
LIBRARY = Path(__file__).resolve().parents[3] / "plugins" / "module_utils"

# A shell and a few tools with their libraries: enough of a system for a container.
IMAGE = r"""
tools="/usr/bin/dash /usr/bin/cat /usr/bin/mktemp /usr/bin/mkdir /usr/bin/rm /usr/bin/chmod /usr/bin/stat"
libraries=$(ldd $tools | grep -o '/[^ :]* (' | tr -d '(' | sort -u)
cd; mkdir -p image/bin image/tmp image/home/sage/notebooks
cp $tools image/bin/; ln -s dash image/bin/sh; chmod 1777 image/tmp
for library in $libraries; do mkdir -p image$(dirname $library); cp -L $library image$library; done
tar -C image -c . | podman import --change USER=1000:1000 --change ENV=PATH=/bin - localhost/tiny
"""


def container(host, userns, script, check=True):
    mount = f"{NOTEBOOKS}:/home/sage/notebooks"
    # Podman's own default map, unless it is told otherwise.
    args = [USERNS[userns]] if userns == KEEP_ID else []
    return host.exec(
        "podman", "run", "--rm", "--network=none", "--cgroups=disabled", *args, "-v", mount, "-w", "/home/sage/notebooks",
        "localhost/tiny", "/bin/sh", "-euc", script, user=USER, check=check,
    )  # fmt: skip


def as_user(host, script):
    return host.exec("sh", "-euc", f"cd {NOTEBOOKS}; {script}", user=USER).stdout


def play(host, userns=KEEP_ID, **more):
    return host.play("bind_mounts", bind_mounts_user=USER, bind_mounts_userns=userns, **more)


def remove_user(host):
    host.sh(
        f"loginctl disable-linger {USER} 2>/dev/null || true; loginctl terminate-user {USER} 2>/dev/null || true;"
        f" pkill -KILL -u {USER} || true; sleep 1;"
        f"userdel -f {USER} 2>/dev/null || true; rm -rf {HOME}; sed -i '/^{USER}:/d' /etc/subuid /etc/subgid"
    )


@pytest.fixture
def user(host):
    remove_user(host)
    host.sh(f"useradd -m -s /bin/bash {USER}; printf '[containers]\\npids_limit = 0\\n' > /etc/containers/containers.conf")
    host.sh(f"loginctl enable-linger {USER}; systemctl start user@$(id -u {USER}).service")
    host.exec("sh", "-euc", IMAGE, user=USER)
    yield USER
    remove_user(host)


@pytest.mark.parametrize("userns", [KEEP_ID, MAPPED])
def test_both_sides_write_each_others_files(host, user, userns):
    host.sh(
        f"install -d -o {USER} -g {USER} -m 755 {NOTEBOOKS} {NOTEBOOKS}/old {NOTEBOOKS}/old/closed; chmod 700 {NOTEBOOKS}/old/closed;"
        f"cd {NOTEBOOKS}/old; echo mine >a; echo mine >closed/b; echo '#!/bin/sh' >prog; chmod 755 prog; chown {USER}: * */*;"
        "echo root >of-root; ln -s /etc/hostname link; ln -s /etc linked; ln a hard"
    )
    outside = host.sh("stat -c %a:%U:%G:%Y /etc/hostname /etc; getfacl -p /etc/hostname /etc")
    before = host.sh(f"cd {NOTEBOOKS}; stat -c '%n %Y' old/a old/closed/b old/of-root; cat old/a old/of-root")

    told = play(host, userns, check=True)
    assert (told.rc, told.changed) == (0, [SHARE])
    first = play(host, userns)
    assert (first.rc, first.changed) == (0, [SHARE])
    assert play(host, userns).changed == []
    assert play(host, userns, check=True).changed == []

    assert host.sh(f"stat -c '%a %U %G' {NOTEBOOKS} {HOME}/.sagequeue-cache {NOTEBOOKS}/old") == f"2770 {USER} {USER}\n" * 3
    assert host.sh(f"stat -c '%a' {NOTEBOOKS}/old/a {NOTEBOOKS}/old/prog {NOTEBOOKS}/old/of-root") == "660\n770\n660\n"
    assert host.sh(f"cd {NOTEBOOKS}; stat -c '%n %Y' old/a old/closed/b old/of-root; cat old/a old/of-root") == before
    assert host.sh("stat -c %a:%U:%G:%Y /etc/hostname /etc; getfacl -p /etc/hostname /etc") == outside

    container(host, userns, "for f in old/a old/closed/b old/of-root; do echo box >>$f; done; mkdir new; echo box >new/c; echo box >d")
    as_user(host, "for f in old/a new/c d; do echo me >>$f; done; echo me >new/e; mkdir new/mine; echo me >new/mine/f")
    container(host, userns, "for f in new/e new/mine/f d; do echo box >>$f; done; rm new/e")
    assert as_user(host, "cat d new/mine/f") == "box\nme\nbox\nme\nbox\n"
    assert host.sh(f"find {NOTEBOOKS} ! -type l -perm /7") == ""
    assert play(host, userns).changed == []


@pytest.mark.long
def test_keep_id_shares_what_a_program_keeps_to_itself(host, user):
    play(host, KEEP_ID)
    name = container(host, KEEP_ID, "f=$(mktemp secret.XXXXXX); echo box >$f; stat -c '%a %n' $f").stdout.split()
    assert name[0] == "600"
    assert as_user(host, f"echo me >>{name[1]}; cat {name[1]}") == "box\nme\n"
    assert play(host, KEEP_ID).changed == []
    assert host.sh(f"stat -c %a {NOTEBOOKS}/{name[1]}") == "600\n"


@pytest.mark.long
def test_mapped_opens_what_a_program_keeps_to_itself_at_the_next_run(host, user):
    play(host, MAPPED)
    name = container(host, MAPPED, "f=$(mktemp secret.XXXXXX); echo box >$f; echo $f").stdout.strip()
    assert play(host, MAPPED).changed == [SHARE]
    assert as_user(host, f"echo me >>{name}; cat {name}") == "box\nme\n"
    assert play(host, MAPPED).changed == []


@pytest.mark.long
def test_the_namespace_can_be_changed_both_ways(host, user):
    play(host, MAPPED)
    container(host, MAPPED, "echo box >a; mkdir b; echo box >b/c; mktemp d.XXXXXX")
    as_user(host, "echo me >e")
    assert play(host, KEEP_ID).changed == [SHARE]
    assert host.sh(f"find {NOTEBOOKS} ! -user {USER}") == ""
    container(host, KEEP_ID, "for f in a b/c d.* e; do echo again >>$f; done")
    assert play(host, KEEP_ID).changed == []
    play(host, MAPPED)
    container(host, MAPPED, "for f in a b/c d.* e; do echo again >>$f; done")
    assert as_user(host, "cat a") == "box\nagain\nagain\n"


@pytest.mark.long
def test_files_of_others_are_left_alone_and_named(host, user):
    host.sh(f"install -d -o {USER} -g {USER} {NOTEBOOKS}; touch {NOTEBOOKS}/foreign; chown 1234:1234 {NOTEBOOKS}/foreign")
    host.sh(f"echo x >{HOME}/of-root; ln {HOME}/of-root {NOTEBOOKS}/second-name")
    left = play(host).result(SHARE)["left_alone"]
    assert sorted(line.split(":")[0] for line in left) == [f"{NOTEBOOKS}/foreign", f"{NOTEBOOKS}/second-name"]
    assert host.sh(f"stat -c '%U %a' {HOME}/of-root") == "root 644\n"


@pytest.mark.parametrize("userns", [KEEP_ID, MAPPED])
def test_ten_thousand_files_change_once(host, user, userns):
    host.sh(
        f"install -d -o {USER} -g {USER} {NOTEBOOKS}; cd {NOTEBOOKS};"
        "for d in $(seq 100); do mkdir $d; cd $d; touch $(seq 100); cd ..; done; "
        f"chown -R {USER}: ."
    )
    assert play(host, userns).result(SHARE)["changed_count"] == 10106
    start = time.monotonic()
    again = play(host, userns)
    assert again.changed == []
    assert again.result(SHARE)["walked"] == 10106
    assert time.monotonic() - start < 60


@pytest.mark.long
def test_files_that_come_and_go_do_no_harm(host, user):
    play(host)
    busy = "while [ $(date +%s) -lt $end ]; do rm -rf busy/*; mkdir busy/x; touch busy/x/a busy/b; done"
    as_user(host, f"mkdir -p busy; end=$(($(date +%s) + 12)); ({busy}) >/dev/null 2>&1 &")
    for userns in (MAPPED, KEEP_ID):
        assert play(host, userns).rc == 0


@pytest.fixture
def walker(host):
    host.write(f"{WALKER}/walker.py", (Path(__file__).parent / "walker.py").read_bytes())
    for name in ("_bind_mount.py", "_bind_mount_rights.py", "_posix_acl.py"):
        host.write(f"{WALKER}/lib/{name}", (LIBRARY / name).read_bytes())
    yield f"{WALKER}/walker.py"
    host.sh(f"rm -rf {WALKER}")


@pytest.mark.long
@pytest.mark.parametrize(("old", "new"), [("", KEEP_ID), ("", MAPPED), (MAPPED, KEEP_ID), (KEEP_ID, MAPPED)])
def test_nobody_is_locked_out_wherever_it_is_killed(host, user, walker, old, new):
    """The walk is killed at its first change; then a fresh one at its second change, and so on to the end."""
    id_map = host.exec("podman", "unshare", "cat", "/proc/self/uid_map", user=USER).stdout
    uid, gid = host.sh(f"id -u {USER}; id -g {USER}").split()
    container_id = str(int(id_map.split()[4]) + 999)
    prepare = (
        f"rm -rf {NOTEBOOKS}; install -d -o {USER} -g {USER} {NOTEBOOKS} {NOTEBOOKS}/d; cd {NOTEBOOKS};"
        f"touch a d/b d/root c; chown {USER}: a d/b; chmod 600 a; chown root:{USER} d/root; chmod 664 d/root;"
        f"chown {container_id}:{USER} c; chmod 660 c;"
    )

    def walk(userns, *prefix):
        return host.exec(*prefix, "python3", walker, "walk", NOTEBOOKS, USER, userns, id_map, check=False)

    def access():
        seen = {}
        for who, number in (("user", uid), ("container", container_id)):
            seen[who] = set(json.loads(host.exec("python3", walker, "access", NOTEBOOKS, number, gid if who == "user" else number).stdout))
        return seen

    host.sh(prepare)
    if old:
        assert walk(old).returncode == 0
    before = access()
    assert walk(new).returncode == 0
    after = access()
    everything = set(host.sh(f"find {NOTEBOOKS}").split())
    assert after["user"] == everything
    if new == MAPPED:
        assert after["container"] == everything

    kills = 0
    # strace counts each system call by itself.
    for calls in ("setxattr", "chown,fchownat", "chmod,fchmodat"):
        for when in range(1, 100):
            host.sh(prepare)
            if old:
                walk(old)
            done = walk(new, "strace", "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={when}")
            now = access()
            for who in ("user", "container"):
                assert before[who] & after[who] <= now[who], f"{who} is locked out at {calls} {when}"
            if done.returncode == 0:
                break
            assert done.returncode == 137, done.stderr
            kills += 1
            walk(new)
            assert access() == after
    assert kills > 2


def test_a_user_without_ids_gets_a_range_of_its_own(host, user):
    host.sh(f"sed -i '/^{USER}:/d' /etc/subuid /etc/subgid; echo other:300000:65536 >>/etc/subuid; echo other:400000:65536 >>/etc/subgid")
    try:
        refused = play(host, bind_mounts_manage_subids=False)
        assert refused.rc != 0
        assert f"The user {USER} has no range" in refused.errors[0]
        assert "usermod --add-subuids" in refused.errors[0]

        told = play(host, check=True)
        assert told.rc == 0
        assert "Write the range" in told.changed
        assert host.exec("grep", "-c", f"^{USER}:", "/etc/subuid", check=False).stdout == "0\n"

        assert play(host).rc == 0
        assert host.sh(f"grep -h ^{USER}: /etc/subuid /etc/subgid") == f"{USER}:465536:65536\n" * 2
        assert play(host).changed == []
        container(host, KEEP_ID, "echo box >a")
        assert as_user(host, "cat a") == "box\n"
    finally:
        host.sh("sed -i /^other:/d /etc/subuid /etc/subgid")


@pytest.mark.long
def test_a_user_without_a_session_gets_one_that_stays(host, user):
    host.sh(f"loginctl disable-linger {USER}; systemctl stop user@$(id -u {USER}).service user-runtime-dir@$(id -u {USER}).service")
    first = play(host)
    assert first.rc == 0
    assert "Enable linger for the user" in first.changed
    assert play(host).changed == []


@pytest.mark.long
def test_podmans_storage_does_not_inherit_the_acls(host, user):
    play(host, MAPPED)
    storage = host.exec("podman", "info", "--format", "{{.Store.GraphRoot}}", user=USER).stdout.strip()
    assert "default:" not in host.sh(f"getfacl -p {storage}")
    refused = play(host, MAPPED, bind_mounts_folders=[".local"])
    assert refused.rc != 0
    assert "Podman's storage" in refused.errors[0]
    assert "default:" not in host.sh(f"getfacl -p {HOME}/.local")


def test_bad_users_are_named(host, user):
    assert "does not exist" in host.play("bind_mounts", bind_mounts_user="nobody-here").errors[0]
    assert "not for root" in host.play("bind_mounts", bind_mounts_user="root").errors[0]
    told = host.play("bind_mounts", bind_mounts_user="nobody-here", check=True)
    assert (told.rc, told.changed) == (0, ["Say what waits for the user"])


@pytest.mark.long
def test_a_link_out_of_the_users_folders_is_refused(host, user):
    host.sh(f"ln -s /etc {NOTEBOOKS}")
    refused = play(host)
    assert refused.rc != 0
    assert "/etc, which belongs to uid 0" in refused.errors[0]
    assert host.sh("stat -c %a /etc") == "755\n"
