"""Each bit of a word by name, for each kernel: the tables of the specification, and nothing left over."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.reference.common import mmio
from kvm_mmu.words.codec import Codec
from kvm_mmu.words.roles import decode_role

KERNELS = ("v5.0", "v5.0-seed", "v5.1", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12")
FAMILIES = ("npt", "shadow", "ept_ad", "ept_noad")
OLD = ("v5.0", "v5.0-seed", "v5.1", "v5.2", "v5.3")

#: The specification's bits of an SPTE with the legacy masks and with EPT that all kernels share.
LEGACY = {0: "P", 1: "W", 2: "U", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "large", 63: "NX"}
EPT = {0: "R", 1: "W", 2: "X", 6: "ignore-PAT", 7: "large"}
#: The kernels' own bits: legacy, EPT.
OWN = {
    "v5": ({10: "host-writable", 11: "mmu-writable"}, {10: "host-writable", 11: "mmu-writable"}),
    "v6": (
        {9: "host-writable", 10: "mmu-writable", 11: "mmu-present"},
        {57: "host-writable", 58: "mmu-writable", 11: "mmu-present"},
    ),
}


def named(kernel, family, raw, **host):
    return {tuple(b[:2]): (b[2], b[3], b[4]) for b in Codec(kernel, family, **host).decode_spte(raw)["bits"]}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", ["npt", "ept_ad"])
def test_each_bit_of_an_spte_has_the_name_of_the_specification(kernel, family):
    own = OWN[kernel[:2]][family != "npt"]
    table = {**(LEGACY if family == "npt" else {**EPT, 8: "A", 9: "D"}), **own}
    base = 1 << 11 if kernel.startswith("v6") else 1 << 7
    for bit, name in table.items():
        groups = named(kernel, family, base | 1 << bit)
        assert groups[bit, bit][:2] == (name, 1), (kernel, family, bit)
        if base != 1 << bit:
            other = named(kernel, family, base | 1 << 12)
            assert other[bit, bit][:2] == (name, 0)
    kind = (62, 62, "special") if kernel in OLD else (53, 52, "kind")
    assert named(kernel, family, base | 1 << kind[1])[kind[:2]][:2] == (kind[2], 1)
    assert named(kernel, family, base | 5 << 12)[51, 12][:2] == ("pfn", 5)


@pytest.mark.parametrize(
    ("kernel", "shift"), [("v5.0", 52), ("v5.3", 52), ("v5.4", 54), ("v6.1", 54), ("v6.12", 54)]
)
def test_a_tracked_entry_says_what_was_saved(kernel, shift):
    kind = 1 << 62 if kernel in OLD else 1 << 52
    raw = kind | 1 << 11 | 0x1000 | 1 << shift
    found = Codec(kernel, "ept_noad").decode_spte(raw)
    assert found["kind"] == "access-tracked"
    group = next(b for b in found["bits"] if b[2] == "saved R, X")
    assert group[:2] == [shift + 2, shift] and group[4] == "R given back by the next access"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_set_bit_is_in_exactly_one_group(kernel, family):
    dice = random.Random(f"{kernel}{family}")
    count = {"mmio": 0, "other": 0}
    for phys_bits in (36, 40, 46, 47, 51, 52):
        for l1tf in (True, False):
            codec = Codec(kernel, family, phys_bits, l1tf=l1tf)
            words = (
                [dice.getrandbits(64) for _ in range(60)] + [1 << b for b in range(64)] + [0, (1 << 64) - 1]
            )
            words += [codec.masks["mmio_value"] | w & ~codec.masks["mmio_mask"] for w in words[:60]]
            if codec.makes_mmio_sptes:
                words += [
                    codec.make_mmio_spte(
                        dice.getrandbits(phys_bits - 12), dice.getrandbits(3), dice.getrandbits(21)
                    )
                    for _ in range(60)
                ]
            for raw in words:
                found = codec.decode_spte(raw)
                count["mmio" if found["is_mmio"] else "other"] += 1
                covered = 0
                for high, low, name, value, meaning in found["bits"]:
                    mask = ((1 << high - low + 1) - 1) << low
                    assert not covered & mask, (hex(raw), name)
                    assert value == (raw & mask) >> low and name and meaning
                    covered |= mask
                assert not raw & ~covered, (hex(raw), found["kind"])
                assert codec.phrase(raw)
    assert min(count.values()) > 500


@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("v5.0", {(11, 3): "1 to 9", (61, 52): "10 to 19"}),
        ("v5.1", {(11, 3): "0 to 8", (61, 52): "0 to 9"}),
        ("v5.3", {(11, 3): "0 to 8", (61, 52): "0 to 9"}),
        ("v5.4", {(11, 3): "0 to 8", (61, 52): "0 to 9"}),
        ("v6.1", {(10, 3): "0 to 7", (62, 52): "8 to 18"}),
        ("v6.12", {(10, 3): "0 to 7", (62, 52): "8 to 18"}),
    ],
)
def test_the_generation_stands_where_the_specification_says(kernel, fields):
    codec = Codec(kernel, "npt", 40)
    groups = named(kernel, "npt", codec.make_mmio_spte(0xE0000, 6, 0x2A), phys_bits=40)
    found = {place: said for place, (name, _, said) in groups.items() if name == "generation"}
    assert found.keys() == fields.keys()
    assert all(found[place].startswith(f"generation bits {bits}") for place, bits in fields.items())
    assert ("L1TF" in {name for name, _, _ in groups.values()}) is kernel.startswith("v5")


def test_l1tf_where_the_cpu_has_it():
    assert Codec("v6.1", "npt", 40).make_mmio_spte(0xD0000, 4, 8) == 0x80000D0000045
    with_mask = Codec("v6.1", "npt", 40, l1tf=True)
    assert with_mask.make_mmio_spte(0xD0000, 4, 8) == 0x80000D0000045 | 0xF800000000
    assert with_mask.has_l1tf_mask and not Codec("v6.1", "npt", 47, l1tf=True).has_l1tf_mask


@pytest.mark.parametrize(
    ("kernel", "word", "said"),
    [
        ("v6.1", 0x161B86E67, "pfn 161b86, writable, user, accessed, dirty, host-writable, can be made writable "
         "without the lock, executable"),
        ("v6.1", 0x8000000161C00A25, "pfn 161c00, write-protected, user, accessed, clean, host-writable, no execute"),
        ("v6.12", 0x8000000000000000, "empty"),
        ("v6.1", 0x8000000000000000, "not present"),
        ("v6.1", 0, "empty"),
        ("v5.3", 0x1234CE7, "pfn 1234, large, writable, user, accessed, dirty, host-writable, can be made writable "
         "without the lock, executable"),
        ("v5.2", 0x402800F8E0000017, "MMIO, gfn e0000, access write+user, generation 0x2"),
    ],
)  # fmt: skip
def test_phrases(kernel, word, said):
    assert Codec(kernel, "npt", 40).phrase(word) == said


def test_phrases_of_ept():
    assert Codec("v5.0", "ept_ad").phrase(0x200000F77) == (
        "pfn 200000, readable, writable, accessed, dirty, host-writable, can be made writable without the lock, "
        "executable"
    )
    assert Codec("v5.0", "ept_ad").phrase(Codec("v5.0", "ept_ad").make_mmio_spte(5, 6, 0x20)) == (
        "MMIO, gfn 5, access not stored, generation 0x20"
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_role_fields(kernel):
    names = {
        0: "level",
        5: "quadrant",
        7: "direct",
        8: "access",
        11: "invalid",
        13: "cr0_wp",
        14: "smep_andnot_wp",
    }
    names |= {15: "smap_andnot_wp", 16: "ad_disabled", 17: "guest_mode", 24: "smm"}
    names[4] = {"v5.0": "cr4_pae", "v5.0-seed": "cr4_pae"}.get(
        kernel, "gpte_is_8_bytes" if kernel < "v6" else "has_4_byte_gpte"
    )
    names[12] = "nxe" if kernel < "v6" else "efer_nx"
    names[18] = "unused" if kernel < "v6" else "passthrough"
    for bit in range(32):
        groups = [b for b in decode_role(1 << bit, kernel)["bits"] if b[3]]
        name = names[max(low for low in names if low <= bit)] if not 19 <= bit < 24 else "unused"
        assert [b[2] for b in groups] == [name], bit
    assert decode_role(0, kernel)["kernel"] == kernel


def run(*words, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words], input=stdin, capture_output=True, text=True, check=False
    )


def test_the_commands_say_whose_words_they_are():
    done = run("decode", "spte", "-", "--kernel", "v5.1", "--family", "npt", stdin="402800f8e0000017\n")
    found = json.loads(done.stdout)
    assert found["schema"] == "kvm-mmu/decode/1" and found["kernel"] == "v5.1"
    assert (found["family"], found["phys_bits"], found["l1tf"]) == ("npt", 46, 1)
    words = ("encode", "mmio", "-", "--kernel", "v5.2", "--family", "npt", "--phys-bits", "40", "--json")
    done = run(*words, stdin='{"gfn": "0xe0000", "access": 6, "gen": 1024}\n')
    made = json.loads(done.stdout)
    assert (
        made["schema"] == "kvm-mmu/encode/1"
        and made["read_back"]["mmio_gen"] == 0 == made["read_back"]["fresh"]
    )
    done = run(*words, "--l1tf", "no", stdin='{"gfn": "0xe0000", "access": 6, "gen": 2}\n')
    assert json.loads(done.stdout)["spte"] == "0x40280000e0000017"


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (("decode", "spte", "1_0"), "", "hexadecimal"),
        (("decode", "spte", "0x"), "", "hexadecimal"),
        (("decode", "spte", "1" * 17), "", "0 to 2^64-1"),
        (("decode", "spte", "-"), "12\nzz\n", "<stdin>:2"),
        (("decode", "role", "100000000"), "", "32 bits"),
        (("decode", "role", "1", "--phys-bits", "53"), "", "phys_bits"),
        (("decode", "mmio", "\u0661"), "", "hexadecimal"),
        (("decode", "mmio", "1", "--gen", "1_0"), "", "not a number"),
        (("encode", "mmio", "--gfn", "1", "--gen", "-1"), "", "not a number"),
        (("encode", "mmio", "--gfn", "0x10000000000000", "--gen", "1"), "", "46 physical bits"),
        (("encode", "mmio", "-"), '{"gfn": 1, "access": 9, "gen": 1}', "access 9"),
        (("encode", "mmio", "-"), '{"gfn": 1.5, "access": 6, "gen": 1}', "gfn=1.5"),
        (("encode", "mmio", "-"), "[" * 100_000, "not JSON"),
        (("encode", "mmio", "--gfn", "1", "--gen", "1", "--phys-bits", "52", "--family", "npt"), "", "no MMIO SPTEs"),
    ],
)  # fmt: skip
def test_hostile_words_are_refused_in_one_line(words, stdin, said):
    done = run(*words, "--kernel", "v6.1", stdin=stdin)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_unknown_layouts_are_refused():
    for kernel in ("v5.5", "v6.6", "v4.19", "x"):
        with pytest.raises(UsageError, match="expected one of"):
            Codec(kernel)
        with pytest.raises(UsageError, match="expected one of"):
            decode_role(0, kernel)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "v5.1"])
@pytest.mark.parametrize("family", ["npt", "ept_ad", "ept_noad"])
def test_codec_and_reference_are_equal(kernel, family):
    """Written twice from the specification: what both make and read back, on hosts of every width."""
    dice = random.Random(f"{kernel} {family}")
    for phys_bits in range(36, 53):
        codec = Codec(kernel, family, phys_bits)
        for _ in range(30):
            if codec.makes_mmio_sptes:
                fields = (
                    dice.getrandbits(40),
                    dice.getrandbits(3),
                    dice.getrandbits(dice.choice((6, 20, 64))),
                )
                # The core itself, which makes of a gfn above the width what the kernel's encoder would make of it.
                spte = codec._core.make_mmio_spte(*fields)
                if not fields[0] >> phys_bits - 12:
                    assert codec.make_mmio_spte(*fields) == spte
                assert spte == mmio.make_mmio_spte(kernel, phys_bits, family, *fields), (phys_bits, fields)
                made = codec.decode_mmio(spte, fields[2])
                assert bool(made["fresh"]) == mmio.check_mmio_spte_word(
                    kernel, phys_bits, family, spte, fields[2]
                )
            else:
                spte = dice.getrandbits(64)
            mine = codec.decode_mmio(spte)
            other = mmio.decode_mmio_spte(kernel, phys_bits, family, spte)
            assert {key: mine[key] for key in other if key != "raw"} == {
                key: value for key, value in other.items() if key != "raw"
            }


def test_the_encryption_bit_has_a_name_and_is_no_frame():
    plain, spte = 0x1234E67, 1 << 47 | 0x1234E67
    found = Codec("v6.1", "npt", 43, c_bit=47).decode_spte(spte)
    names = {name: (high, low, value) for high, low, name, value, _ in found["bits"]}
    assert names["C"] == (47, 47, 1) and found["pfn"] == 0x1234
    assert "encrypted" in Codec("v6.1", "npt", 43, c_bit=47).phrase(spte, 1)
    assert "encrypted" not in Codec("v6.1", "npt", 43, c_bit=47).phrase(plain, 1)
    unnamed = Codec("v6.1", "npt", 43).decode_spte(spte)
    assert unnamed["pfn"] == 1 << 35 | 0x1234 and "above the 43 bits" in str(unnamed["bits"])
    for wrong in ({"c_bit": 31}, {"c_bit": 52}, {"c_bit": 47, "family": "ept_ad"}):
        with pytest.raises(UsageError, match="c_bit"):
            Codec("v6.1", **{"family": "npt", **wrong})
