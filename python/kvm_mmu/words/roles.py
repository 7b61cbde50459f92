"""The page role word of one kernel, field by field: what a shadow page is good for.

Owns: which bit is which field in which kernel, and what its values mean. A kernel whose layout is not known is refused.
Source: docs/kernel-facts.md, page.role (v5.0 to v5.4), the recordings' role words (v6.1, v6.12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.profiles import KernelProfile
from kvm_mmu.words.bits import ACCESS_WORDS, Bits, layout_kernel, word64

#: Role word fields: (low bit, width, name). Bits 4, 12 and 18 depend on the kernel.
_ROLE_FIELDS = (
    (0, 4, "level"),
    (4, 1, "bit4"),
    (5, 2, "quadrant"),
    (7, 1, "direct"),
    (8, 3, "access"),
    (11, 1, "invalid"),
    (12, 1, "bit12"),
    (13, 1, "cr0_wp"),
    (14, 1, "smep_andnot_wp"),
    (15, 1, "smap_andnot_wp"),
    (16, 1, "ad_disabled"),
    (17, 1, "guest_mode"),
    (18, 1, "bit18"),
    (24, 8, "smm"),
)
_ROLE_FIELDS_V7_2 = (
    (0, 4, "level"),
    (4, 1, "bit4"),
    (5, 2, "quadrant"),
    (7, 1, "direct"),
    (8, 4, "access_rwux"),
    (12, 1, "invalid"),
    (13, 1, "bit12"),
    (14, 1, "cr0_wp"),
    (15, 1, "smap_andnot_wp"),
    (16, 1, "ad_disabled"),
    (17, 1, "guest_mode"),
    (18, 1, "bit18"),
    (19, 1, "is_mirror"),
    (20, 1, "cr4_smep"),
    (24, 8, "smm"),
)
_ROLE_V5_0 = {"bit4": "cr4_pae", "bit12": "nxe", "bit18": ""}
_ROLE_V5_1 = {**_ROLE_V5_0, "bit4": "gpte_is_8_bytes"}
_ROLE_V6_1 = {"bit4": "has_4_byte_gpte", "bit12": "efer_nx", "bit18": "passthrough"}
_ROLE_NAMES = {
    "v5.0": (_ROLE_FIELDS, _ROLE_V5_0),
    "v5.1": (_ROLE_FIELDS, _ROLE_V5_1),
    "v6.1": (_ROLE_FIELDS, _ROLE_V6_1),
    "v7.2": (_ROLE_FIELDS_V7_2, {**_ROLE_V6_1, "access_rwux": "access"}),
}

_MEANING: dict[str, Callable[[int], str]] = {
    "level": lambda v: f"table level {v}",
    "cr4_pae": lambda v: (
        "guest entries have 8 bytes" if v else "guest entries have 4 bytes, or a direct page"
    ),
    "gpte_is_8_bytes": lambda v: "guest entries have 8 bytes" if v else "guest entries have 4 bytes",
    "has_4_byte_gpte": lambda v: (
        "guest entries have 4 bytes" if v else "guest entries have 8 bytes, or a direct page"
    ),
    "efer_nx": lambda v: "no-execute in use" if v else "no-execute not in use",
    "passthrough": lambda v: "of a guest level that is passed through" if v else "not passed through",
    "quadrant": lambda v: (
        f"quarter {v} of a 32-bit guest table" if v else "first or only part of the guest table"
    ),
    "direct": lambda v: "maps guest frames directly" if v else "shadows a guest table",
    "access": lambda v: f"{ACCESS_WORDS[v]} allowed from above",
    "access_rwux": lambda v: (
        "".join(c if v >> i & 1 else "-" for i, c in enumerate("rwux")) + " allowed from above"
    ),
    "is_mirror": lambda v: "mirrors a confidential table" if v else "no mirror",
    "cr4_smep": lambda v: "CR4.SMEP on" if v else "CR4.SMEP off",
    "invalid": lambda v: "zapped while in use" if v else "valid",
    "nxe": lambda v: "EFER.NX on" if v else "EFER.NX off",
    "cr0_wp": lambda v: "CR0.WP on" if v else "CR0.WP off",
    "smep_andnot_wp": lambda v: "SMEP without WP" if v else "no SMEP without WP",
    "smap_andnot_wp": lambda v: "SMAP without WP" if v else "no SMAP without WP",
    "ad_disabled": lambda v: "no accessed/dirty bits" if v else "accessed/dirty bits in use",
    "guest_mode": lambda v: "for a nested guest" if v else "not for a nested guest",
    "smm": lambda v: "system management mode" if v else "normal mode",
}


def decode_role(role: int | str, kernel: str | KernelProfile) -> dict[str, Any]:
    """Take the page role word apart, field by field.

    Args:
        role: the word, a number or hexadecimal text.
        kernel: profile name or profile; the layout depends on it.

    Returns:
        A key for each field, and every bit in words under `bits`: `[high, low, name, value, meaning]`.

    Raises:
        UsageError: more than 32 bits, or a kernel whose layout is not known.
    """
    raw = word64(role, "role")
    if raw >> 32:
        raise UsageError(f"role {raw:#x}: expected 32 bits")
    name, profile = layout_kernel(kernel)
    found: dict[str, Any] = {"raw": hex(raw), "kernel": name}
    bits = []
    known = 0
    fields, names = _ROLE_NAMES[str(profile.facts["role_layout"])]
    for low, width, field in fields:
        value = raw >> low & ((1 << width) - 1)
        called = names.get(field, field)
        if not called:
            continue
        known |= (1 << width) - 1 << low
        found[called] = value
        bits.append(
            Bits(low + width - 1, low, called, value, _MEANING[field if field in _MEANING else called](value))
        )
    if raw & ~known:
        low = known.bit_length() if known < 1 << 24 else (known & 0xFFFFFF).bit_length()
        bits.append(Bits(23, low, "unused", raw >> low & ((1 << 24 - low) - 1), "no field of this kernel"))
    found["bits"] = [[b.high, b.low, b.name, b.value, b.meaning] for b in sorted(bits, reverse=True)]
    return found


def explain_role(role: int | str, kernel: str | KernelProfile) -> str:
    """The same as text for a person."""
    found = decode_role(role, kernel)
    lines = [f"{found['raw']}  page role  ({found['kernel']})"]
    return "\n".join(lines + [str(Bits(*group)) for group in found["bits"]])
