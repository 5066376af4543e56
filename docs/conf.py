# MIT licence, see LICENSE.
"""The documentation as a site: docs/build calls Sphinx with this, on a copy of the checkout."""

from __future__ import annotations

from pathlib import Path

import yaml

project = "sagequeue.batch"
author = copyright = "the sagequeue.batch authors"
release = version = yaml.safe_load((Path(__file__).parents[1] / "galaxy.yml").read_text())["version"]

extensions = ["myst_parser", "sphinx_antsibull_ext"]
# The pages of the checkout stay where they are, so that their links to each other hold here as well as in a repository's browser.
include_patterns = ["docs/**", "collection/**", "roles/*/README.md", "*.md"]
exclude_patterns = ["docs/_site"]
root_doc = "docs/index"
myst_heading_anchors = 4
# Ansible's own documentation is not built here, and diagrams are shown as their text.
suppress_warnings = ["misc.highlighting_failure", "ref.ref"]

html_theme = "sphinx_ansible_theme"
html_title = "sagequeue.batch"
html_show_sphinx = False
html_theme_options = {
    "collapse_navigation": False,
    "display_version": True,
    "titles_only": True,
    "navigation_depth": 3,
    # No page asks another host for anything.
    "topbar_links": {"Ansible": "https://docs.ansible.com/"},
    "documentation_home_url": "index.html",
}
