"""Zap plans: a way to zap shadow pages, as a value that can be printed, parsed, swept and handed to any VM.

Each field is one decision that the kernels took differently over the years (docs/kernel-facts.md, zap.whole
and history). The core runs every plan through one resumable loop; nothing here walks a list.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.terminal import one_line

WALKS = ("head", "tail", "index", "slot")
ONLY = ("all", "mmio_cached", "obsolete", "slot", "gfn_range", "indirect")
STOPS = ("none", "first_not_obsolete")
SKIPS = ("none", "invalid", "invalid_in_use")
RESTARTS = ("on_nonzero", "on_unstable", "on_lock_drop")
BEFORE_DROP = ("keep", "commit")
RELOADS = ("no", "before", "after")
_OFFER = re.compile(r"never|each_page|when_wanted|batch:[1-9][0-9]{0,8}")


def _offer(value: object) -> str:
    """The text form of an offer: `never`, `each_page`, `when_wanted` or `batch:N`; `("batch", N)` is accepted."""
    if (
        isinstance(value, tuple | list)
        and len(value) == 2
        and value[0] == "batch"
        and isinstance(value[1], int)
    ):
        value = f"batch:{value[1]}"
    if not isinstance(value, str) or not _OFFER.fullmatch(value):
        raise UsageError(
            f"zap plan offer {shown(value)}: expected never, each_page, when_wanted or ('batch', N)"
        )
    return value


@dataclass(frozen=True)
class ZapPlan:
    """How to zap: which list from which end, which pages, when to stop, skip, restart and offer the lock.

    Args:
        walk: `head` (newest first) or `tail` (oldest first) of the active list, `index` (the list of only the
            MMIO-caching pages), `slot` (rmaps of the slot, then a hash lookup per gfn).
        only: which pages: `all`, `mmio_cached`, `obsolete`, `slot`, `gfn_range`, `indirect` (those that shadow guest
            page tables: none under two-dimensional paging).
        stop: `none` or `first_not_obsolete`.
        skip: `none`, `invalid`, `invalid_in_use` (invalid with a root count).
        restart: any of `on_nonzero` (prepare returned non-zero), `on_unstable` (a child was zapped),
            `on_lock_drop`; empty: never.
        offer: when the lock may be dropped: `never`, `each_page`, `when_wanted` (a need_resched poll before each
            page), `("batch", N)`.
        before_drop: `keep` what was prepared on the list, or `commit` it before the lock is dropped.
        bump_valid_gen: make every page obsolete first.
        reload_roots: ask every vCPU to reload its root: `no`, `before` or `after` the walk; True means `before`.
        name: how the plan is called in tables; not part of its behaviour.

    Raises:
        UsageError: a word outside these.
    """

    walk: str = "head"
    only: str = "all"
    stop: str = "none"
    skip: str = "none"
    restart: frozenset[str] = frozenset()
    offer: str = "never"
    before_drop: str = "keep"
    bump_valid_gen: bool = False
    reload_roots: str = "no"
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        def one_of(field: str, words: tuple[str, ...]) -> None:
            value = getattr(self, field)
            if value not in words:
                raise UsageError(f"zap plan {field}={shown(value)}: expected one of {', '.join(words)}")

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = bool if field.name == "bump_valid_gen" else str
            if field.name not in ("restart", "offer", "reload_roots") and not isinstance(value, wanted):
                raise UsageError(f"zap plan {field.name}={shown(value)}: expected a {wanted.__name__}")
        restart = self.restart
        if not isinstance(restart, str) and not (
            isinstance(restart, Iterable) and all(isinstance(rule, str) for rule in restart)
        ):
            raise UsageError(f"zap plan restart={shown(restart)}: expected a set of {', '.join(RESTARTS)}")
        if isinstance(restart, str):
            restart = frozenset(restart.split("+")) - {"", "never"}
        object.__setattr__(self, "restart", frozenset(restart))
        unknown = self.restart - set(RESTARTS)
        if unknown:
            raise UsageError(
                f"zap plan restart={'+'.join(sorted(unknown))}: expected a set of {', '.join(RESTARTS)}"
            )
        if isinstance(self.reload_roots, bool):
            object.__setattr__(self, "reload_roots", "before" if self.reload_roots else "no")
        object.__setattr__(self, "offer", _offer(self.offer))
        one_of("walk", WALKS)
        one_of("only", ONLY)
        one_of("stop", STOPS)
        one_of("skip", SKIPS)
        one_of("before_drop", BEFORE_DROP)
        one_of("reload_roots", RELOADS)
        if self.walk == "slot" and self.only not in ("slot", "indirect"):
            raise UsageError("zap plan walk=slot: expected only=slot or only=indirect with it")
        if self.walk == "index" and self.only != "mmio_cached":
            raise UsageError(
                "zap plan walk=index: the index holds only MMIO-caching pages, expected only=mmio_cached"
            )

    def __str__(self) -> str:
        return one_line(self.name or self.spec)

    @property
    def spec(self) -> str:
        """The canonical text, `walk=..,only=..,...`, that `ZapPlan.parse` reads back."""
        parts = []
        for field in dataclasses.fields(self):
            if field.name == "name":
                continue
            value = getattr(self, field.name)
            if value == field.default and field.name not in ("walk", "only"):
                continue
            if field.name == "restart":
                value = "+".join(sorted(value)) or "never"
            elif isinstance(value, bool):
                value = "yes" if value else "no"
            parts.append(f"{field.name}={value}")
        return ",".join(parts)

    @property
    def needs_slot(self) -> bool:
        """Whether a run must be told which slot: it walks one, or zaps the pages of one."""
        return self.walk == "slot" or self.only == "slot"

    @property
    def can_livelock(self) -> bool:
        """True if pages added while the lock is dropped can keep the walk from ending.

        It offers the lock, it comes by the newest pages again (it restarts, or ends at the head), and nothing
        separates pages
        made after its start from those made before.
        """
        comes_again = bool(self.restart) or self.walk in ("tail", "index")
        return self.offer != "never" and comes_again and self.only in ("all", "mmio_cached")

    def to_dict(self) -> dict[str, Any]:
        """Turn the plan into plain data, fit for JSON and for a scenario's `plans`.

        Returns:
            A dict that `from_dict` reads.
        """
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}
        out["restart"] = sorted(self.restart)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str = "") -> ZapPlan:
        """Make the plan of such a dict.

        Args:
            data: field to value; unknown keys are refused.
            name: how the plan is called where the dict has no name.

        Returns:
            The plan.

        Raises:
            UsageError: an unknown key or word.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"zap plan key {shown(unknown[0])}: expected one of {', '.join(sorted(known))}")
        values = dict(data)
        if isinstance(values.get("restart"), list | tuple | set):
            rules = values["restart"]
            if not all(isinstance(rule, str) for rule in rules):
                raise UsageError(f"zap plan restart={shown(rules)}: expected a list of {', '.join(RESTARTS)}")
            values["restart"] = frozenset(rules)
        values.setdefault("name", name)
        return cls(**values)

    @classmethod
    def parse(cls, text: str, imports: bool = False) -> ZapPlan:
        """Read a plan from text.

        Only what the user typed may import: never a plan out of a file.

        Args:
            text: a name of `plans`, or `walk=..,only=..`; with `imports` also `module:object`.
            imports: a module may be imported.

        Returns:
            The plan.

        Raises:
            UsageError: none of the three, with what was expected.
        """
        if text in plans:
            return plans[text]
        if "=" in text:
            values: dict[str, Any] = {}
            for part in text.split(","):
                key, sep, value = part.partition("=")
                if not sep:
                    raise UsageError(f"zap plan {shown(text)}: {shown(part)} is not key=value")
                if key.strip() in values:
                    raise UsageError(f"zap plan {shown(text)}: {shown(key.strip())} is given twice")
                values[key.strip()] = value.strip()
            if values.get("bump_valid_gen") in ("yes", "no", "true", "false"):
                values["bump_valid_gen"] = values["bump_valid_gen"] in ("yes", "true")
            if values.get("reload_roots") in ("yes", "true", "false"):
                values["reload_roots"] = "before" if values["reload_roots"] != "false" else "no"
            return cls.from_dict(values, name=text)
        if ":" in text and imports:
            module, _, attribute = text.partition(":")
            found = cls.imported(text, module, attribute)
            if not isinstance(found, cls):
                raise UsageError(f"zap plan {shown(text)}: expected a ZapPlan, found {type(found).__name__}")
            return found if found.name else dataclasses.replace(found, name=text)
        raise UsageError(
            f"zap plan {shown(text)}: expected one of {', '.join(plans)}, or walk=..,only=.."
            + (", or module:object" if imports else "")
        )

    @staticmethod
    def imported(text: str, module: str, attribute: str) -> object:
        """An object of a module that the user named as a plan in `text`.

        Raises:
            UsageError: importing runs the user's code: whatever that raises is about the plan.
        """
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise UsageError(f"zap plan {shown(text)}: {type(error).__name__}: {error}") from error

    @classmethod
    def space(cls, only: Iterable[str] = ("all", "mmio_cached", "obsolete")) -> Iterator[ZapPlan]:
        """List every plan that walks the active list or the index: the whole space, for sweeps.

        Args:
            only: which pages the plans take.

        Yields:
            Each plan, in a fixed order.
        """
        restarts = [frozenset(c) for n in range(4) for c in itertools.combinations(RESTARTS, n)]
        offers = ("never", "each_page", "when_wanted", "batch:10")
        for which in only:
            for walk, stop, skip, restart, offer, before in itertools.product(
                ("head", "tail", "index"), STOPS, SKIPS, restarts, offers, BEFORE_DROP
            ):
                if walk == "index" and which != "mmio_cached":
                    continue
                obsolete = which == "obsolete"
                if stop == "first_not_obsolete" and not (obsolete and walk == "tail"):
                    continue
                if offer == "never" and (before == "commit" or "on_lock_drop" in restart):
                    continue
                plan = cls(
                    walk=walk,
                    only=which,
                    stop=stop,
                    skip=skip,
                    restart=restart,
                    offer=offer,
                    before_drop=before,
                    bump_valid_gen=obsolete,
                    reload_roots="before" if obsolete else "no",
                )
                yield dataclasses.replace(plan, name=plan.spec)


_ON_NONZERO = frozenset({"on_nonzero"})
_ON_UNSTABLE = frozenset({"on_unstable", "on_lock_drop"})

#: The plans of history, and one of ours, by name.
plans: dict[str, ZapPlan] = {
    plan.name: plan
    for plan in (
        ZapPlan(name="seed", walk="head", only="mmio_cached", restart=_ON_NONZERO),
        ZapPlan(
            name="v3.10-mmio", walk="head", only="mmio_cached", restart=_ON_NONZERO, reload_roots="after"
        ),
        ZapPlan(
            name="v5.0-fast",
            walk="tail",
            only="obsolete",
            stop="first_not_obsolete",
            skip="invalid",
            restart=frozenset({"on_nonzero", "on_lock_drop"}),
            offer="batch:10",
            bump_valid_gen=True,
            reload_roots="before",
        ),
        ZapPlan(
            name="merged",
            walk="head",
            only="mmio_cached",
            skip="invalid_in_use",
            restart=_ON_UNSTABLE,
            offer="each_page",
        ),
        ZapPlan(
            name="zap-all",
            walk="head",
            only="all",
            skip="invalid_in_use",
            restart=_ON_UNSTABLE,
            offer="each_page",
        ),
        ZapPlan(name="v5.2-slot", walk="slot", only="slot", offer="each_page", before_drop="commit"),
        ZapPlan(
            name="v5.3-fast",
            walk="tail",
            only="obsolete",
            stop="first_not_obsolete",
            skip="invalid",
            restart=_ON_UNSTABLE,
            offer="when_wanted",
            before_drop="commit",
            bump_valid_gen=True,
        ),
        ZapPlan(
            name="v5.4-fast",
            walk="tail",
            only="obsolete",
            stop="first_not_obsolete",
            skip="invalid_in_use",
            restart=_ON_UNSTABLE,
            offer="batch:10",
            bump_valid_gen=True,
            reload_roots="before",
        ),
        ZapPlan(name="v6.12-slot", walk="slot", only="indirect", offer="each_page", before_drop="commit"),
        ZapPlan(name="indexed", walk="index", only="mmio_cached", offer="each_page"),
    )
}

#: One sentence for each named plan, for `kvm-mmu plans`.
DESCRIPTIONS: dict[str, str] = {
    "seed": "the patch of January 2019: restart from the head after every zap that returned non-zero",
    "v3.10-mmio": "the dedicated walk of v3.10, run when a memslot is created or moved, then every root is reloaded",
    "v5.0-fast": "the fast invalidate of v3.11 to v5.0: bump the valid generation, zap obsolete pages from the tail",
    "merged": "as merged in v5.1: restart only when the list became unstable or the lock was dropped",
    "zap-all": "the reviewer's wish: the merged walk over every page",
    "v5.2-slot": "slot removal of v5.1 to v5.2.10: only the slot's rmaps and pages",
    "v5.3-fast": "the fast invalidate as it came back in v5.3: no batch, no reload request",
    "v5.4-fast": "the fast invalidate of v5.4 to v6.12: batches of ten, one valid bit, obsolete roots dropped at entry",
    "v6.12-slot": "slot removal of v6.12 where the quirk is off: the slot's mappings, of the pages only shadowing ones",
    "indexed": "ours: a list of only the MMIO-caching pages, kept as they are marked and zapped",
}
