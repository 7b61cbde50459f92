"""The numbers of a summary against counts of the text by other means, over recordings of every kernel."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.text.source import read_lines

#: Three or more recordings of each family, shadow paging and NPT, one and more vCPUs, SMM, the TDP MMU.
NAMES = [
    *(f"5.0.1/{name}" for name in ("basic", "mmio_gen", "reclaim", "mix003")),
    *(f"5.0.1-npt/{name}" for name in ("reclaim", "vcpus", "dirty")),
    *(f"5.2.1/{name}" for name in ("slots", "basic", "wrap_as0")),
    *(f"5.2.1-npt/{name}" for name in ("mmio_gen", "vcpus", "nopaging")),
    *(f"5.3.1/{name}" for name in ("basic", "mmio_gen", "slots", "mix005")),
    *(
        f"6.1/{name}"
        for name in ("npt1tdp0_smm", "npt1tdp0_multi_vcpu", "npt0_basic_pae", "npt1tdp1_notifier")
    ),
    *(f"6.1/{name}" for name in ("npt1tdp0_wrap_flags", "npt0_zap_batch_hog")),
    *(
        f"6.12/{name}"
        for name in ("npt1tdp0_zap_batch", "npt0_wrap_flags", "npt1tdp1_multi_vcpu", "npt0_huge_thp")
    ),
]
ERAS = {
    "5.0.1": {"v5.0"},
    "5.2.1": {"v5.1", "v5.2", "v5.3"},
    "5.3.1": {"v5.3"},
    "6.1": {"v6.1"},
    "6.12": {"v6.12"},
}
#: What the text of a few events may be besides: without entries and exits no event of 6.1 to 7.1 tells them apart.
ALIKE = {"v6.1", "v6.12", "v6.18", "v7.1"}


def plain_counts(lines: list[str]) -> dict[str, object]:
    """Everything counted line by line, with `in` and one regular expression."""
    events: Counter[str] = Counter()
    vcpus, gens, times = set(), set(), []
    found: Counter[str] = Counter()
    for text in lines:
        event = re.match(r" *\S+ +\[\d+\] \S+ +(\d+)\.(\d+): (\w+): (.*)", text)
        if event is None:
            continue
        seconds, fraction, name, body = event.groups()
        body = body.replace("\0", "")
        events[name] += 1
        times.append(int(seconds) * 10**9 + int(fraction.ljust(9, "0")))
        if name in ("kvm_page_fault", "kvm_entry", "kvm_exit", "fast_page_fault", "kvm_smm_transition"):
            vcpus.update(int(v) for v in re.findall(r"\bvcpu (\d+)", body))
        if name == "kvm_mmu_get_page":
            found["created" if body.endswith(" new") else "found"] += 1
        elif name == "kvm_mmu_prepare_zap_page":
            found["zapped"] += 1
            found["in use"] += " root 0 " not in body
        elif name == "check_mmio_spte":
            found["stale"] += body.endswith("valid 0")
            gens.add(int(re.findall(r"kvm_gen (\w+)", body)[0], 16))
        elif name == "mark_mmio_spte":
            gens.add(int(body.rsplit(" ", 1)[1], 16))
    return {
        "events": dict(events),
        "vcpus": vcpus,
        "gens": gens,
        "span": [times[0], times[-1]],
        "pages": (found["created"], found["found"], found["zapped"], found["in use"]),
        "mmio": (events["mark_mmio_spte"], events["handle_mmio_page_fault"], found["stale"]),
        "zap-alls": events["kvm_mmu_invalidate_zap_all_pages"] + events["kvm_mmu_zap_all_fast"],
        "updates": events["memslots_updated"],
        "lines": len(lines),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_summary(shared: Path, name: str):
    path = shared / "traces" / name / "trace.txt.xz"
    plain, found = plain_counts(read_lines(path)), summarize(path, strict=True)
    assert found.events == plain["events"] and found.counts["lines"] == plain["lines"]
    assert list(found.counts["span_ns"]) == plain["span"]
    assert (found.vcpus, found.generations) == (plain["vcpus"], plain["gens"])
    pages = (found.pages_created, found.pages_found, found.pages_zapped, found.roots_zapped_in_use)
    assert pages == plain["pages"]
    assert (found.mmio_marks, found.mmio_hits, found.mmio_stale_checks) == plain["mmio"]
    assert (found.zap_alls, found.memslot_updates) == (plain["zap-alls"], plain["updates"])
    kernel = name.split("/")[0].removesuffix("-npt")
    assert ERAS[kernel] <= set(found.kernels) <= ERAS[kernel] | ALIKE
    as_json = found.as_json()
    assert as_json["zap_alls"] == (None if kernel[:3] in ("5.2", "5.3") else plain["zap-alls"])
    assert f"{plain['pages'][0]} created" in found.as_text()
