"""The explainer of a trace's own host: what the user gave, the host facts, what the trace shows, an assumption, in
this order of trust.

Owns: the order, and the sentences that say which it was. What was not given is reported as inferred or assumed; a
kernel that none of them names is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.analysis.explain import Explainer, explainer
from kvm_mmu.trace.text.host import family_of, kernel_name, kernel_of
from kvm_mmu.trace.text.recognise import Origin, origin
from kvm_mmu.trace.text.wording import wording_of

_PHYS_BITS = 46


def host_explainer(
    lines: Iterable[str], facts: Mapping[str, object], given: Mapping[str, object], name: str
) -> tuple[Explainer, Iterator[str], list[str]]:
    """The explainer, all the lines, and what to tell about the choice.

    Args:
        facts: host facts, possibly none. given: what the user said; None where nothing.

    Raises:
        TraceError: the kernel is not known, or no layout of it.
    """
    found, stream = origin(lines)
    notes: list[str] = []
    kernel = _kernel(found, facts, given, name, notes)
    family = given.get("family") or _said_family(found, facts)
    if family is None:
        family = found.family or "npt"
        how, where = ("inferred", "shown by") if found.family else ("assumed", "not in")
        notes.append(f"{how}: family = {family} ({where} the trace)")
    phys_bits, l1tf = _width(found, facts, given, kernel, str(family), notes)
    return explainer(kernel, phys_bits, str(family), l1tf), stream, notes


def _said_family(found: Origin, facts: Mapping[str, object]) -> str | None:
    """The masks that the facts tell of; whether EPT has accessed/dirty bits the trace may show, where they do not."""
    if facts.get("mmu") == "ept" and "family" not in facts and str(found.family).startswith("ept"):
        return found.family
    return family_of(facts) if facts.get("mmu") or facts.get("family") else None


def _width(
    found: Origin,
    facts: Mapping[str, object],
    given: Mapping[str, object],
    kernel: str,
    family: str,
    notes: list[str],
) -> tuple[int, bool]:
    """Physical width and L1TF mask: as said, else as the MMIO SPTEs of the trace show, else as most hosts have it."""
    said = {key: _number(given.get(key), facts.get(key)) for key in ("phys_bits", "l1tf_mask")}
    is_always = bool(explainer(kernel, family=family).codec.profile.facts.l1tf)
    l1tf_masks = (1,) if is_always else (0, 1)  # up to v5.4 every CPU has it
    possible = [
        {"phys_bits": phys_bits, "l1tf_mask": l1tf}
        for phys_bits in (
            (_PHYS_BITS, *range(52, 35, -1)) if said["phys_bits"] is None else (said["phys_bits"],)
        )
        for l1tf in (l1tf_masks if said["l1tf_mask"] is None else (said["l1tf_mask"],))
    ]
    fits = [
        _fits(explainer(kernel, host["phys_bits"], family, bool(host["l1tf_mask"])), found)
        for host in possible
    ]
    shown = [host for host, fit in zip(possible, fits, strict=True) if fit and fit == max(fits)]
    chosen = (shown or possible)[0]
    for key, value in chosen.items():
        if said[key] is None:
            is_shown = shown and all(host[key] == value for host in shown)
            why = (
                "inferred: {} = {} (shown by the MMIO SPTEs)"
                if is_shown
                else "assumed: {} = {} (not in the trace)"
            )
            notes.append(why.format(key, value))
    return chosen["phys_bits"], bool(chosen["l1tf_mask"])


def _fits(explain: Explainer, found: Origin) -> int:
    """How many of the trace's MMIO SPTEs are of a gfn that was marked; 0 when one cannot be of this host at all."""
    if not all(explain.is_mmio_spte(spte) for spte in found.mmio_sptes):
        return 0
    return sum(explain.codec.decode_mmio(spte)["gfn"] in found.mmio_gfns for spte in found.mmio_sptes)


def _kernel(
    found: Origin, facts: Mapping[str, object], given: Mapping[str, object], name: str, notes: list[str]
) -> str:
    kernel = kernel_name(str(given["kernel"])) if given.get("kernel") else kernel_of(facts)
    if kernel:
        if found.kernels and not any(wording_of(kernel) == wording_of(other) for other in found.kernels):
            notes.append(f"the wording of {name} is that of {found.said}, not of {kernel}")
        return kernel
    if found.kernel is None:
        by_wording = f"; by its wording {found.said}" if found.kernels else ""
        raise TraceError(f"{name}: which kernel made this trace is not known{by_wording}: give --kernel")
    notes.append(
        f"inferred: kernel = {found.kernel} (by its wording: {found.said}, or another that words alike)"
    )
    return found.kernel


def _number(*values: object) -> int | None:
    return next((int(value) for value in values if isinstance(value, int)), None)
