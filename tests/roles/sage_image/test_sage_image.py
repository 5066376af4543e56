"""A real rootless build from the real base, and each reason to build again or not."""

from pathlib import Path

import pytest
import sage_host

# The scenario of the full host runs the role on the way; what only its own tests show takes many minutes.
pytestmark = [pytest.mark.host, pytest.mark.long]
CONTAINERFILE = (Path(__file__).parents[3] / "files" / "Containerfile").read_text()


@pytest.fixture
def containerfile(tmp_path):
    def write(text):
        path = tmp_path / "Containerfile"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(scope="module")
def built(image_host):
    # The tests of sage_container may have left it on this host, in use.
    image_host.systemctl("stop", "sagemath", check=False)
    image_host.podman("image", "rm", "--force", "--no-prune", sage_host.IMAGE, check=False)
    predicted = image_host.play("sage_image", check=True, sage_image_base=sage_host.BASE)
    assert predicted.rc == 0, predicted.errors
    assert "it does not exist" in predicted.messages
    assert image_host.image() is None
    play = image_host.build()
    assert play.rc == 0, play.errors
    return play


def test_a_tag_that_names_the_result_is_refused(image_host):
    play = image_host.build(sage_image_tag="10.7-pycryptosat")
    assert play.rc != 0
    assert "'10.7-pycryptosat'" in play.errors[-1]
    assert "(10.7)" in play.errors[-1]


def test_a_local_base_that_is_missing_is_never_pulled(image_host):
    play = image_host.build(sage_image_base="localhost/nowhere", sage_image_tag="0.1")
    assert play.rc != 0
    assert "The base image localhost/nowhere is not in the image store of user researcher" in play.errors[-1]
    assert "and a localhost/ image cannot be pulled. As that user, load it" in play.errors[-1]
    assert "Pull the base image" not in play.ran


def test_a_remote_base_that_cannot_be_had_is_named(image_host):
    play = image_host.build(sage_image_base="127.0.0.1:9/nobody/there:1", sage_image_tag="0.1")
    assert play.rc != 0
    assert "127.0.0.1:9/nobody/there:1 could not be pulled" in play.errors[-1]
    assert "refused" in play.errors[-1]


def test_a_host_without_the_user_gets_a_prediction(image_host):
    play = image_host.play("sage_image", check=True, sage_image_user="notyet")
    assert play.rc == 0, play.errors
    assert play.changed == ["Say what would be built"]


def test_the_image_solves_and_keeps_nothing_of_the_build(image_host, built):
    program = "import pycryptosat; s = pycryptosat.Solver(); s.add_clause([1]); print(s.solve())"
    run = ["run", "--rm", "--network=none", sage_host.IMAGE]
    assert image_host.podman(*run, "/sage/sage", "-python", "-c", program) == "(True, (None, True))"
    assert image_host.podman(*run, "sh", "-c", "cat /run/sagequeue-ca.pem 2>/dev/null; env | grep -e PIP_ -e SSL_; true") == ""
    labels = image_host.image()["Labels"]
    assert len(labels["sagequeue.recipe"]) == 64
    assert labels["sagequeue.base.id"] == image_host.image(sage_host.BASE)["Id"]
    assert image_host.sh("ls -d /tmp/sagequeue-image-* 2>/dev/null || true") == ""
    assert "candidate" not in image_host.podman("images")


def test_a_second_run_changes_nothing(image_host, built):
    play = image_host.build()
    assert (play.rc, play.changed) == (0, [])
    assert image_host.play("sage_image", check=True, sage_image_base=sage_host.BASE).changed == []


def test_network_and_certificates_are_no_reason_to_build(image_host, built):
    play = image_host.build(sage_image_build_network="host", sage_image_ca_bundle="")
    assert (play.rc, play.changed) == (0, [])


def test_a_base_that_was_removed_stays_away(image_host, built):
    image_host.podman("untag", sage_host.BASE)
    try:
        play = image_host.build()
        assert (play.rc, play.changed) == (0, [])
    finally:
        image_host.podman("tag", image_host.image()["Labels"]["sagequeue.base.id"], sage_host.BASE)


def test_a_changed_recipe_is_built(image_host, built, containerfile):
    before = image_host.image()["Id"]
    changed = {"sage_image_containerfile": containerfile(CONTAINERFILE + 'LABEL more="yes"\n')}
    # An image that is really built for its argument is among the tests of sage_container.
    for change in changed, {"sage_image_build_args": {"PIP_INDEX_URL": "https://pypi.org/simple"}}:
        predicted = image_host.play("sage_image", check=True, sage_image_base=sage_host.BASE, **change)
        assert "the Containerfile or a build argument changed" in predicted.messages
    assert image_host.image()["Id"] == before
    play = image_host.build(**changed)
    assert play.rc == 0, play.errors
    assert image_host.image()["Id"] != before
    assert image_host.build(**changed).changed == []
    # The image that was replaced is gone.
    assert image_host.image(before) is None


def test_a_failed_build_leaves_the_old_image_and_shows_why(image_host, built, containerfile):
    before = image_host.image()["Id"]
    broken = containerfile(CONTAINERFILE.replace("EXPOSE", "RUN echo this is why >&2; exit 3\nEXPOSE"))
    play = image_host.build(sage_image_containerfile=broken)
    assert play.rc != 0
    assert "failed. The image of that name is still the one from before. The last lines were:" in play.errors[-1]
    assert "this is why" in play.errors[-1]
    assert len(play.errors[-1].splitlines()) <= 22
    assert image_host.image()["Id"] == before


def test_an_image_that_does_not_solve_is_not_taken(image_host, built, containerfile):
    before = image_host.image()["Id"]
    hollow = containerfile(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nUSER root\nRUN mkdir /sage && ln -s $(readlink -f $(which sage)) /sage/sage\n"
        # The base of the tests has the solver already: Sage's packages bring it.
        "RUN find / -xdev -name 'pycryptosat*.so' -delete\n"
    )
    play = image_host.build(sage_image_containerfile=hollow)
    assert play.rc != 0
    assert '"Solve a clause with the candidate" failed' in play.errors[-1]
    assert "No module named 'pycryptosat'" in play.errors[-1]
    assert image_host.image()["Id"] == before
    assert "candidate" not in image_host.podman("images")


def test_a_changed_base_is_built(image_host, built):
    old = image_host.image(sage_host.BASE)["Id"]
    recipe = f"FROM {sage_host.BASE}\nLABEL day=two\n"
    image_host.write("/tmp/day-two/Containerfile", recipe.encode())
    image_host.podman("build", "--quiet", "-t", sage_host.BASE, "/tmp/day-two")
    try:
        play = image_host.build()
        assert play.rc == 0, play.errors
        assert any("its base localhost/sage-base changed" in task for task in play.changed), play.changed
        assert image_host.build().changed == []
    finally:
        image_host.podman("tag", old, sage_host.BASE)
