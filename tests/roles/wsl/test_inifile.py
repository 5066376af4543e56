"""Files of every shape: what is not asked for stays byte for byte."""

from __future__ import annotations

import codecs

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils._inifile import IniError, Kept, Setting, merge
from hypothesis import given, settings
from hypothesis import strategies as st

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
        (b"; systemd=true\n[boot]\n;systemd=true\n", b"; systemd=true\n[boot]\nsystemd=true\n;systemd=true\n"),
        (b"[boot]\nsystemd=false\nsystemd=false\n", b"[boot]\nsystemd=true\nsystemd=true\n"),
        (b"\xef\xbb\xbf[boot]\r\nsystemd=0", b"\xef\xbb\xbf[boot]\r\nsystemd=true"),
        (b"[boot] # here\nno sense\n\tSystemd\t=\tfalse\t# why\n", b"[boot] # here\nno sense\n\tSystemd\t=\ttrue\t# why\n"),
        (b"\n\n[boot]\n\n\n[user]\n", b"\n\n[boot]\nsystemd=true\n\n\n[user]\n"),
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


# What files in the wild are made of.
LINES = [
    *("", "  ", "# J\u00f6rg's", "; old", "[boot]", "[ Boot ]", "[boot] # here", "[wsl2]", "[user]", "memory = 8GB", "no sense"),
    *("systemd=false", "  SystemD = TRUE # why", "systemd=", "# systemd=true", "initTimeout=10000", 'initTimeout="90000"', "=3", "["),
    *("]", "x=a=b # c"),
]


def read(text, section, key):
    """The values of a key, read in the simplest way."""
    found, inside = [], False
    for line in text.splitlines():
        bare = line.split("#")[0].strip()
        if bare.startswith("[") and "]" in bare:
            inside = bare[1 : bare.index("]")].strip().lower() == section
        elif inside and not bare.startswith(";") and bare.partition("=")[0].strip().lower() == key and "=" in bare:
            found.append(bare.partition("=")[2].strip().strip('"').lower())
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(["\n", "\r\n"])), max_size=12),
    st.booleans(),
    st.sampled_from([(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")]),
)
def test_any_file_keeps_every_other_line(lines, whole, mark):
    text = "".join(line + end for line, end in lines)
    text = text if whole else text.rstrip("\r\n")
    bom, codec = mark
    after, _kept = merge(bom + text.encode(codec), [SYSTEMD, TIMEOUT])
    assert after.startswith(bom)
    then = after[len(bom):].decode(codec)
    assert set(read(then, "boot", "systemd")) == {"true"}
    assert all(int(value) >= 60000 for value in read(then, "boot", "inittimeout")) and read(then, "boot", "inittimeout")
    # In their old order, and each as it was, but for the values that were set.
    left = iter(then.splitlines(keepends=True))
    for line in text.splitlines(keepends=True):
        ours = line.strip().lower().startswith(("systemd", "inittimeout"))
        same = [line, line + "\n", line + "\r\n"]
        assert any(there in same or (ours and there.split("=")[0] == line.split("=")[0]) for there in left), line
    assert merge(after, [SYSTEMD, TIMEOUT])[0] == after
