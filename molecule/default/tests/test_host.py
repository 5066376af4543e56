"""What setup leaves on the host."""

from __future__ import annotations


def test_linger(site):
    assert site.sh("test -e /var/lib/systemd/linger/researcher && loginctl show-user researcher -p Linger") == "Linger=yes"
    assert site.sh("systemctl is-active user@1001.service", root=True) == "active"


def test_files_made_in_the_container_are_the_users_too(site):
    for folder in ("Jupyter:notebooks", ".jupyter:.jupyter", ".sagequeue-dot_sage:.sage", ".sagequeue-local:.local",
                   ".sagequeue-config:.config", ".sagequeue-cache:.cache"):
        outside, inside = folder.split(":")
        site.sh(
            f"""cd ~/{outside}
            podman exec sagemath sh -c 'echo container >/home/sage/{inside}/made-inside'
            echo user >>made-inside
            [ "$(cat made-inside)" = "$(printf 'container\\nuser')" ]
            echo user >made-outside
            podman exec sagemath sh -c 'echo container >>/home/sage/{inside}/made-outside'
            [ "$(cat made-outside)" = "$(printf 'user\\ncontainer')" ]
            podman exec sagemath rm /home/sage/{inside}/made-outside
            rm made-inside"""
        )


def test_nobody_else_reads_the_folders(site):
    assert site.sh("stat -c %A ~/Jupyter ~/.sagequeue-dot_sage")[-3:] == "---"
    assert site.run("su", "-s", "/bin/sh", "nobody", "-c", "ls /home/researcher/Jupyter", check=False).returncode != 0


def test_units(site):
    assert site.sh("systemctl --user is-active sagemath.service") == "active"
    # Podman's check of a container that has just started fails until Jupyter answers; the next one passes.
    site.until(lambda: site.sh("systemctl --user --failed --no-legend") == "", 150, "no unit has failed")
    for jobset, workers in (("petersen", 2), ("rook_r3", 8)):
        wants = site.sh(f"systemctl --user show -p Wants --value sagequeue-{jobset}.target").split()
        assert {f"sagequeue-worker@{jobset}-{n}.service" for n in range(1, workers + 1)} <= set(wants)
        assert f"sagequeue-recover@{jobset}.timer" in wants


def test_the_image_solves_a_clause(site):
    solved = site.sh(
        "podman exec sagemath /sage/sage -python -c"
        " 'import pycryptosat; s = pycryptosat.Solver(); s.add_clause([1]); print(s.solve()[0])'"
    )
    assert solved == "True"


def test_jupyter_wants_its_token(site):
    assert site.sh("stat -c '%a %U' ~/sagequeue/etc/jupyter.token") == "600 researcher"
    status = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8888/api/contents"
    assert site.sh(status) == "403"
    token = "sed 's/.*=//' ~/sagequeue/etc/jupyter.token"
    assert site.sh(f'{status} -H "Authorization: token $({token})"') == "200"
    assert site.sh(f'{status} -H "Authorization: token wrong"') == "403"


def test_its_address_leads_to_jupyter(site):
    address = site.play("jupyter_url").said.splitlines()[0]
    assert address.startswith("http://127.0.0.1:8888/?token=")
    assert site.sh(f"curl -s -o /dev/null -w '%{{http_code}}' '{address.replace('/?', '/api/contents?')}'") == "200"


def test_jupyter_answers_on_loopback_only(site):
    listening = site.sh("ss -Hltn 'sport = :8888'").splitlines()
    assert [line.split()[3] for line in listening] == ["127.0.0.1:8888"]
    answer = site.run("sh", "-c", "curl -s -o /dev/null --max-time 5 http://$(hostname -I | cut -d' ' -f1):8888/", check=False)
    assert answer.returncode == 7, "curl should not be able to connect"
