"""What a kernel says of itself: release, masks of SPTEs, family, physical width, and the row that it is read by.

Owns: the choice of the row and of the codec. Invariant: a kernel that no row is of is read and said to be unknown; its
words are those of the nearest row, and where a mask of its own differs, that is said, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from kvm_mmu.errors import LiveError
from kvm_mmu.live.names import HOLDERS, MASKS, NEEDED_SYMBOLS, VARIABLES
from kvm_mmu.live.program import Opened
from kvm_mmu.machine.profiles import KernelProfile, assumed, kernels
from kvm_mmu.words.bits import own_bits
from kvm_mmu.words.codec import Codec

#: Rows whose dumps were read and compared with what had happened.
TRIED = ("v6.1", "v6.12")
#: An entry without a translation; the second where entries are born with the bit that hides them from #VE.
EMPTY = (0, 1 << 63)
#: What a table's entry holds while the TDP MMU takes the table down.
FROZEN = 0x5A0
_VERSION = re.compile(r"(\d+)\.(\d+)")
#: The codec's name of a mask, and the variable's behind `shadow_`.
_CODEC_MASKS = {
    "user": "user",
    "accessed": "accessed",
    "dirty": "dirty",
    "nx": "nx",
    "x": "x",
    "present": "present",
    "acc_track": "acc_track",
    "mmio_mask": "mmio",
    "mmio_value": "mmio_value",
    "nonpresent_or_rsvd": "nonpresent_or_rsvd",
    "lower_gfn": "nonpresent_or_rsvd_lower_gfn",
}


@dataclass(frozen=True)
class Row:
    """The row that a kernel is read by: its profile, whether it is the kernel's own, what is to be said of it."""

    profile: KernelProfile
    is_known: bool
    said: str


def row_of(release: str) -> Row:
    """The row of a release, or the nearest one that is not newer.

    Args:
        release: as `uname -r` says it.

    Returns:
        The row.
    """
    found = kernels.get(release)
    if found is not None:
        said = assumed(release)
        if found.name not in TRIED:
            return Row(found, True, f"{said + '; ' if said else ''}no dump of this kernel was ever tried")
        return Row(found, True, said)
    match = _VERSION.match(release)
    wanted = (int(match[1]), int(match[2])) if match else (0, 0)
    rows = [
        (_version(row.release), name) for name, row in kernels.items() if _version(row.release)[:2] <= wanted
    ]
    name = max(rows, default=(None, next(iter(kernels))))[1]
    tried = " and ".join(TRIED)
    return Row(
        kernels[name],
        False,
        f"layout known for {tried}; this is {release}: an unknown kernel, read by the words of {name}",
    )


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:3])


class KernelFacts:
    """The variables of one kernel.

    Args:
        opened: the source.

    Raises:
        LiveError: a variable that is needed is missing.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.release = self._release()
        self.row = row_of(self.release)
        missing = [name for name in NEEDED_SYMBOLS if opened.symbol(name) is None]
        if missing:
            raise LiveError(
                f"no symbol {', '.join(missing)}: kvm is not loaded, or its symbols are not in the source"
            )
        missing = opened.layout.missing()
        if missing:
            raise LiveError(
                f"{self.row.said or self.release}: its structures lack what is needed: {', '.join(missing)}"
            )
        levels = 5 if opened.info("NUMBER(pgtable_l5_enabled)") == "1" else 4
        self.vmemmap = self.variable("vmemmap_base") or int(
            opened.info("SYMBOL(vmemmap)") or "ffffea0000000000", 16
        )
        vmalloc = int(opened.info("NUMBER(VMALLOC_START)") or "0", 16)
        opened.memory.set_direct_map(self.variable("page_offset_base"), levels, (vmalloc, self.vmemmap))
        self.host_levels = levels
        self.vm_list = opened.symbol("vm_list") or 0
        self.masks = {name: value for name in MASKS if (value := self._mask(name)) is not None}
        self.page_size = opened.layout.size("struct page")

    def _release(self) -> str:
        found = self._opened.info("OSRELEASE")
        if found is None:
            try:
                found = self._opened.program["UTS_RELEASE"].string_().decode("latin-1")
            except (LookupError, ValueError):
                raise LiveError(f"{self._opened.source}: does not say which kernel it is of") from None
        return str(found)

    def variable(self, name: str) -> int | None:
        """An unsigned number of the kernel; None where it has no such variable."""
        address = self._opened.symbol(name)
        if address is None:
            return None
        return self._opened.memory.number(address, VARIABLES[name], f"variable {name}")

    def _mask(self, name: str) -> int | None:
        symbol = f"shadow_{name}{'' if name.endswith('value') else '_mask'}"
        address = self._opened.symbol(symbol)
        return None if address is None else self._opened.memory.number(address, 8, f"variable {symbol}")

    @cached_property
    def phys_bits(self) -> int:
        """Physical address width of the host.

        Raises:
            LiveError: no variable says it.
        """
        found = self.variable("shadow_phys_bits")
        if found is None:
            for symbol, structure in HOLDERS.items():
                place = self._opened.layout.find(
                    f"{structure.removeprefix('struct ').removeprefix('kvm_')}.phys_bits"
                )
                address = self._opened.symbol(symbol)
                if place is not None and address is not None:
                    found = self._opened.memory.number(
                        address + place.offset, place.size, f"variable {symbol}"
                    )
                    break
        if found is None or not 32 <= found <= 52:
            raise LiveError(f"physical width {found}: expected a variable that says 36 to 52")
        return found

    @cached_property
    def family(self) -> str:
        """How guests are paged: `shadow`, `npt`, `ept_ad` or `ept_noad`."""
        if self.variable("tdp_enabled") == 0:
            return "shadow"
        if self.masks.get("x"):
            return "ept_ad" if self.masks.get("accessed") else "ept_noad"
        return "npt"

    @property
    def is_ept(self) -> bool:
        """Whether the tables are Intel's extended ones."""
        return self.family.startswith("ept")

    @property
    def tdp_enabled(self) -> bool:
        """Whether the processor pages in two dimensions."""
        return self.family != "shadow"

    @cached_property
    def codec(self) -> Codec:
        """The words of this kernel on this host."""
        encrypted = self.masks.get("me_value") or self.masks.get("me") or 0
        return Codec(
            self.row.profile,
            self.family,
            max(36, self.phys_bits),
            l1tf=bool(self.masks.get("nonpresent_or_rsvd")),
            mmio_caching=self.variable("enable_mmio_caching") != 0,
            c_bit=None if self.is_ept or not encrypted & 0xFFFFF00000000 else encrypted.bit_length() - 1,
        )

    @cached_property
    def foreign_masks(self) -> list[str]:
        """Masks of this kernel that are not those of its row, in words."""
        found = []
        for mine, theirs in _CODEC_MASKS.items():
            value = self.masks.get(theirs)
            if value is not None and value != self.codec.masks[mine]:
                found.append(
                    f"shadow_{theirs} is {value:#x}, {self.row.profile.name} has {self.codec.masks[mine]:#x}"
                )
        return found

    @cached_property
    def present_bit(self) -> int | None:
        """The mask of the bit that says that an entry is there; None where that is "not 0 and not MMIO"."""
        if "mmu_writable" not in self.masks:
            return None
        bit = own_bits(self.row.profile, self.is_ept).mmu_present
        return 1 << (11 if bit is None else bit)

    @cached_property
    def host_writable(self) -> int:
        """The bit that says that host memory is writable."""
        own = own_bits(self.row.profile, self.is_ept)
        return self.masks.get("host_writable", 1 << own.host_writable)

    @cached_property
    def mmu_writable(self) -> int:
        """The bit that says that the MMU lets the guest write."""
        own = own_bits(self.row.profile, self.is_ept)
        return self.masks.get("mmu_writable", 1 << own.mmu_writable)

    def has(self, key: str) -> bool:
        """Whether this kernel's structures have a thing (`names.NAMES`)."""
        return self._opened.layout.has(key)

    @cached_property
    def role_bits(self) -> dict[str, tuple[int, int]]:
        """The fields of a page's role: lowest bit and width."""
        return self._opened.layout.bits("union kvm_mmu_page_role")

    @property
    def marks_pages_off_the_nx_list(self) -> bool:
        """Whether a page may have the mark of NX huge pages without being one that recovery would zap."""
        field = self._opened.layout.find("mmu_page.nx_huge")
        return field is not None and field.name == "nx_huge_page_disallowed"

    @lru_cache(maxsize=4096)  # noqa: B019 - lives as long as its kernel
    def role_fields(self, word: int) -> dict[str, int]:
        """A role word field by field, by the kernel's own bit fields."""
        return {name: word >> at & (1 << width) - 1 for name, (at, width) in self.role_bits.items()}

    @property
    def address_mask(self) -> int:
        """The bits of an entry that are an address, up to the width of the processor's format."""
        return ((1 << 52) - 1 & ~0xFFF) & ~(self.masks.get("me") or self.masks.get("me_value") or 0)
