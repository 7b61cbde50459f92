"""The whole ring of a generation policy: every generation it can have, each held against every later one.

An MMIO SPTE keeps some bits of the generation it was made under and is believed while they equal the present ones. A
policy is safe if between two updates that look alike to such an entry there is always one that zaps all MMIO SPTEs.
That is decided here for all pairs at once, by arithmetic over the ring: no page table takes part. Encoding and decoding
are the core's own, with the policy's layout.
Source: docs/kernel-facts.md, mmio.gen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationPolicy
from kvm_mmu.machine.numbers import flag, shown
from kvm_mmu.machine.profiles import KernelProfile, kernel_profile
from kvm_mmu.terminal import folded
from kvm_mmu.types import KVM_ADDRESS_SPACE_NUM
from kvm_mmu.words.codec import Codec

U64 = npt.NDArray[np.uint64]

#: Generations that are stepped through without `long=True`.
LONGEST = 1 << 24
# How many more bits than the compared ones a wrap may depend on without `long`.
_MORE_BITS = 2

#: Every rule with what it says. A policy that breaks one of `SAFETY` can make RAM look like MMIO; `ring_spaces` is
#: unsafe where a vCPU's MMIO cache goes by the generation of another space than its own.
RULES: dict[str, str] = {
    "ring_repeat": "an MMIO SPTE is accepted by a later generation only if it was not zapped in between",
    "ring_inflight": "what was marked in an update is not accepted after it, and nothing is accepted in it",
    "ring_window": "what was marked between two publications of one update is not accepted after the second",
    "ring_order": "each update publishes its generation once and looks for a wrap once",
    "ring_layout": "the fields keep clear of gfn, access and mask, so that all three come back",
    "ring_spaces": "the two address spaces never have the same generation",
    "ring_useful": "an MMIO SPTE is accepted right after it was marked",
}
SAFETY = ("ring_repeat", "ring_inflight", "ring_window", "ring_order", "ring_layout")


@dataclass(frozen=True, slots=True)
class RingFinding:
    """A rule that a policy breaks.

    Attributes:
        rule: its name in `RULES`.
        as_id: the address space, 0 or 1; None: both.
        count: how many generations break it.
        of: how many there are.
        text: the first of them in words.
        is_unsafe: RAM can be taken for MMIO by it; else it costs faults at most.
    """

    rule: str
    as_id: int | None
    count: int
    of: int
    text: str
    is_unsafe: bool


@dataclass(frozen=True, slots=True)
class RingOfSpace:
    """The generations of one address space.

    Attributes:
        as_id: 0 or 1.
        before: updates before the ring is reached, 0 for a policy that only adds.
        period: updates until generations and wraps repeat.
        first_wrap: the first update at which a wrap was detected; None: never.
        accepted: of the generations, how many accept an MMIO SPTE that was marked right under them.
        unsafe: of the generations, how many leave an MMIO SPTE that a later one accepts without a zap in between.
        distance: the fewest updates after which that happens; None: never.
    """

    as_id: int
    before: int
    period: int
    first_wrap: int | None
    accepted: int
    unsafe: int
    distance: int | None


@dataclass(frozen=True, slots=True)
class Ring:
    """What the whole ring of a policy says.

    Attributes:
        policy: its name.
        start: the name of its start.
        width: how many bits are compared.
        spaces: a row for each address space.
        findings: the rules that are broken, the unsafe ones first.
    """

    policy: str
    start: str
    width: int
    spaces: tuple[RingOfSpace, ...]
    findings: tuple[RingFinding, ...]

    @property
    def is_safe(self) -> bool:
        """True if no generation of the ring can make RAM look like MMIO."""
        return not any(finding.is_unsafe for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Turn it into plain data.

        Returns:
            The attributes, and `safe`.
        """
        return {**asdict(self), "safe": self.is_safe}

    def __str__(self) -> str:
        lines = [f"generation policy {self.policy}: {self.width} bits compared, starts at {self.start}"]
        lines.append(f"  {'space':<7}{'period':>10}{'first wrap':>12}{'accepted':>20}  {'unsafe':>16}")
        for space in self.spaces:
            size = space.before + space.period
            first = "never" if space.first_wrap is None else f"{space.first_wrap:,}"
            unsafe = f"{space.unsafe:,} of {size:,}" if space.unsafe else "none"
            accepted = "all" if space.accepted == size else f"{space.accepted:,} of {size:,}"
            lines.append(f"  {space.as_id:<7}{space.period:>10,}{first:>12}{accepted:>20}  {unsafe:>16}")
        for finding in self.findings:
            where = "" if finding.as_id is None else f", space {finding.as_id}"
            kind = "unsafe" if finding.is_unsafe else "harmless"
            lines.append(folded(f"  {finding.rule}{where}: {kind}: {finding.text}", "    "))
        lines.append(f"{'safe' if self.is_safe else 'unsafe'}: every generation held against every later one")
        return "\n".join(lines)


def ring(
    policy: str | KernelProfile | GenerationPolicy,
    *,
    kernel: str | KernelProfile | None = None,
    long: bool = False,
) -> Ring:
    """Judge a generation policy over its whole ring, in both address spaces.

    Args:
        policy: a kernel's name, whose policy it is, or a policy of one's own.
        kernel: whose MMIO SPTEs carry the policy's fields; None: the policy's kernel, else v6.12.
        long: step through more than `LONGEST` generations if the policy has them.

    Returns:
        The rules that it breaks, and the figures of each space.

    Raises:
        UsageError: no policy; a layout that the kernel's MMIO SPTEs have no room for; a ring that is too long, or a
            policy whose updates do not depend on the compared bits alone.
    """
    if isinstance(policy, str | KernelProfile):
        profile = kernel_profile(policy)
        kernel = kernel or profile
        policy = profile.generation()
    if not isinstance(policy, GenerationPolicy):
        raise UsageError(f"policy {shown(policy)}: expected a kernel's name or a GenerationPolicy")
    codec = Codec(kernel or "v6.12", "npt", generation=policy)
    long = flag("long", long)
    laps = [_lap(policy, as_id, long) for as_id in range(KVM_ADDRESS_SPACE_NUM)]
    spaces, findings = [], []
    for lap in laps:
        space, found = _space(policy, codec, lap)
        spaces.append(space)
        findings += found
    findings += _order(policy)
    findings += _spaces_apart(policy, laps, codec.profile.facts["mmio_cache_space"] == "zero")
    findings.sort(key=lambda finding: not finding.is_unsafe)
    return Ring(policy.name, policy.start_name, policy.layout.width, tuple(spaces), tuple(findings))


@dataclass(frozen=True, slots=True)
class _Lap:
    """Every generation of a space up to the first that repeats, and which of them is a wrap.

    `installed[k]` is the generation after k updates; `flying[k]` the value visible in the update before it, `wraps[k]`
    whether that update was a wrap. The last one repeats the one at `before`.
    """

    as_id: int
    before: int
    installed: U64
    flying: U64
    wraps: npt.NDArray[np.bool_]


def _lap(policy: GenerationPolicy, as_id: int, long: bool) -> _Lap:
    """The shortest lap after which everything comes again: by the compared bits, or by as many more as it takes."""
    most = 63 if long else LONGEST.bit_length() - 1
    width = policy.layout.width
    if width > most:
        raise UsageError(
            f"generation policy {policy.name}: {width} bits, up to {1 << width:,} generations; "
            f"more than {LONGEST:,} take minutes: ask for them with long"
        )
    last = most if long else min(width + _MORE_BITS, most)
    for bits in range(width, last + 1):
        lap = _lap_by(policy, as_id, (1 << bits) - 1)
        if lap is not None:
            return lap
    raise UsageError(
        f"generation policy {policy.name}: its updates do not repeat with the lowest {last} bits of the generation; "
        "a longer ring takes minutes: ask for it with long"
    )


def _lap_by(policy: GenerationPolicy, as_id: int, mask: int) -> _Lap | None:
    """The lap after which the masked generation repeats; None if the lap after it is another one."""
    installed, flying, wraps = [policy.initial(as_id)], [policy.initial(as_id)], [False]
    seen = {installed[0] & mask: 0}
    for generation, visible in _updates(policy, installed[0]):
        installed.append(generation)
        flying.append(visible)
        wraps.append(bool(policy.is_wrap(generation)))
        key = generation & mask
        if key in seen:
            break
        seen[key] = len(installed) - 1
    before = seen[installed[-1] & mask]
    again = zip(range(before + 1, len(installed)), _updates(policy, installed[-1]), strict=False)
    for k, (generation, _) in again:
        if (generation ^ installed[k]) & mask or bool(policy.is_wrap(generation)) != wraps[k]:
            return None
    return _Lap(
        as_id,
        before,
        np.array(installed, np.uint64),
        np.array(flying, np.uint64),
        np.array(wraps, np.bool_),
    )


def _updates(policy: GenerationPolicy, generation: int) -> Iterator[tuple[int, int]]:
    while True:
        visible = policy.begin(generation)
        generation = policy.next(visible)
        for name, value in (("begin", visible), ("next", generation)):
            if not isinstance(value, int) or value < 0 or value >> 64:
                raise UsageError(
                    f"generation policy {policy.name}: {name} gave {shown(value)}; expected an unsigned 64-bit value"
                )
        yield generation, visible


def _marked(codec: Codec, generations: U64) -> U64:
    """What an MMIO SPTE made under each generation says that its generation is."""
    zeros = np.zeros(len(generations), np.uint64)
    return codec.decode_mmio_sptes(codec.make_mmio_sptes(zeros, zeros, generations)).mmio_gen


def _space(policy: GenerationPolicy, codec: Codec, lap: _Lap) -> tuple[RingOfSpace, list[RingFinding]]:
    mask = np.uint64((1 << policy.layout.width) - 1)
    size, before = len(lap.installed) - 1, lap.before
    period = size - before
    kept = lap.installed[:size] & mask
    marked = _marked(codec, lap.installed[:size])
    # Wraps among the updates up to each one, over the ring's first lap and one more.
    wraps = np.concatenate([lap.wraps, lap.wraps[before + 1 :]])
    wraps_up_to = np.cumsum(wraps)
    # The next update that accepts each mark: the first place after it, in two laps, that has the generation it says.
    now = np.arange(size)
    twice = np.concatenate([kept, kept[before:]]).astype(np.int64)
    places = np.sort(twice * len(twice) + np.arange(len(twice)))
    asked = marked.astype(np.int64) * len(twice) + now
    met = places[np.minimum(np.searchsorted(places, asked, side="right"), len(places) - 1)]
    is_met = (met // len(twice) == marked.astype(np.int64)) & (met > asked)
    later = np.where(is_met, met % len(twice), now)
    unsafe = is_met & (wraps_up_to[later] == wraps_up_to[now])
    fresh = int(np.count_nonzero(marked == kept))
    found: list[RingFinding] = []

    def finding(rule: str, where: npt.NDArray[np.bool_], text: Callable[[int], str]) -> None:
        if where.any():
            text_of_first = text(int(np.argmax(where)))
            count = int(np.count_nonzero(where))
            found.append(RingFinding(rule, lap.as_id, count, len(where), text_of_first, rule in SAFETY))

    finding(
        "ring_repeat",
        unsafe,
        lambda k: (
            f"marked under {kept[k]:#x}, accepted again {later[k] - k:,} updates later, no zap in between "
            f"({int(np.count_nonzero(unsafe)):,} of {size:,} generations)"
        ),
    )
    flying, after = lap.flying[1:], lap.installed[1:] & mask
    in_progress = np.uint64(policy.layout.in_progress)
    is_told = ((flying & in_progress) != 0) & ((lap.installed[1:] & in_progress) == 0)
    refused = is_told & policy.layout.refuse_in_progress
    marked_flying = _marked(codec, flying)
    finding(
        "ring_inflight",
        ~refused & ((marked_flying == after) | np.isin(flying & mask, marked)),
        lambda k: (
            f"the update from {lap.installed[k]:#x} to {lap.installed[k + 1]:#x} shows {flying[k]:#x} in flight"
        ),
    )
    finding(
        "ring_window",
        marked == after,
        lambda k: f"marked under {kept[k]:#x}, accepted under {after[k]:#x}, the next one",
    )
    finding("ring_layout", _is_mixed(codec, lap.installed[:size]), lambda k: f"generation {kept[k]:#x}")
    finding(
        "ring_useful",
        marked != kept,
        lambda k: (
            f"generation {kept[k]:#x} is read back as {marked[k]:#x}: {fresh:,} of {size:,} are ever accepted"
        ),
    )
    wrapped = np.flatnonzero(wraps)
    distance = int((later - now)[unsafe].min()) if unsafe.any() else None
    first = int(wrapped[0]) if len(wrapped) else None
    return RingOfSpace(lap.as_id, before, period, first, fresh, int(unsafe.sum()), distance), found


def _is_mixed(codec: Codec, generations: U64) -> npt.NDArray[np.bool_]:
    """Where an MMIO SPTE gives back another gfn or access than it was made with, or is none."""
    bad = np.zeros(len(generations), np.bool_)
    top = (1 << codec.phys_bits - 12) - 1
    for gfn, access in ((0, 0), (top, 7), (top & 0x5555_5555_5555, 5), (top & 0xAAAA_AAAA_AAAA, 2)):
        gfns = np.full(len(generations), gfn, np.uint64)
        accesses = np.full(len(generations), access, np.uint64)
        back = codec.decode_mmio_sptes(codec.make_mmio_sptes(gfns, accesses, generations))
        bad |= ~back.is_mmio | (back.gfn != gfns)
        bad |= (back.access & np.uint64(0b110)) != (accesses & np.uint64(0b110))
    return bad


def _order(policy: GenerationPolicy) -> list[RingFinding]:
    steps: list[str] = []
    policy.conclude(
        policy.next(policy.begin(policy.initial(0))),
        lambda _: steps.append("publish"),
        lambda _: steps.append("check"),
    )
    if sorted(steps) == ["check", "publish"]:
        return []
    return [RingFinding("ring_order", None, 1, 1, f"an update does {', '.join(steps) or 'nothing'}", True)]


def _spaces_apart(policy: GenerationPolicy, laps: list[_Lap], is_compared_across: bool) -> list[RingFinding]:
    mask = np.uint64((1 << policy.layout.width) - 1)
    first, second = (lap.installed[:-1] & mask for lap in laps)
    both = np.isin(first, second)
    if not both.any():
        return []
    count = int(np.count_nonzero(both))
    value = int(first[int(np.argmax(both))])
    return [
        RingFinding(
            "ring_spaces",
            None,
            count,
            len(first),
            f"{count:,} generations are in both, {value:#x} the first"
            + (", and the vCPU's MMIO cache goes by space 0" if is_compared_across else ""),
            is_compared_across,
        )
    ]
