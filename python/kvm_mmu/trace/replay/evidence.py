"""Which kernel, MMU and host is held against what: vector files that are equal, recordings that replay.

Owns: the table of kernel x MMU x host x evidence that the documentation holds. It is made of the rows of the core, of
a list of equal vector files (`variant/name.family[.tdpN].jsonl.xz core reference`, a line a file) and of the counts
that are kept beside recordings; nothing is run for it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.machine.profiles import KernelProfile, kernel_profile, kernels
from kvm_mmu.trace.replay.fidelity import kept, recordings_in
from kvm_mmu.trace.text.host import family_of

#: The MMUs, and the hosts by the masks of their entries.
MMUS = {"direct": "shadow pages, direct", "tdp": "TDP MMU", "shadow": "shadow pages, guest's tables"}
HOSTS = {
    "npt": "AMD, NPT",
    "ept_ad": "Intel, EPT",
    "ept_noad": "Intel, EPT without A/D bits",
    "shadow": "no two-dimensional paging",
}
_VARIANTS = {"seed": "v5.0-seed"}
_VECTOR = re.compile(r"([^/]+)/.*?\.(npt|ept_ad|ept_noad|shadow)(?:\.tdp([01]))?\.jsonl(?:\.xz)?$")
_BACKENDS = {"core", "reference"}
RULES_ONLY, NONE = "rules only", "-"


@dataclass
class Evidence:
    """What holds one kernel with one MMU on one host.

    Args:
        vectors: equal vector files by who is equal: `core`, `reference` or `both`.
        recordings: recordings that replay equal.
        outputs: their outputs.
    """

    vectors: Counter[str] = field(default_factory=Counter)
    recordings: int = 0
    outputs: int = 0

    def __str__(self) -> str:
        parts = [
            f"{count} vectors" + ("" if who == "both" else f" ({who})")
            for who, count in sorted(self.vectors.items())
        ]
        if self.recordings:
            plural = "" if self.recordings == 1 else "s"
            parts.append(f"{self.recordings} recording{plural} ({self.outputs:,} outputs)")
        return ", ".join(parts) or RULES_ONLY


#: Kernel, MMU, host.
Place = tuple[str, str, str]
#: Guests that do not page: without two-dimensional paging they are mapped directly.
_FLAT = ("flat", "real")


def evidence(vectors: Iterable[str], recordings: Path) -> dict[Place, Evidence]:
    """Collect what there is.

    Args:
        vectors: the lines of the list of vector files.
        recordings: folders KERNEL/SCENARIO with recordings and their kept counts.

    Returns:
        Place to evidence; places without any are not there.

    Raises:
        TraceError: a line or a folder that cannot be read.
    """
    found: dict[Place, Evidence] = {}
    for line in vectors:
        if not line.strip() or line.startswith("#"):
            continue
        name, *who = line.split()
        match = _VECTOR.fullmatch(name)
        if match is None or not who or not set(who) <= _BACKENDS:
            raise TraceError(f"{name}: expected variant/name.family.jsonl and core, reference or both")
        kernel = kernel_profile(_VARIANTS.get(match[1], match[1])).name
        mmu = "tdp" if match[3] == "1" else "shadow" if match[2] == "shadow" else "direct"
        one = found.setdefault((kernel, mmu, match[2]), Evidence())
        one.vectors["both" if len(set(who)) == len(_BACKENDS) else who[0]] += 1
    for path in recordings_in(recordings):
        counts = kept(path.parent)
        if not counts:
            continue
        facts = json.loads((path.parent / "host.json").read_text(encoding="utf-8"))
        kernel = kernel_profile(str(facts.get("release", facts["kernel"]))).name
        host = family_of(facts)
        mmu = "shadow" if host == "shadow" and facts.get("guest_mode") not in _FLAT else "direct"
        mmu = "tdp" if facts.get("tdp_mmu") else mmu
        one = found.setdefault((kernel, mmu, host), Evidence())
        one.recordings += 1
        one.outputs += sum(counts.values())
    return found


def markdown(found: dict[Place, Evidence]) -> str:
    """Write the table.

    Args:
        found: what `evidence` gave.

    Returns:
        A row a kernel and MMU that is modelled, a column a host: vectors and recordings, `rules only` where the model
        follows rules that nothing here holds, `-` where there is nothing to model. Shadow pages of guests with tables
        of their own have a row where something holds them.
    """
    lines = [
        f"| kernel | release | MMU | {' | '.join(HOSTS.values())} |",
        "|---|---|---|" + "---|" * len(HOSTS),
    ]
    has = {(kernel, mmu) for kernel, mmu, _ in found}
    has_tdp = any(mmu == "tdp" for _, mmu in has)
    for profile in kernels.values():
        modelled = {
            "direct": True,
            "tdp": has_tdp and profile.facts.has_tdp_mmu,
            "shadow": (profile.name, "shadow") in has,
        }
        for mmu, title in MMUS.items():
            if modelled[mmu]:
                cells = [_cell(found, profile, mmu, host) for host in HOSTS]
                lines.append(f"| `{profile.name}` | {profile.release} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[Place, Evidence], profile: KernelProfile, mmu: str, host: str) -> str:
    one = found.get((profile.name, mmu, host))
    if one is not None:
        return str(one)
    if mmu == "shadow":
        return NONE if host != "shadow" else RULES_ONLY
    # Without two-dimensional paging only a guest that does not page is mapped directly, and not before v5.10.
    is_impossible = host == "shadow" and (mmu == "tdp" or not profile.facts.is_level_requested)
    return NONE if is_impossible else RULES_ONLY


def as_json(found: dict[Place, Evidence]) -> dict[str, object]:
    """Give the same as plain values; the schema has a version.

    Args:
        found: what `evidence` gave.

    Returns:
        `evidence`: a list of places with what holds them.
    """
    return {
        "schema": "kvm-mmu/trace-evidence/1",
        "evidence": [
            {
                "kernel": kernel,
                "mmu": mmu,
                "host": host,
                "vectors": dict(sorted(one.vectors.items())),
                "recordings": one.recordings,
                "outputs": one.outputs,
            }
            for (kernel, mmu, host), one in sorted(found.items(), key=lambda item: _order(item[0]))
        ],
    }


def _order(place: Place) -> tuple[int, int, int]:
    kernel, mmu, host = place
    return list(kernels).index(kernel), list(MMUS).index(mmu), list(HOSTS).index(host)
