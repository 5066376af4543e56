#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_metrics
short_description: Write the metrics of all jobsets for Prometheus
version_added: 0.1.0
description:
  - Writes one file with the metrics of all jobsets that are defined on the host, for the textfile collector of node_exporter.
  - The file is replaced whole, by a rename, and everybody may read it.
  - The names of the metrics are in the collection's README. A jobset that can't be read has C(sagequeue_up) 0, and the others stay.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Says whether the file would be another, and writes nothing.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
  idempotent:
    description: Ages and durations differ each time.
    support: none
options:
  path:
    description:
      - The file. Its name ends with C(.prom), or node_exporter would not read it.
      - By default C(metrics/sagequeue.prom) below O(root). The folder is made there only.
    type: path
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
notes:
  - Run it as the batch user. The queue is private to that user.
seealso:
  - module: sagequeue.batch.queue_info
"""

EXAMPLES = r"""
- name: Write the metrics where Debian's node_exporter looks for them
  sagequeue.batch.queue_metrics:
    path: /var/lib/prometheus/node-exporter/sagequeue.prom
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
metrics:
  description: What it says.
  returned: success
  type: str
msg:
  description: What is true now.
  returned: always
  type: str
"""

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, metrics
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"path": {"type": "path"}, "root": {"type": "path", "default": "~/sagequeue"}}, supports_check_mode=True
    )
    root = root_of(module.params["root"])
    path = module.params["path"] or os.path.join(root, "metrics", "sagequeue.prom")
    try:
        if not definitions.defined(root):
            raise QueueError("no jobset is defined on this host; run setup")
        text = metrics.text(root)
        before = metrics.current(path)
        if not module.check_mode:
            if not module.params["path"]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.dirname(path), 0o755)
            metrics.write(text, path)
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    count = len(definitions.defined(root))
    deed = "would be written" if module.check_mode else "are"
    module.exit_json(
        changed=before != text,
        path=path,
        metrics=text,
        msg=f"the metrics of {count} {'jobset' if count == 1 else 'jobsets'} {deed} in {path}",
        diff={"before": before, "after": text},
    )


if __name__ == "__main__":
    main()
