"""The exact work counters: what each of them counts.

Owns the names; each counter is added to where the work is done. All count from the VM's start, none is ever reset.
"""

from __future__ import annotations

WORK_MEANING: dict[str, str] = {
    "walk_starts": "passes of a zap plan over its list begun, restarts included",
    "walk_visited": "list entries a zap plan looked at, over all passes; entries that walks of the TDP MMU came to",
    "restarts": "passes begun beyond the first of each run",
    "pages_zapped": "pages prepared for a zap; a root in use is prepared again when it is given up",
    "pages_freed": "pages freed by a commit",
    "sptes_cleared": "non-zero entries of a page cleared because the page was zapped",
    "sptes_changed": "changes of entries of the TDP MMU that were reported",
    "rmap_steps": "reverse-map entries added, removed, or come to by a handler that may change them",
    "parent_steps": "parent entries added or removed",
    "flushes": "full remote TLB flushes",
    "flushes_ranged": "remote TLB flushes of a range",
    "lock_breaks": "times the lock was dropped",
    "lock_offers": "times the lock was offered (calls of cond_resched_lock)",
    "faults": "page faults handled",
    "get_page_found": "pages get_page found in the hash",
    "get_page_created": "pages get_page created",
}
