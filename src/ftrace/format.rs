//! An event back to the kernel's text: the same table the parser reads, so that text -> event -> text is the identity.

use std::io::Write;

use super::event::Event;
use super::wording::{Field, Token};

impl Event<'_> {
    /// Append the text of this event in its wording.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut numbers = self.numbers().iter().copied();
        let mut texts = self.texts().iter();
        for token in self.wording().tokens {
            match token {
                Token::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Token::Page => {
                    if let Some(page) = self.page() {
                        page.write(out);
                    }
                }
                Token::Value(Field::Text(_)) => out.extend_from_slice(texts.next().copied().unwrap_or_default()),
                Token::Value(field) => write_number(*field, numbers.next().unwrap_or(0), out),
            }
        }
    }
}

fn write_number(field: Field, value: u64, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = match field {
        Field::Hex(_) => write!(out, "{value:x}"),
        Field::Hex0x(_) => write!(out, "{value:#x}"),
        Field::Hex0x8(_) => write!(out, "{value:#010x}"),
        Field::Hex0x16(_) => write!(out, "{value:#018x}"),
        Field::HexAlt16(_) => write!(out, "{value:#016x}"),
        Field::Dec(_) | Field::Raw(_) => write!(out, "{value}"),
        Field::Signed(_) => write!(out, "{}", value.cast_signed()),
        Field::Text(_) => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::super::event::Outcome;
    use super::*;

    /// One line of each wording, taken from recordings.
    const LINES: [(&str, &str); 36] = [
        ("kvm_mmu_get_page", "sp gen 0 gfn 0 l4 q0 direct wux nxe ad root 0 sync new"),
        ("kvm_mmu_prepare_zap_page", "sp gfn f7ffe00 l1 8-byte q0 direct wux nxe ad root 0 sync"),
        ("mark_mmio_spte", "sptep:(____ptrval____) gfn e0000 access 6 gen fff6e"),
        ("mark_mmio_spte", "sptep:ffff888160112000 gfn d0000 access 7 gen 8"),
        ("check_mmio_spte", "spte 7ff800f8e0000dbf kvm_gen fff6e spte-gen fff6e valid 1"),
        ("handle_mmio_page_fault", "addr:80001000 gfn e0001 access 6"),
        (
            "fast_page_fault",
            "vcpu 0 gva 401000 error_code P|W|U sptep (____ptrval____) old 0x1b29025 new 1b29025 spurious 0 fixed 0",
        ),
        (
            "fast_page_fault",
            "vcpu 0 gva 1000000 error_code P|W|U|0x100000000 sptep ffff8881600f7000 old 0x1e65 new 1e67 spurious 0 fixed 1",
        ),
        ("kvm_mmu_invalidate_zap_all_pages", "kvm-mmu-valid-gen 1f used_pages c"),
        ("kvm_mmu_zap_all_fast", "kvm-mmu-valid-gen 1 used_pages e"),
        ("kvm_mmu_set_spte", "gfn 1 spte 8000000102597a21 (r-x-) level 1 at 160109008"),
        ("kvm_mmu_split_huge_page", "gfn 1000 spte 161c00ee7 level 2 errno -12"),
        ("kvm_tdp_mmu_spte_changed", "as id 0 gfn 0 level 4 old_spte 8000000000000000 new_spte 15f95e827"),
        ("kvm_mmu_pagetable_walk", "addr 1053 pferr 10 F"),
        ("kvm_page_fault", "vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x10"),
        ("kvm_page_fault", "address 100000 error_code 6"),
        ("kvm_mmio", "mmio unsatisfied-read len 8 gpa 0xe0000000 val 0x0"),
        ("vcpu_match_mmio", "gva 0xd0000000 gpa 0xd0000000 Read GPA"),
        ("kvm_emulate_insn", "0:10fe:0f 22 de (prot64)"),
        ("kvm_unmap_hva_range", "mmu notifier unmap range: 0x007f57817cb000 -- 0x007f57817ce000"),
        ("kvm_smm_transition", "vcpu 0: entering SMM, smbase 0x30000"),
        ("zap_oldest_ret", "(paging64_page_fault+0x237/0x960 [kvm] <- kvm_mmu_zap_oldest_mmu_pages) ret=21"),
        ("set_memslot", "(kvm_set_memslot+0x0/0x4c0 [kvm]) change=-1"),
        ("unprotect_page", "(__kvm_mmu_unprotect_gfn_and_retry+0x4/0x1c0 [kvm]) cr2=0x4000000 always=0"),
        ("kvm_entry", "vcpu 0, rip 0x1000[immediate exit]"),
        ("kvm_mmu_get_page", "mmu_valid_gen=1 gfn=1048576 role=14212 root_count=0 unsync=0 created=1"),
        ("kvm_mmu_get_page", "new sp gfn 0 4 q0 direct --x !pge nxe root 0 sync"),
        ("fast_page_fault", "vcpu_id=0 cr2_or_gpa=4198400 error_code=7 sptep=1 old_spte=1 new_spte=3 ret=-1"),
        ("zap_oldest_ret", "__probe_func=1 __probe_ret_ip=2 ret=21"),
        ("kvm_entry", "vcpu 0, rip 0x2000 intr_info 0x00000000 error_code 0x00000000"),
        ("kvm_entry", "vcpu 0, rip 0x2000 intr_info 0x80000b0e error_code 0x00000002[immediate exit]"),
        (
            "kvm_exit",
            "vcpu 0 reason npf rip 0x2000 info1 0x0000000100000014 info2 0x0000000000002000 intr_info 0x00000000 \
             error_code 0x00000000 requests 0x0000000000000040",
        ),
        ("kvm_mmu_spte_requested", "gfn 100 pfn 1360cd level 1 access f"),
        ("kvm_mmu_spte_requested", "gfn=256 pfn=1269965 level=1 access=15"),
        ("kvm_mmu_get_page", "sp gen 0 gfn 0 l3 8-byte q0 direct rwux nxe ad root 0 sync new"),
        ("set_memslot", "(kvm_set_memslot+0x0/0x680 [kvm]) change=2325896"),
    ];

    #[test]
    fn text_event_text_is_the_identity() {
        for (name, text) in LINES {
            let mut event = Event::default();
            assert_eq!(event.read(name.as_bytes(), text.as_bytes()), Outcome::Known, "{name}: {text}");
            let mut out = Vec::new();
            event.write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), text);
        }
    }

    #[test]
    fn fields_have_names() {
        let (name, text) = LINES[6];
        let mut event = Event::default();
        assert_eq!(event.read(name.as_bytes(), text.as_bytes()), Outcome::Known, "{name}: {text}");
        assert_eq!(
            (event.number("gva"), event.number("new"), event.number("none")),
            (Some(0x0040_1000), Some(0x01b2_9025), None)
        );
        assert_eq!(event.text("error_code"), Some(&b"P|W|U"[..]));
    }

    #[test]
    fn other_events_are_opaque_and_broken_ones_are_said_to_be() {
        let mut event = Event::default();
        assert_eq!(event.read(b"sched_switch", b"anything"), Outcome::Opaque);
        for (name, text) in LINES {
            let broken = format!("?{text}");
            let mut event = Event::default();
            assert_eq!(event.read(name.as_bytes(), broken.as_bytes()), Outcome::NotUnderstood, "{name}: {broken}");
        }
    }
}
