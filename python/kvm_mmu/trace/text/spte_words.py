"""The bits of an SPTE that a replay must tell apart: what the CPU sets by itself, MMIO entries, who was asked for.

Owns: which bits those are for the kernel and the masks of a recording; where they lie is the codec's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from kvm_mmu.errors import UsageError
from kvm_mmu.trace.text.host import family_of, kernel_of
from kvm_mmu.words.codec import Codec

FRAME = 0x000FFFFFFFFFF000
#: Of an SPTE of the kernels with a TDP MMU: present for KVM, and a large leaf above level 1.
_PRESENT, _LARGE = 1 << 11, 1 << 7
#: Whose masks a recording is taken to have while nobody says: those of the first kernel whose recordings are replayed
#: without being told which it is.
_UNSAID = "v6.12"


@dataclass(frozen=True)
class SpteWords:
    """The masks of one kernel on one host that outputs are compared by.

    Args:
        accessed, dirty: 0 where entries have no such bits. host_writable: what the host said of a frame. mmio: mask and
            value of an MMIO entry.
    """

    accessed: int
    dirty: int
    host_writable: int
    mmio: tuple[int, int]
    executable: tuple[int, int]
    user: int
    frame: int = FRAME

    def is_mmio(self, value: int) -> bool:
        """An MMIO entry: compared whole, its generation is KVM's."""
        return value & self.mmio[0] == self.mmio[1]

    def is_demanded(self, value: int) -> bool:
        """A leaf that a fault asked for; a prefetched one is not accessed. Without that bit nothing is prefetched."""
        return not self.accessed or bool(value & self.accessed)

    def compared(self, value: int) -> int:
        """A raw value without its frame and without what the CPU sets."""
        return value if self.is_mmio(value) else value & ~FRAME & ~self.accessed

    def without_table(self, value: int, level: int) -> int:
        """An entry of the TDP MMU without the address of the table it links; any other one as it is."""
        is_link = level > 1 and value & (_PRESENT | _LARGE) == _PRESENT
        return value & ~FRAME if is_link else value

    def is_same_leaf(self, recorded: int, predicted: int, level: int) -> bool:
        """Whether two entries are the same, but for bits of a leaf that the CPU sets: the recording may have more."""
        if recorded == predicted:
            return True
        set_by_cpu = self.accessed | self.dirty
        if predicted & ~recorded or (recorded ^ predicted) & ~set_by_cpu:
            return False
        is_leaf = bool(predicted & _PRESENT) and (level == 1 or bool(predicted & _LARGE))
        return is_leaf and not self.is_mmio(predicted)

    def access_text(self, value: int) -> str:
        """`rwxu` with a dash for what is missing, as `kvm_mmu_set_spte` prints a leaf."""
        mask, wanted = self.executable
        letters = (
            (value & 1, "r"),
            (value & 2, "w"),
            (value & mask == wanted, "x"),
            (value & self.user, "u"),
        )
        return "".join(letter if has else "-" for has, letter in letters)


@lru_cache(maxsize=64)
def spte_words(kernel: str, family: str = "npt") -> SpteWords:
    """The words of a kernel with one set of masks.

    Raises:
        UsageError: the layout of this kernel is not known.
    """
    codec = Codec(kernel, family)
    masks = codec.masks
    has_ad = masks["accessed"] != 0
    return SpteWords(
        accessed=masks["accessed"],
        dirty=masks["dirty"] if has_ad else 0,
        host_writable=codec.host_writable,
        mmio=(masks["mmio_mask"], masks["mmio_value"]),
        executable=(masks["x"] | masks["nx"], masks["x"]),
        user=masks["user"],
    )


def words_of(facts: Mapping[str, object]) -> SpteWords:
    """The words of the host that these facts tell of; those of v6.12 for a kernel that is not said or not known."""
    family = family_of(facts)
    try:
        return spte_words(kernel_of(facts) or _UNSAID, family)
    except UsageError:
        return spte_words(_UNSAID, family)
