"""Every shared recording reads with 0 lines not understood, and with as many events of each kind as a plain count."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from kvm_mmu.trace.text.reader import native_reader
from kvm_mmu.trace.text.source import iter_chunks

#: Just enough of a line to name its event; knows nothing of any wording.
EVENT = re.compile(rb"^ *\S.*?\[\d+\] \S+ +\d+\.\d+: (\w+): ", re.MULTILINE)
FAMILIES = ("5.0.1", "5.0.1-npt", "5.2.1", "5.2.1-npt", "5.3.1", "6.1", "6.12")


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_text(shared: Path, family: str):
    paths = sorted((shared / "traces" / family).glob("*/trace.txt.xz"))
    assert paths
    for path in paths:
        text = b"".join(iter_chunks(path))
        reader = native_reader(columns=False)
        reader.feed(text)
        reader.finish()
        counts = reader.summary()
        plain = Counter(name.decode() for name in EVENT.findall(text))
        assert counts["events"] == dict(plain), path
        rest = {
            key: counts[key]
            for key in ("not_understood", "overlong", "opaque", "lost_notes", "raw", "plugin")
        }
        assert not any(rest.values()), (path, rest)
        assert counts["lines"] == sum(plain.values()) + counts["notes"] + counts["blank"], path
