"""Zap plans: a way to zap shadow pages, as a value that can be printed, parsed, swept and handed to any VM.

Each field is one decision that the kernels took differently over the years (docs/kernel-facts.md, zap.whole
and history). Fields, words and the named plans are the core's, which also refuses what no walk does; nothing here walks
a list.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.terminal import one_line

#: The fields of a plan and the words they take, the default first, as the core has them.
FIELDS: dict[str, tuple[str, ...]] = {field: tuple(words) for field, words in _core.plan_fields()}
STOPS, SKIPS, BEFORE_DROP = FIELDS["stop"], FIELDS["skip"], FIELDS["before_drop"]
RESTARTS = FIELDS["restart"][1:]
_OFFER = re.compile(r"never|each_page|when_wanted|batch:[1-9][0-9]{0,8}")
_YES_NO = {True: "yes", False: "no"}


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
            MMIO-caching pages), `slot` (rmaps of the slot, then a hash lookup per gfn), `roots` (those of the TDP MMU,
            newest first; no other walk comes to them).
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
        lock: `exclusive`, or with `walk=roots` and `only=obsolete` also `shared`: faults go on beside the zap.
        name: how the plan is called in tables; not part of its behaviour.

    Raises:
        UsageError: a word outside these, or one that decides nothing in this walk (a walk over a slot has no list to
            stop in or to start again); the message says why.
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
    lock: str = "exclusive"
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
        for name, words in FIELDS.items():
            if name not in ("restart", "offer", "bump_valid_gen"):
                one_of(name, words)
        # What the core does not carry out is refused by the core; a slot's two words for its polls are one.
        object.__setattr__(self, "offer", _core.plan_words(self._spelled())["offer"])

    @property
    def words(self) -> dict[str, str]:
        """Every field and its word, as the core reads them."""
        return dict(self._words)

    @cached_property
    def _words(self) -> dict[str, str]:
        return self._spelled()

    def _spelled(self) -> dict[str, str]:
        values = {field: getattr(self, field) for field in FIELDS}
        restart = "+".join(sorted(self.restart)) or "never"
        return {**values, "restart": restart, "bump_valid_gen": _YES_NO[self.bump_valid_gen]}

    def __str__(self) -> str:
        return one_line(self.name or self.spec)

    @property
    def spec(self) -> str:
        """The canonical text, `walk=..,only=..,...`, that `ZapPlan.parse` reads back."""
        return ",".join(
            f"{field}={word}"
            for field, word in self.words.items()
            if field in ("walk", "only") or word != FIELDS[field][0]
        )

    @property
    def needs_slot(self) -> bool:
        """Whether a run must be told which slot: it walks one, or zaps the pages of one."""
        return self.walk == "slot" or self.only == "slot"

    @property
    def is_of_roots(self) -> bool:
        """True if it zaps what the TDP MMU maps, False if it zaps shadow pages."""
        return self.walk == "roots"

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


def _named(name: str, words: Mapping[str, str]) -> ZapPlan:
    return ZapPlan.from_dict({**words, "bump_valid_gen": words["bump_valid_gen"] == "yes"}, name)


#: The plans of history, and one of ours, by name, as the core has them.
plans: dict[str, ZapPlan] = {name: _named(name, words) for name, words, _ in _core.named_plans()}

#: One sentence for each named plan, for `kvm-mmu plans`.
DESCRIPTIONS: dict[str, str] = {name: said for name, _, said in _core.named_plans()}
