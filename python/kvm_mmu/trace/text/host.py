"""Facts of the host and of the VM's start that no trace line shows: kernel, two-dimensional paging or not,
widths.

Owns: the `# replay-host:` line, its keys, where they may come from (the user, the line, `host.json` beside
the trace, an assumption) and the rule that an assumption is always reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.machine import json_object
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernels

PREFIX = "# replay-host: "
#: key -> value assumed when nobody says (kernel and mmu are never assumed silently: see
#: `HostFacts.inferred`).
ASSUMED: dict[str, object] = {
    "mmu": "npt",
    "tdp_mmu": 0,
    "phys_bits": 40,
    "la57": 0,
    "l1tf_mask": 0,
    "nx_huge_pages": 0,
    "mmio_caching": 1,
    "eager_page_split": 1,
    "initial_efer_nx": 1,
    "pml": 1,
}
_TEXT_KEYS = frozenset({"kernel", "release", "mmu", "family", "event_set", "guest_mode"})
_KERNEL = re.compile(r"v?(\d+)\.(\d+)")
_BRANCH = re.compile(r"v?\d+\.\d+")
#: Bytes of a file of host facts.
_MOST_TEXT = 1 << 20
FAMILIES = ("npt", "ept_ad", "ept_noad", "shadow")
#: What host facts call the MMU -> the masks, where no fact says more.
_FAMILY_OF = {"npt": "npt", "shadow": "shadow", "ept": "ept_ad"}


@dataclass
class HostFacts:
    """What is known of the host; `inferred` lists the keys that were asked for and had to be assumed.

    Args:
        values: facts that somebody gave.
        inferred: facts that were asked for and nobody gave, with the values taken.
        likely: what the trace itself suggests; it is taken before anything else is assumed.
    """

    values: dict[str, object] = field(default_factory=dict)
    inferred: dict[str, object] = field(default_factory=dict)
    likely: dict[str, object] = field(default_factory=dict)

    def get(self, key: str) -> object:
        """Look up a fact; one that nobody gave is assumed and remembered as inferred.

        Args:
            key: its name.

        Returns:
            Its value.
        """
        if key in self.values:
            return self.values[key]
        value = self.likely.get(key, ASSUMED.get(key, ""))
        if key in ASSUMED or key in self.likely:
            self.inferred[key] = value
        return value

    def number(self, key: str) -> int:
        """Look up a numeric fact.

        Args:
            key: its name.

        Returns:
            Its value, 0 where it is no number.
        """
        value = self.get(key)
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        """Look up a textual fact.

        Args:
            key: its name.

        Returns:
            Its value as text.
        """
        return str(self.get(key))

    @property
    def family(self) -> str:
        """The masks in use (`npt`, `shadow`, `ept_ad` or `ept_noad`); that EPT has accessed and dirty bits may be
        assumed.
        """
        mmu = self.text("mmu")
        if mmu == "ept" and "family" not in self.values:
            self.inferred["family"] = self.likely.get("family", _FAMILY_OF[mmu])
        return family_of({**self.likely, "mmu": mmu, **self.values})

    def updated(self, other: Mapping[str, object]) -> HostFacts:
        """Take other facts over these.

        Args:
            other: facts that win.

        Returns:
            New facts.
        """
        return HostFacts({**self.values, **other}, likely=self.likely)


def check_facts(values: object, where: str) -> dict[str, object]:
    """A host object as read from JSON, with the types checked.

    Raises:
        TraceError: not an object, or a known key with a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise TraceError(f"{where}: host facts must be a JSON object, not {type(values).__name__}")
    for key, value in values.items():
        if key in _TEXT_KEYS and not isinstance(value, str):
            raise TraceError(f"{where}: host fact {shown(key)} must be text, not {shown(value)}")
        if key in ASSUMED and key not in _TEXT_KEYS and (not isinstance(value, int) or not 0 <= value <= 64):
            raise TraceError(
                f"{where}: host fact {shown(key)} must be a number from 0 to 64, not {shown(value)}"
            )
    if values.get("mmu", "npt") not in ("npt", "ept", "shadow"):
        raise TraceError(f"{where}: host fact 'mmu' must be npt, ept or shadow, not {shown(values['mmu'])}")
    family, mmu = values.get("family"), values.get("mmu")
    if family is not None and family not in FAMILIES:
        raise TraceError(
            f"{where}: host fact 'family' must be {', '.join(FAMILIES[:-1])} or shadow, not {shown(family)}"
        )
    if family is not None and mmu is not None and not str(family).startswith(str(mmu)):
        raise TraceError(
            f"{where}: host facts 'mmu' and 'family' do not agree: {shown(mmu)} and {shown(family)}"
        )
    return values


def parse_facts(text: str, where: str) -> dict[str, object]:
    """A host object from JSON text."""
    try:
        value = json_object.loads(text)
    except json.JSONDecodeError as err:
        raise TraceError(f"{where}: not JSON: {err.msg} at column {err.colno}") from err
    except json_object.RepeatedKeyError as err:
        raise TraceError(f"{where}: {err}") from err
    except ValueError as err:
        raise TraceError(f"{where}: not JSON: a number has too many digits") from err
    except RecursionError as err:
        raise TraceError(f"{where}: not JSON: nested too deeply") from err
    return check_facts(value, where)


def facts_from(option: str) -> dict[str, object]:
    """The value of `--host`: JSON text when it starts with a brace, else a file."""
    if option.lstrip().startswith("{"):
        return parse_facts(option, "--host")
    try:
        with Path(option).open("rb") as file:
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise TraceError(
                f"{option}: more than {_MOST_TEXT >> 20} MiB: expected a JSON object of host facts"
            )
        return parse_facts(text.decode("utf-8"), option)
    except (OSError, UnicodeDecodeError) as err:
        raise TraceError(f"{option}: cannot be read: {err}") from err


def beside(trace: str | Path) -> dict[str, object] | None:
    """The facts in `host.json` beside a trace, None where there is none."""
    found = file_beside(trace)
    return None if found is None else facts_from(found)


def file_beside(trace: str | Path) -> str | None:
    """The `host.json` beside a trace, None where there is none."""
    candidate = Path(trace).parent / "host.json"
    return str(candidate) if str(trace) != "-" and candidate.is_file() else None


def family_of(facts: Mapping[str, object]) -> str:
    """The masks that host facts tell of: `npt`, `shadow`, `ept_ad` or `ept_noad`; `npt` where they tell nothing."""
    family = facts.get("family")
    return family if isinstance(family, str) else _FAMILY_OF.get(str(facts.get("mmu", "npt")), "npt")


def kernel_of(facts: Mapping[str, object]) -> str:
    """The kernel that host facts name, at its patch level where the release says one; nothing where they name none."""
    release, kernel = (
        text if isinstance(text := facts.get(key), str) else "" for key in ("release", "kernel")
    )
    # A kernel that a user names finer, or another one, stays, whatever the release in a file beside the trace.
    branches = [found.groups() for text in (release, kernel) if (found := _KERNEL.match(text))]
    is_same = len(branches) == 2 and branches[0] == branches[1]
    is_finer = is_same and (_BRANCH.fullmatch(kernel) is not None or release.startswith(kernel))
    return kernel_name(release if is_finer or not kernel else kernel)


def kernel_name(release: str) -> str:
    """The kernel that a release names: `5.0.1` -> `v5.0`, `6.1.0-56-amd64` -> `v6.1`, `7.2.6+deb13-amd64` -> `v7.2.6`.

    A branch that has no row comes as `v4.19`, text without a version as it is.
    """
    if release in kernels:
        return kernels[release].name
    found = _KERNEL.match(release)
    return f"v{found[1]}.{found[2]}" if found and not release.endswith("-seed") else release
