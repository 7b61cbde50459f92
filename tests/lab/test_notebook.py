"""What a notebook shows: fits a page, is escaped and capped, costs little, and never raises."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import kvm_mmu as km
import pytest
from kvm_mmu.machine import vm as vm_module
from kvm_mmu.scenario.workload import mmio_mix

#: Columns and rows that fit a page.
COLUMNS, ROWS = 7, 70


def fits(html: str) -> str:
    """The words of well formed HTML whose tables are neither wide nor long."""
    root = ElementTree.fromstring(f"<body>{html}</body>")
    for table in root.iter("table"):
        rows = list(table.iter("tr"))
        assert len(rows) <= ROWS and all(len(row) <= COLUMNS for row in rows)
    assert len(html) < 200_000
    return " ".join(" ".join(root.itertext()).split())


@pytest.fixture
def vm() -> km.Vm:
    vm = km.Vm(kernel="v5.2", family="npt")
    vm.memslots.create(slot=0, gpa=0, size=km.GIB)
    for gpa in (0x1000, 0x2000, 0xFEE00000):
        vm.vcpus[0].access(gpa, "r")
    return vm


def test_a_vm_shows_its_picture(vm: km.Vm) -> None:
    html = vm._repr_html_()
    said = fits(html)
    assert html.count("<svg ") == 1 and "max-width:100%" in html
    assert "Vm v5.2" in said and "memslots" in said and "level 4" in said and "work (exact counts)" in said
    assert "level 4" not in fits(km.Vm(kernel="v5.2")._repr_html_())


def test_a_large_vm_is_not_drawn_unasked(vm: km.Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLANCE_PAGES", "GLANCE_SLOT_PAGES"):
        with monkeypatch.context() as small:
            small.setattr(vm_module, name, 2)
            assert "vm.to_svg() draws them" in fits(vm._repr_html_())
    assert "<svg" in vm._repr_html_() and "<svg" in vm.to_svg()
    many = km.Vm(kernel="v5.2", family="npt", events="off")
    for slot in range(20):
        many.memslots.create(slot=slot, gpa=slot << 32, size=1 << 31)
    assert "... and 12 rows more" in fits(many._repr_html_())


def test_a_page(vm: km.Vm) -> None:
    pages = list(vm.active_pages())
    for page in pages:
        said = fits(page._repr_html_())
        assert f"shadow page {page.id}" in said and f"gfn {page.gfn:#x}" in said
    assert any("links to" in fits(page._repr_html_()) and "page " in page._repr_html_() for page in pages)
    assert any("mmio_cached" in page._repr_html_() for page in pages)
    for gpa in range(0x10000, 0x40000, 0x1000):
        vm.vcpus[0].access(gpa, "w")
    assert "rows more" in fits(
        next(page for page in pages if page.gfn == 0 and page.level == 1)._repr_html_()
    )
    vm.zap("zap-all")
    vm.vcpus[0].unload()
    assert fits(pages[0]._repr_html_()) == f"shadow page {pages[0].id}: there is no such page"


def test_a_run(vm: km.Vm) -> None:
    vm.core.set_lock_break(1, 2)
    plan = km.ZapPlan.parse("merged")
    shown = [(pause.run, fits(pause.run._repr_html_())) for pause in vm.zap_steps(plan)]
    assert shown and all("paused at a lock break" in said for _, said in shown)
    run = shown[-1][0]
    said = fits(run._repr_html_())
    assert str(plan) in said and f"pages zapped {run.nr_zapped:,}" in said and run.outcome in said
    assert f"longest hold, work units {run.longest_hold:,}" in said


def test_a_comparison() -> None:
    found = km.compare([mmio_mix(20, 0.2), mmio_mix(30, 0.0)], list(km.plans), at="wrap")
    said = fits(found._repr_html_())
    assert said.count("plan nodes zapped hold faults again sound") == 2
    assert "note: " in said and said.count("no way to do a wrap with it alone") == 2
    found.notes += ["<b>"] * 20
    assert "notes more" in fits(found._repr_html_())
    found.rows[0]["input"] = "<script>\x1b"
    assert "<script>" not in found._repr_html_() and r"\x1b" in fits(found._repr_html_())
