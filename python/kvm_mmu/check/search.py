"""Run a search: exhaustive, breadth first, or random; say what was covered, and what was found."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvm_mmu import _core
from kvm_mmu.check.engine import Prepared, Subject, prepare
from kvm_mmu.check.worlds import World
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.view.whole_file import write_whole

#: What each property needs to be about: a count of the search.
PREMISE = {
    "stale_ram": "leaves",
    "mmio_as_ram": "leaves",
    "host_taken": "leaves",
    "leaf_gfn": "leaves",
    "nx_exec": "leaves",
    "readonly_write": "leaves",
    "stale_mmio": "mmio",
    "mmio_cache_space": "mmio",
    "mmio_place": "mmio",
    "lost_dirty": "harvests",
    "unlogged_write": "harvests",
    "tracked_write": "tracked",
    "tracked_all_spaces": "tracked",
    "freed_reachable": "freed",
    "debt_overdue": "debts",
    "debt_shared": "debts",
    "child_expected": "links",
    "no_page_under_invalid": "links",
    "obsolete_unused": "roots",
    "root_role": "roots",
    "rooted_kept": "roots",
}


@dataclass(frozen=True)
class Finding:
    """A property that does not hold, and how it was come to.

    Args:
        name: the property's name.
        detail: where and how.
        owner: the operation that is to blame ("" where no one is).
        path: choices from the beginning: number of an operation (255: what waits goes on) and the poll at which the
            lock is dropped (0: never).
        is_shortest: no shorter sequence in this world breaks a property.
    """

    name: str
    detail: str
    owner: str
    path: tuple[tuple[int, int], ...]
    is_shortest: bool = False

    @property
    def operations(self) -> int:
        """How many operations it takes."""
        return sum(1 for action, _ in self.path if action != 255)


@dataclass(frozen=True)
class Result:
    """What a search did and found.

    Args:
        prepared: what was searched.
        mode: exhaustive or random.
        states: different states (random: kinds of states).
        transitions: operations applied and checked (random: steps).
        depth: complete levels (random: rounds).
        closed: no state is left: nothing was bounded inside this world.
        complete: the bound that was asked for is exhausted.
        found: violations, the shortest first.
        goals: goals and the length of the shortest way to each (None: not met).
        premises: how much there was that could have broken each kind of property.
        seconds: time it took.
    """

    prepared: Prepared
    mode: str
    states: int
    transitions: int
    depth: int
    closed: bool
    complete: bool
    found: tuple[Finding, ...]
    goals: Mapping[str, int | None]
    premises: Mapping[str, int]
    seconds: float
    is_interrupted: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def missed(self) -> tuple[str, ...]:
        """Goals of the world that were not met."""
        never = {
            f"the generation wraps in space {as_id}" for as_id in range(2) if not wraps(self.prepared, as_id)
        }
        return tuple(
            goal for goal in self.prepared.world.goals if self.goals.get(goal) is None and goal not in never
        )

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Properties that nothing in the search could have broken."""
        return tuple(name for name, premise in PREMISE.items() if not self.premises.get(premise))

    @property
    def verdict(self) -> str:
        """violation, sound, or not judged."""
        if self.found:
            return "violation"
        is_whole = self.complete and not self.missed
        return "sound" if is_whole else "not judged"

    @property
    def code(self) -> int:
        """The exit code: 0 sound, 1 a violation, 3 not judged."""
        return {"violation": 1, "sound": 0, "not judged": 3}[self.verdict]


def wraps(prepared: Prepared, as_id: int) -> bool:
    """Whether the policy ever finds a wrap in an address space, on the small ring."""
    policy = prepared.policy
    generation = policy.initial(as_id)
    for _ in range(2 << policy.layout.width):
        generation = policy.next(policy.begin(generation))
        if policy.is_wrap(generation):
            return True
    return False


#: What an exhaustive search says before its first level.
_NOTHING: Mapping[str, Any] = {
    "states": 1,
    "transitions": 0,
    "depth": 0,
    "closed": False,
    "over": False,
    "cut": False,
    "found": [],
    "goals": [],
    "premises": {},
}


def _findings(rows: list[tuple[str, str, str, list[tuple[int, int]]]], shortest: bool) -> tuple[Finding, ...]:
    return tuple(
        Finding(name, detail, owner, tuple((action, poll) for action, poll in path), shortest)
        for name, detail, owner, path in rows
    )


def check(
    subject: Subject,
    world: World,
    *,
    depth: int | None = None,
    states: int | None = None,
    steps: int | None = None,
    seconds: float = 1e9,
    seed: int = 1,
    jobs: int = 1,
    keep: bool = False,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Search a world under a kernel.

    Args:
        subject: kernel, plan and policy.
        world: what may happen.
        depth: most operations; None: until no state is new.
        states: end after the level that reaches so many states.
        steps: search at random, so many steps; None: exhaustively.
        seconds: end after so long, with what is complete.
        seed: of the random search.
        jobs: threads; the result is the same on any number.
        keep: go on after a violation, to one of each property.
        folder: where a search is kept, to go on with; one that is there is gone on with.
        progress: called with a line now and then.

    Returns:
        What was done and found.

    Raises:
        UsageError: the world or the folder does not fit.
    """
    prepared = prepare(subject, world)
    mode = "exhaustive" if steps is None else "random"
    journal = None if folder is None else _Journal(Path(folder), prepared, mode, seed)
    begun = time.monotonic()
    if steps is not None:
        return _random(prepared, steps, seed, jobs, keep, seconds, journal, progress, begun)
    search = prepared.search
    if journal is not None:
        journal.load_levels(search, keep)
    interrupted = False
    complete = False

    def now() -> dict[str, Any]:
        return search.so_far() if journal is None else journal.with_past(search.so_far())

    so_far: dict[str, Any] = now() or dict(_NOTHING)
    try:
        while True:
            is_found = bool(so_far["found"]) and not keep
            if so_far["over"] or is_found or (depth is not None and so_far["depth"] >= depth):
                complete = True
                break
            if states is not None and so_far["states"] >= states:
                break
            left = seconds - (time.monotonic() - begun)
            if left <= 0 or not search.level(jobs, left, keep):
                break
            so_far = now()
            if journal is not None:
                journal.save_level(search, so_far)
            if progress is not None:
                progress(f"{world.name} depth {so_far['depth']}: {so_far['states']:,} states")
    except KeyboardInterrupt:
        interrupted = True
    so_far = now() or so_far
    closed = bool(so_far["closed"]) and not so_far["cut"] and not interrupted
    return Result(
        prepared,
        "exhaustive",
        so_far["states"],
        so_far["transitions"],
        so_far["depth"],
        closed,
        (complete or closed) and not so_far["cut"],
        _findings(so_far["found"], True),
        dict(so_far["goals"]),
        so_far["premises"],
        time.monotonic() - begun,
        interrupted,
    )


def _random(
    prepared: Prepared,
    steps: int,
    seed: int,
    jobs: int,
    keep: bool,
    seconds: float,
    journal: _Journal | None,
    progress: Callable[[str], None] | None,
    begun: float,
) -> Result:
    search = prepared.search
    if journal is not None:
        journal.load_rounds(search)
    so_far: dict[str, Any] = {}
    interrupted = False
    try:
        while True:
            if journal is not None and journal.found and not keep:
                so_far = so_far or journal.with_past({"steps": steps, "found": []})
                break
            so_far = search.random_round(seed, jobs, keep)
            if journal is not None:
                so_far = journal.with_past(so_far)
            if journal is not None and so_far["round"] % 64 == 0:
                journal.save_round(search, so_far)
            if so_far["steps"] >= steps or (so_far["found"] and not keep):
                break
            if time.monotonic() - begun > seconds:
                break
            if progress is not None and so_far["round"] % 16 == 0:
                progress(
                    f"{prepared.world.name} {so_far['steps']:,} steps, {so_far['coverage']:,} kinds of states"
                )
    except KeyboardInterrupt:
        interrupted = True
    if journal is not None and "round" in so_far:
        journal.save_round(search, so_far)
    return Result(
        prepared,
        "random",
        so_far.get("coverage", 0),
        so_far.get("steps", 0),
        so_far.get("round", 0),
        False,
        so_far.get("steps", 0) >= steps,
        _findings(so_far.get("found", []), False),
        {goal: 0 if met else None for goal, met in so_far.get("goals", [])},
        so_far.get("premises", {}),
        time.monotonic() - begun,
        interrupted,
    )


class _Journal:
    """A search kept in a folder: a header that must fit, and what is complete."""

    def __init__(self, folder: Path, prepared: Prepared, mode: str, seed: int) -> None:
        self._folder = folder
        world = asdict(prepared.world)
        about = {
            "format": 1,
            "version": _core.VERSION,
            "mode": mode,
            "kernel": prepared.subject.kernel,
            "plans": {event: str(plan) for event, plan in prepared.plans.items()},
            "policy": type(prepared.policy).__name__,
            "world": world,
            "constants": dict(prepared.constants),
            "seed": seed if mode == "random" else None,
        }
        self._header = json.dumps(about, sort_keys=True)
        self._past: dict[str, Any] = {"goals": [], "premises": {}, "found": []}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "header.json"
            if file.exists():
                if file.read_text(encoding="utf-8") != self._header:
                    raise UsageError(
                        f"--resume {shown(str(folder))}: it holds another search: expected the same kernel,"
                        " plans, policy, world, constants and seed"
                    )
            else:
                write_whole(file, self._header)
        except OSError as error:
            raise UsageError(f"--resume {shown(str(folder))}: {error}") from None

    @property
    def found(self) -> bool:
        """Whether what was done before found a violation."""
        return bool(self._past["found"])

    def with_past(self, so_far: Mapping[str, Any]) -> dict[str, Any]:
        """What a search says, with what was met, counted and found before it was gone on with."""
        past = self._past
        if not so_far:
            return {}
        met = {goal: how for goal, how in past["goals"] if how is not None and how is not False}
        goals = [(goal, met.get(goal, how)) for goal, how in so_far.get("goals", past["goals"])]
        counts = dict(past["premises"])
        for name, count in so_far.get("premises", {}).items():
            counts[name] = counts.get(name, 0) + count
        names = {row[0] for row in past["found"]}
        found = [*past["found"], *(row for row in so_far["found"] if row[0] not in names)]
        return {**so_far, "goals": goals, "premises": counts, "found": found}

    def _remember(self, kept: Mapping[str, Any]) -> None:
        self._past = {key: kept.get(key, self._past[key]) for key in self._past}

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self._folder / name
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError) as error:
            raise UsageError(f"--resume {shown(str(self._folder))}: {file.name}: {error}") from None

    def load_levels(self, search: _core.Search, keep: bool) -> None:
        """Go on from the last complete level."""
        level = self._read("level.json")
        if level is None:
            return
        file = self._folder / str(level["states"])
        try:
            packed = file.read_bytes()
        except OSError as error:
            raise UsageError(f"--resume {shown(str(self._folder))}: {file.name}: {error}") from None
        if hashlib.sha256(packed).hexdigest() != level["sha256"]:
            raise UsageError(
                f"--resume {shown(str(self._folder))}: {file.name}: it is not the file that was written"
            )
        if not search.load(packed, level["first"], level["depth"], level["transitions"], keep):
            raise UsageError(f"--resume {shown(str(file))}: its states are not those of this world")
        self._remember(level)

    def save_level(self, search: _core.Search, so_far: Mapping[str, Any]) -> None:
        """Keep a complete level."""
        packed, first = search.saved()
        name = f"states-{so_far['depth']}.bin"
        before = self._read("level.json")
        write_whole(self._folder / name, packed)
        level = {
            "depth": so_far["depth"],
            "transitions": so_far["transitions"],
            "first": first,
            "states": name,
            "sha256": hashlib.sha256(packed).hexdigest(),
            **{key: so_far[key] for key in self._past},
        }
        write_whole(self._folder / "level.json", json.dumps(level))
        if before is not None and before["states"] != name:
            (self._folder / str(before["states"])).unlink(missing_ok=True)

    def load_rounds(self, search: _core.Search) -> None:
        """Go on from the last complete round."""
        rounds = self._read("rounds.json")
        if rounds is not None:
            corpus = [[(action, poll) for action, poll in prefix] for prefix in rounds["corpus"]]
            search.resume_random(rounds["seed"], rounds["round"], rounds["steps"], corpus)
            self._remember(rounds)

    def save_round(self, search: _core.Search, so_far: Mapping[str, Any]) -> None:
        """Keep the complete rounds."""
        seed = json.loads(self._header)["seed"]
        rounds = {
            "seed": seed,
            "round": so_far["round"],
            "steps": so_far["steps"],
            "corpus": search.corpus(),
            **{key: so_far[key] for key in self._past},
        }
        write_whole(self._folder / "rounds.json", json.dumps(rounds))
