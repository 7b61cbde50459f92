"""The proof: every fix is found on the row before and not on the row after; the page is what the command prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.studies.fixes import TODAY_TITLE, page


def test_the_page_is_what_the_command_prints(root: Path) -> None:
    written = (root / "docs" / "soundness.md").read_text(encoding="utf-8")
    assert written.split(TODAY_TITLE)[0].rstrip() == page(has_today=False).rstrip(), (
        "docs/soundness.md is old: kvm-mmu gallery fixes --markdown > docs/soundness.md"
    )


@pytest.mark.soak
def test_the_kernels_of_today_are_what_the_command_prints(root: Path) -> None:
    assert (root / "docs" / "soundness.md").read_text(encoding="utf-8") == page()


def test_a_fix_is_proved_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "fixes", "collapse"]) == 0
    said = capsys.readouterr().out
    assert "slot_bounds" in said and "by_table_in_slot" in said and "NOT" not in said
    assert main(["gallery", "fixes", "nothing"]) == 2


def test_the_difference_of_two_kernels_leads_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "diff", "7.2.6", "7.2.12"]) == 0
    assert "kvm-mmu gallery fixes mmio_cache_space" in capsys.readouterr().out


def test_a_repair_of_shadow_paging_is_proved_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "fixes", "mmio_over_leaf"]) == 0
    said = capsys.readouterr().out
    assert "present_dropped_first after 6 operations" in said and "NOT" not in said
