"""Files of every shape: what is not asked for stays byte for byte."""

from __future__ import annotations

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils._inifile import IniError, Kept, Setting, merge

SYSTEMD = Setting("boot", "systemd", "true")
SHARE = Setting("boot", "command", "mount --make-rshared /", "keep")
TIMEOUT = Setting("boot", "initTimeout", "60000", "at_least")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"[boot]\nsystemd=true\n"),
        (b"[boot]", b"[boot]\nsystemd=true\n"),
        (b"[boot]\nfoo=1", b"[boot]\nfoo=1\nsystemd=true\n"),
        (b"[user]\ndefault=x", b"[user]\ndefault=x\n\n[boot]\nsystemd=true\n"),
        (b"[boot]\nsystemd=false", b"[boot]\nsystemd=true"),
        (b"[boot]\r\n# why\r\nfoo=1\r\n\r\n[user]\r\n", b"[boot]\r\n# why\r\nfoo=1\r\nsystemd=true\r\n\r\n[user]\r\n"),
        (b"\xef\xbb\xbf[Boot]\n  SystemD = false # J\xf6rg\n", b"\xef\xbb\xbf[Boot]\n  SystemD = true # J\xf6rg\n"),
        (b"[boot]\na=1\n[x]\n[boot]\nsystemd=false\n", b"[boot]\na=1\n[x]\n[boot]\nsystemd=true\n"),
        (b"[boot]\na=1\n[x]\nb=2\n[boot]\nc=3\n", b"[boot]\na=1\nsystemd=true\n[x]\nb=2\n[boot]\nc=3\n"),
        (b"[boot]\nsystemd=false\n[boot]\nsystemd=\n", b"[boot]\nsystemd=true\n[boot]\nsystemd=true\n"),
        (b"# systemd=true\n[wsl]\nsystemd=false\n", b"# systemd=true\n[wsl]\nsystemd=false\n\n[boot]\nsystemd=true\n"),
        (b'[boot]\ncommand = "a # b; c" # d\n', b'[boot]\ncommand = "a # b; c" # d\nsystemd=true\n'),
        (b"a\r\n[boot]\nx=1\n", b"a\r\n[boot]\nx=1\nsystemd=true\r\n"),
    ],
)
def test_a_value_is_set_and_nothing_else(before, after):
    assert merge(before, [SYSTEMD]) == (after, [])
    assert merge(after, [SYSTEMD]) == (after, [])


def test_utf16_stays_utf16():
    before = b"\xff\xfe" + "[wsl2]\r\nmemory=8GB\r\n".encode("utf-16-le")
    after, _kept = merge(before, [Setting("general", "instanceIdleTimeout", "-1")])
    assert after == b"\xff\xfe" + "[wsl2]\r\nmemory=8GB\r\n\r\n[general]\r\ninstanceIdleTimeout=-1\r\n".encode("utf-16-le")


def test_another_command_is_kept_and_told():
    before = b'[boot]\ncommand = "service cron start" # mine\n'
    assert merge(before, [SHARE]) == (before, [Kept("boot", "command", "service cron start")])


def test_an_empty_command_is_no_command():
    assert merge(b"[boot]\ncommand=\n", [SHARE])[0] == b"[boot]\ncommand=mount --make-rshared /\n"


@pytest.mark.parametrize(("there", "then"), [(b"10000", b"60000"), (b"90000", b"90000"), (b"soon", b"60000")])
def test_a_longer_timeout_stays(there, then):
    assert merge(b"[boot]\ninitTimeout=" + there, [TIMEOUT])[0] == b"[boot]\ninitTimeout=" + then


def test_a_new_file_for_windows_has_its_line_ends():
    assert merge(b"", [SYSTEMD], "\r\n")[0] == b"[boot]\r\nsystemd=true\r\n"


def test_what_is_no_text_is_refused():
    with pytest.raises(IniError, match="NUL"):
        merge(b"[boot]\0", [SYSTEMD])
