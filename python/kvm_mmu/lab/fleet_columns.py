"""What the table of a fleet can be ordered by: a file of its own, so that asking for help loads nothing else."""

from __future__ import annotations

#: Column, largest first; the first where nobody says.
SORTS = {
    "stalls": ("stalled_ns", "longest_ns", "p99_ns", "stalls", "waited_ns", "files"),
    "summary": ("pages_zapped", "pages_created", "memslot_updates", "mmio_stale_checks", "lines", "files"),
}
