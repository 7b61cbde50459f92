"""Zap plans: which shadow pages go, in which order, and when the walk restarts or offers the lock.

Owns `ZapPlan`, the plans of history and of the house by name, and reading a plan from a name or a dict. A plan is a
value; `zap_run` carries it out. The names v5.0-fast, seed, merged, zap-all, v5.2-slot, v5.3-fast, v5.4-fast and
v6.12-slot are what the kernels did to shadow pages, tdp-fast, tdp-all and tdp-slot what they do to the roots of the TDP
MMU; `indexed` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import ScenarioError, cut

WALKS = ("head", "tail", "index", "slot", "roots")
# `indirect`: pages that shadow a guest's table; a direct MMU has none.
FILTERS = ("all", "mmio_cached", "obsolete", "slot", "gfn_range", "indirect")
STOPS = ("none", "first_not_obsolete")
SKIPS = ("none", "invalid", "invalid_in_use")
RESTARTS = ("on_nonzero", "on_unstable", "on_lock_drop")
BEFORE_DROPS = ("keep", "commit")
RELOADS = ("no", "before", "after")
LOCKS = ("exclusive", "shared")
ROLES = ("wrap", "slot_removal", "teardown", "flush_all")


@dataclass(frozen=True, slots=True)
class ZapPlan:
    """One way to zap. `offer` is never, each_page, when_wanted or batch:N; `reload_roots` no, before or after.

    A walk over a slot polls after each reverse map and each gfn (`each_page`) or never. A walk over the roots of the
    TDP MMU polls at each entry (`when_wanted`) or never, with `lock` held exclusive or shared; shadow pages are always
    zapped under the exclusive lock.
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

    @property
    def batch(self) -> int | None:
        """N of an offer `batch:N`."""
        return int(self.offer[6:]) if self.offer.startswith("batch:") else None

    @property
    def needs_slot(self) -> bool:
        return self.walk == "slot" or self.only == "slot"


_SEED = ZapPlan(only="mmio_cached", restart=frozenset({"on_nonzero"}))
_MERGED = ZapPlan(
    only="mmio_cached",
    skip="invalid_in_use",
    restart=frozenset({"on_unstable", "on_lock_drop"}),
    offer="each_page",
)

NAMED_PLANS: dict[str, ZapPlan] = {
    "seed": _SEED,
    "v3.10-mmio": ZapPlan(only="mmio_cached", restart=frozenset({"on_nonzero"}), reload_roots="after"),
    "v5.0-fast": ZapPlan(
        walk="tail",
        only="obsolete",
        stop="first_not_obsolete",
        skip="invalid",
        restart=frozenset({"on_nonzero", "on_lock_drop"}),
        offer="batch:10",
        bump_valid_gen=True,
        reload_roots="before",
    ),
    "merged": _MERGED,
    "zap-all": ZapPlan(
        skip="invalid_in_use", restart=frozenset({"on_unstable", "on_lock_drop"}), offer="each_page"
    ),
    "v5.2-slot": ZapPlan(walk="slot", only="slot", offer="each_page", before_drop="commit"),
    "v5.3-fast": ZapPlan(
        walk="tail",
        only="obsolete",
        stop="first_not_obsolete",
        skip="invalid",
        restart=frozenset({"on_unstable", "on_lock_drop"}),
        offer="when_wanted",
        before_drop="commit",
        bump_valid_gen=True,
    ),
    "v5.4-fast": ZapPlan(
        walk="tail",
        only="obsolete",
        stop="first_not_obsolete",
        skip="invalid_in_use",
        restart=frozenset({"on_unstable", "on_lock_drop"}),
        offer="batch:10",
        bump_valid_gen=True,
        reload_roots="before",
    ),
    "v6.12-slot": ZapPlan(walk="slot", only="indirect", offer="each_page", before_drop="commit"),
    "tdp-fast": ZapPlan(
        walk="roots",
        only="obsolete",
        offer="when_wanted",
        bump_valid_gen=True,
        reload_roots="before",
        lock="shared",
    ),
    "tdp-all": ZapPlan(walk="roots", offer="when_wanted"),
    "tdp-slot": ZapPlan(walk="roots", only="slot", offer="when_wanted", before_drop="commit"),
    "indexed": ZapPlan(walk="index", only="mmio_cached", offer="each_page"),
}


def parse_plan(value: object) -> ZapPlan:
    """A plan from a name, a text `walk=..,only=..`, a dict of its fields or a plan.

    Raises ScenarioError with what was expected.
    """
    if isinstance(value, ZapPlan):
        return value
    if isinstance(value, str) and "=" in value:
        pairs = [part.partition("=") for part in value.split(",")]
        return parse_plan_fields({name.strip(): word.strip() for name, _, word in pairs})
    if isinstance(value, str):
        plan = NAMED_PLANS.get(value)
        if plan is None:
            raise ScenarioError(f"unknown zap plan {cut(value)}; expected one of {', '.join(NAMED_PLANS)}")
        return plan
    if not isinstance(value, Mapping) or not value:
        raise ScenarioError(f"a zap plan is a name or an object of its fields, not {cut(value)}")
    return parse_plan_fields(value)


def parse_plan_fields(fields_given: Mapping[str, Any]) -> ZapPlan:
    given = dict(fields_given)
    given.pop("name", None)  # a label; it decides nothing
    known = {f.name for f in fields(ZapPlan)}
    unknown = sorted(str(name) for name in set(given) - known)
    if unknown:
        raise ScenarioError(f"unknown zap plan field {cut(unknown[0])}; expected {', '.join(sorted(known))}")
    given["reload_roots"] = {True: "before", False: "no", "yes": "before"}.get(
        hashable(given.get("reload_roots", "no")), given.get("reload_roots", "no")
    )
    choices = {
        "walk": WALKS,
        "only": FILTERS,
        "stop": STOPS,
        "skip": SKIPS,
        "before_drop": BEFORE_DROPS,
        "lock": LOCKS,
    }
    for name, allowed in {**choices, "reload_roots": RELOADS}.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ScenarioError(
                f"zap plan {name} is {cut(given[name])}; expected one of {', '.join(allowed)}"
            )
    given["restart"] = parse_restart(given.get("restart", ()))
    given["offer"] = parse_offer(given.get("offer", "never"))
    bump = hashable(given.get("bump_valid_gen", False))
    if bump not in (True, False, "yes", "no", "true", "false"):
        raise ScenarioError(f"zap plan bump_valid_gen is {cut(bump)}; expected true or false")
    given["bump_valid_gen"] = bump in (True, "yes", "true")
    return said_in_full(ZapPlan(**given))


def said_in_full(plan: ZapPlan) -> ZapPlan:
    """Refuse a plan with a field that decides nothing in its walk; a slot's walk has one way to offer the lock."""
    if plan.lock == "shared" and plan.walk != "roots":
        raise ScenarioError("zap plan lock=shared goes with walk=roots: shadow pages need the exclusive lock")
    if plan.walk == "roots":
        return said_of_roots(plan)
    if plan.walk == "index" and plan.only != "mmio_cached":
        raise ScenarioError("zap plan walk=index goes with only=mmio_cached: the index lists no other pages")
    if plan.walk != "slot":
        return plan
    if plan.only not in ("slot", "indirect"):
        raise ScenarioError("zap plan walk=slot goes with only=slot or only=indirect")
    for name, says in (("stop", plan.stop), ("skip", plan.skip), ("restart", "+".join(sorted(plan.restart)))):
        if says not in ("none", ""):
            raise ScenarioError(f"zap plan walk=slot has no list, so {name}={says} would decide nothing")
    if plan.batch is not None:
        raise ScenarioError(
            f"zap plan walk=slot polls for each gfn, so offer={plan.offer} would decide nothing"
        )
    return replace(plan, offer="each_page") if plan.offer == "when_wanted" else plan


def said_of_roots(plan: ZapPlan) -> ZapPlan:
    """Refuse what a walk over the TDP MMU's roots does not do: it has no list, and its tables have no marks."""
    if plan.only not in ("obsolete", "all", "slot"):
        raise ScenarioError(
            f"zap plan walk=roots finds no mark for only={plan.only} on a table of the TDP MMU"
        )
    for name, says in (("stop", plan.stop), ("skip", plan.skip), ("restart", "+".join(sorted(plan.restart)))):
        if says not in ("none", ""):
            raise ScenarioError(f"zap plan walk=roots has no list, so {name}={says} would decide nothing")
    if plan.offer not in ("never", "when_wanted"):
        raise ScenarioError(
            f"zap plan walk=roots polls at each entry, so offer={plan.offer} would decide nothing"
        )
    if plan.lock == "shared" and plan.only != "obsolete":
        raise ScenarioError(
            f"zap plan walk=roots with lock=shared goes with only=obsolete, not only={plan.only}"
        )
    if plan.before_drop == "commit" and plan.only != "slot":
        raise ScenarioError(
            "zap plan walk=roots flushes before a drop only for a slot; zapped roots owe no flush"
        )
    return plan


def hashable(value: object) -> object:
    return value if isinstance(value, str | bool | int) else repr(value)


def parse_restart(value: object) -> frozenset[str]:
    """A list of rules, or their text form `on_nonzero+on_lock_drop`."""
    rules: object = value.split("+") if isinstance(value, str) else value
    if not isinstance(rules, list | tuple | set | frozenset):
        raise ScenarioError(f"zap plan restart is {cut(value)}; expected a list of {', '.join(RESTARTS)}")
    named = [rule for rule in rules if rule not in ("", "never")]
    if any(rule not in RESTARTS for rule in named):
        raise ScenarioError(f"zap plan restart is {cut(value)}; expected a list of {', '.join(RESTARTS)}")
    return frozenset(named)


def parse_offer(value: object) -> str:
    """never, each_page, when_wanted, batch:N or the pair (batch, N)."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == "batch":
        value = f"batch:{value[1]}"
    if value in ("never", "each_page", "when_wanted") or is_batch(value):
        return str(value)
    raise ScenarioError(f"zap plan offer is {cut(value)}; expected never, each_page, when_wanted or batch:N")


def is_batch(offer: object) -> bool:
    return (
        isinstance(offer, str) and offer.startswith("batch:") and offer[6:].isdecimal() and int(offer[6:]) > 0
    )


def parse_plans(given: Mapping[str, object] | None, defaults: Mapping[str, str]) -> dict[str, ZapPlan]:
    """The plan for each role, the kernel's own where none is given."""
    given = given or {}
    for role in given:
        if role not in ROLES:
            raise ScenarioError(
                f"no zap plan is configured for {cut(role)}; expected one of {', '.join(ROLES)}"
            )
    plans = {role: parse_plan(given.get(role, defaults[role])) for role in ROLES}
    for role, plan in plans.items():
        if plan.only == "gfn_range" or (plan.needs_slot and role != "slot_removal"):
            raise ScenarioError(f"the {role} plan has no slot or gfn range to work on")
    return plans
