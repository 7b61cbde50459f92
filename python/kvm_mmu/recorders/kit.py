"""The recording kit: a shell script that records on a host what a replay or an analysis of stalls needs, with what each
line is for.

Owns: which events and kprobes a recording must have, and the facts of the host that no event shows. The script uses
tracefs (or trace-cmd) and nothing else. It records into an instance of its own (`instances/kvm_mmu`), so that buffer,
clock and events of whoever else traces stay as they are, and takes the instance and its kprobes away at the end. A
kernel without a function or event is told about it and recorded without.
"""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """A tracepoint or a group of them."""

    name: str
    why: str


class Probe(NamedTuple):
    """A kprobe (`p`) or return probe (`r`) on a function of module kvm; `$argN` and `$retval` are the kernel's.

    `other` is what later kernels call the function. One that begins with `=` is the kernel's own, not the module's.
    """

    name: str
    kind: str
    function: str
    fields: str
    why: str
    filter: str = ""
    other: str = ""

    @property
    def definition(self) -> str:
        """As tracefs takes it."""
        function = self.function[1:] if self.function.startswith("=") else f"kvm:{self.function}"
        return " ".join(filter(None, (f"{self.kind}:lab/{self.name}", function, self.fields)))


REPLAY_EVENTS = (
    Event("kvmmmu", "what the MMU did: the outputs that a replay predicts, and the requested mappings"),
    Event("kvm/kvm_page_fault", "the faults: inputs of a replay"),
    Event("kvm/kvm_entry", "when a vCPU enters the guest, and which task is which vCPU"),
    Event("kvm/kvm_smm_transition", "which address space a vCPU sees"),
    Event("kvm/kvm_unmap_hva_range", "host memory that goes away"),
    Event("kvm/kvm_set_spte_hva", "host memory that changes its page (up to 6.1)"),
    Event("kvm/kvm_age_hva", "host memory that is aged (only accessed bits)"),
)
REPLAY_PROBES = (
    Probe("set_memslot", "p", "kvm_set_memslot", "change=$arg4:s32", "input: a memslot update begins"),
    Probe(
        "swap_memslots", "p", "kvm_swap_active_memslots", "as_id=$arg2:s32", "input: in which address space"
    ),
    Probe("mmu_load", "p", "kvm_mmu_load", "", "input: a vCPU gets a root"),
    Probe("free_roots", "p", "kvm_mmu_free_roots", "mask=$arg3:x64", "input: a vCPU gives up roots"),
    Probe("reset_context", "p", "kvm_mmu_reset_context", "", "input: a vCPU changes its paging mode"),
    Probe("free_obsolete_roots", "p", "kvm_mmu_free_obsolete_roots", "", "input: a root became obsolete"),
    Probe(
        "zap_oldest", "p", "kvm_mmu_zap_oldest_mmu_pages", "nr=$arg2:u64", "input: reclaim and shrinker scans"
    ),
    Probe(
        "dirty_masked",
        "p",
        "kvm_arch_mmu_enable_log_dirty_pt_masked",
        "gfn_offset=$arg3:x64 mask=$arg4:x64",
        "input: pages whose dirty log was read",
    ),
    Probe("mmu_unload", "p", "kvm_mmu_unload", "", "input: the page tables go when the VM ends"),
    Probe(
        "slot_clear_dirty", "p", "kvm_mmu_slot_leaf_clear_dirty", "", "input: a dirty log with PML goes on"
    ),
    Probe(
        "zap_collapsible",
        "p",
        "kvm_mmu_zap_collapsible_sptes",
        "",
        "input: a dirty log goes off",
        other="kvm_mmu_recover_huge_pages",
    ),
    Probe("cond_resched_wr", "p", "=__cond_resched_rwlock_write", "", "input: a walk offers the lock"),
    Probe("memslots_updated", "p", "kvm_arch_memslots_updated", "gen=$arg2:x64", "output: the generation"),
    Probe("invalidate_mmio", "p", "kvm_mmu_invalidate_mmio_sptes", "gen=$arg2:x64", "output: its wrap test"),
    Probe("flush_shadow_memslot", "p", "kvm_arch_flush_shadow_memslot", "", "output: a slot is removed"),
    Probe("zap_all_fast_enter", "p", "kvm_mmu_zap_all_fast", "", "output: everything is invalidated"),
    Probe(
        "zap_oldest_ret", "r", "kvm_mmu_zap_oldest_mmu_pages", "ret=$retval:u64", "output: reclaimed pages"
    ),
    Probe("commit_zap", "p", "kvm_mmu_commit_zap_page.part.0", "", "output: zapped pages are freed"),
    Probe("change_mmu_pages", "p", "kvm_mmu_change_mmu_pages", "goal=$arg2:u64", "output: the page limit"),
    Probe(
        "page_zap_pte",
        "p",
        "mmu_page_zap_pte",
        "sptep=$arg3:x64 spte=+0($arg3):x64",
        "output: the entries of zapped pages, those that are not empty",
        "spte != 0 && spte != 0x8000000000000000",
    ),
    Probe("make_mmio_spte", "p", "make_mmio_spte", "gfn=$arg2:x64 access=$arg3:x32", "output: an MMIO SPTE"),
    Probe("make_mmio_spte_ret", "r", "make_mmio_spte", "spte=$retval:x64", "output: its value"),
    Probe(
        "try_unsync",
        "p",
        "mmu_try_to_unsync_pages",
        "gfn=$arg3:x64 can_unsync=$arg4:u8 prefetch=$arg5:u8",
        "output: a writable leaf is made",
    ),
    Probe("try_unsync_ret", "r", "mmu_try_to_unsync_pages", "ret=$retval:s32", "output: what came of it"),
    Probe(
        "unprotect_page_ret",
        "r",
        "kvm_mmu_unprotect_page",
        "ret=$retval:u8",
        "output: a table lost its shadow",
    ),
    Probe("flush_remote_tlbs", "p", "kvm_flush_remote_tlbs", "", "output (TDP MMU): every TLB is flushed"),
    Probe(
        "flush_remote_tlbs_range",
        "p",
        "kvm_flush_remote_tlbs_with_address",
        "gfn=$arg2:x64 pages=$arg3:u64",
        "output (TDP MMU): a range is flushed",
        other="kvm_flush_remote_tlbs_range",
    ),
)
_FOR_STALLS = ("set_memslot", "swap_memslots", "memslots_updated", "change_mmu_pages", "zap_all_fast_enter")
STALL_EVENTS = (
    Event("kvm/kvm_entry", "a vCPU makes progress again"),
    Event("kvm/kvm_exit", "a vCPU leaves the guest, and why"),
    Event("kvm/kvm_page_fault", "it left for a page fault"),
    Event("kvm/kvm_userspace_exit", "it went to the VMM"),
    Event("kvmmmu/kvm_mmu_prepare_zap_page", "a page is zapped"),
    Event("kvmmmu/kvm_mmu_zap_all_fast", "everything is invalidated"),
    Event("kvmmmu/kvm_mmu_invalidate_zap_all_pages", "everything is invalidated (5.0)"),
    Event("kvmmmu/kvm_mmu_split_huge_page", "the dirty log splits a large page"),
    Event("kvm/kvm_unmap_hva_range", "host memory goes away"),
)
STALL_PROBES = (
    Probe(
        "set_memory_region",
        "p",
        "__kvm_set_memory_region",
        "slot=+0($arg2):u32 flags=+4($arg2):x32 gpa=+8($arg2):x64 size=+16($arg2):x64",
        "a memslot operation begins, and of which slot",
        other="kvm_set_memory_region",
    ),
    Probe(
        "set_memory_region_ret",
        "r",
        "__kvm_set_memory_region",
        "ret=$retval:s32",
        "the memslot operation is over, or was refused",
        other="kvm_set_memory_region",
    ),
    *(probe for probe in REPLAY_PROBES if probe.name in (*_FOR_STALLS, "zap_oldest", "zap_oldest_ret", "commit_zap")),
    next(probe for probe in REPLAY_PROBES if probe.name == "dirty_masked"),
    Probe("set_memslot_ret", "r", "kvm_set_memslot", "", "the memslot update is over"),
    Probe("zap_all_fast_ret", "r", "kvm_mmu_zap_all_fast", "", "everything is invalidated now"),
    Probe("slot_wrprot", "p", "kvm_mmu_slot_remove_write_access", "start_level=$arg3:s32", "a dirty log goes on"),
    Probe("slot_wrprot_ret", "r", "kvm_mmu_slot_remove_write_access", "", "its slot is write-protected"),
    Probe("zap_collapsible", "p", "kvm_mmu_zap_collapsible_sptes", "", "a dirty log goes off"),
    Probe("zap_collapsible_ret", "r", "kvm_mmu_zap_collapsible_sptes", "", "its small pages are gone"),
    Probe("flush_remote_tlbs", "p", "kvm_flush_remote_tlbs", "", "the end of a dirty-log step"),
)  # fmt: skip
PURPOSES = {"replay": (REPLAY_EVENTS, REPLAY_PROBES), "stalls": (STALL_EVENTS, STALL_PROBES)}

_HEAD = {
    "replay": """\
#!/bin/sh
# Records what `kvm-mmu trace replay` needs. Run as root: sh record.sh [SECONDS [OUTPUT]]; Ctrl-C ends it early.
# Start it before the VM starts. The VM's own operations (memslots with their addresses, vCPUs) are in no event: the VMM
# must write them to trace_marker of this script's instance (docs: Replay a recording). Without these marks there is no
# replay; summary, decode, stalls and export do not need them.
# Printed by `kvm-mmu trace kit`; read it before you run it.
""",
    "stalls": """\
#!/bin/sh
# Records what `kvm-mmu trace stalls` needs. Run as root: sh record.sh [SECONDS [OUTPUT]]; Ctrl-C ends it early.
# Printed by `kvm-mmu trace kit --for stalls`; read it before you run it.
""",
}

_SETUP = """\
set -eu
seconds=${1:-10}
output=${2:-trace.txt}
T=${TRACEFS:-/sys/kernel/tracing}                       # where the kernel shows its trace
[ -e "$T/kprobe_events" ] || T=/sys/kernel/debug/tracing
[ -e "$T/kprobe_events" ] || { echo "no tracefs: mount -t tracefs tracefs /sys/kernel/tracing" >&2; exit 2; }
I=$T/instances/${INSTANCE:-kvm_mmu}                     # a buffer of its own: nobody else's trace is touched
[ ! -e "$I" ] || { echo "$I is there: another recording runs, or was killed (then: rmdir $I)" >&2; exit 2; }
cpus=$(getconf _NPROCESSORS_ONLN)
kb=${BUFFER_KB:-$((1048576 / cpus < 65536 ? 1048576 / cpus : 65536))}   # a CPU; 1 GiB in all: lost events spoil a trace
"""

_PROBE = """\
probes=""
probe() {    # NAME KIND FUNCTION FIELDS WHY: on the module's function, or on that of a kernel with kvm built in
    for name in $3; do for function in "kvm:$name" "$name"; do
        case "$function" in kvm:=*) continue;; esac    # a function of the kernel, not of the module
        if echo "$2:lab/$1 ${function#=} $4" >> "$T/kprobe_events" 2>/dev/null && [ -e "$T/events/lab/$1/enable" ]; then
            probes="$probes $1"
            return
        fi
    done; done
    echo "no probe $1 here ($5)" >&2
}
drop_probes() { for p in $probes; do echo "-:lab/$p" >> "$T/kprobe_events" || true; done; }
"""

_TRACEFS = """\
event() {    # NAME: switch on an event or a group of them
    [ -e "$I/events/$1/enable" ] || { echo "no $1 here" >&2; return 0; }
    echo 1 > "$I/events/$1/enable"
}
undo() {    # the instance first: a kprobe that somebody has on cannot be taken away
    [ ! -e "$I" ] || { echo 0 > "$I/tracing_on"; echo 0 > "$I/events/enable"; rmdir "$I"; }
    drop_probes
}
trap undo EXIT
trap 'exit 130' INT TERM
mkdir "$I"
echo 0 > "$I/tracing_on"                                # quiet while it is set up
echo "$kb" > "$I/buffer_size_kb"                        # KiB a CPU
echo mono > "$I/trace_clock"                            # one clock for all CPUs
echo 1 > "$I/options/record-tgid" 2>/dev/null || true   # the process of a task: tells VMs apart
"""

_RECORD = """\
trap : INT                                              # Ctrl-C ends it, not the script
echo 1 > "$I/tracing_on"; sleep "$seconds" || true; echo 0 > "$I/tracing_on"    # record
trap 'exit 130' INT
cat "$I/trace" > "$output"                              # the text
lost=$(grep -c 'LOST' "$output" || true)
[ "$lost" = 0 ] || echo "$lost places with lost events: record less or with a larger BUFFER_KB" >&2
"""

_HOST = """\
# facts of the host that no event shows
S=${SYS_MODULE:-/sys/module}
C=${CPUINFO:-/proc/cpuinfo}
p() { cat "$S/$1/parameters/$2" 2>/dev/null || echo "$3"; }
bit() { case "$1" in Y|1|force|auto) echo 1;; *) echo 0;; esac; }
release=${RELEASE:-$(uname -r)}
bits=$(sed -n 's/^address sizes.*: \\([0-9]*\\) bits physical.*/\\1/p' "$C" | head -n 1)
la57=$(grep -qw la57 "$C" && echo 1 || echo 0)
case "$release" in
    5.[0-4].*) l1tf=1;;                                 # these kernels have the mask on every CPU
    *) l1tf=$(grep '^bugs' "$C" | grep -qw l1tf && echo 1 || echo 0);;
esac
mmu=shadow
[ "$(bit "$(p kvm_amd npt N)")" = 0 ] || mmu=npt
[ "$(bit "$(p kvm_intel ept N)")" = 0 ] || mmu=ept
tdp_mmu=$(bit "$(p kvm tdp_mmu N)")
family=ept_noad
[ "$(bit "$(p kvm_intel eptad N)")" = 0 ] || family=ept_ad
{
    printf '{"kernel": "%s", "release": "%s", "mmu": "%s", ' "${release%%-*}" "$release" "$mmu"
    printf '"tdp_mmu": %s, "phys_bits": %s, "la57": %s, "l1tf_mask": %s, ' "$tdp_mmu" "${bits:-40}" "$la57" "$l1tf"
    [ "$mmu" != ept ] || printf '"family": "%s", "pml": %s, ' "$family" "$(bit "$(p kvm_intel pml N)")"
    printf '"nx_huge_pages": %s, ' "$(bit "$(p kvm nx_huge_pages N)")"
    printf '"eager_page_split": %s, ' "$(bit "$(p kvm eager_page_split Y)")"
    printf '"mmio_caching": %s}\\n' "$(bit "$(p kvm mmio_caching Y)")"
} > "$(dirname "$output")/host.json"                    # beside the trace: decode and replay read it
"""


def script(variant: str = "tracefs", purpose: str = "replay") -> str:
    """The script; `variant` is `tracefs` or `trace-cmd`, `purpose` one of `PURPOSES`."""
    events, probes = PURPOSES[purpose]
    is_trace_cmd = variant == "trace-cmd"
    lines = [_HEAD[purpose] + _SETUP + _PROBE]
    lines.append("trap drop_probes EXIT\ntrap 'exit 130' INT TERM\n" if is_trace_cmd else _TRACEFS)
    lines.append("# kprobes; one that this kernel does not have is left out and said so")
    for one in probes:
        functions = f"'{one.function} {one.other}'" if one.other else one.function
        lines.append(f"probe {one.name} {one.kind} {functions} '{one.fields}' '{one.why}'")
    lines.append("")
    lines.extend(_by_trace_cmd(events, probes) if is_trace_cmd else _by_tracefs(events, probes))
    if not is_trace_cmd:
        lines.append("\n" + _RECORD.rstrip())
        return "\n".join(lines) + "\n"
    lines.append(
        "\ntrap : INT                                              # Ctrl-C ends the recording, not the script"
    )
    lines.append('trace-cmd record "$@" -o "$output.dat" sleep "$seconds" || true     # record')
    lines.append(
        "# -R: fields, not the role text of an old plugin; each line begins with the name of the instance\n"
        'trace-cmd report -R -i "$output.dat" | sed "s/^ *${I##*/}: //" > "$output"'
    )
    return "\n".join(lines) + "\n"


def _by_tracefs(events: tuple[Event, ...], probes: tuple[Probe, ...]) -> list[str]:
    lines = [
        f'[ ! -e "$I/events/lab/{one.name}/filter" ] || echo \'{one.filter}\' > "$I/events/lab/{one.name}/filter"'
        for one in probes
        if one.filter
    ]
    lines.append('for p in $probes; do event "lab/$p"; done')
    lines.append("\n# tracepoints")
    lines.extend(f"event {one.name:<40} # {one.why}" for one in events)
    lines.append("\n" + _HOST.rstrip())
    return lines


def _by_trace_cmd(events: tuple[Event, ...], probes: tuple[Probe, ...]) -> list[str]:
    lines = [
        'set -- -B "${I##*/}" -C mono -b "$kb"                       # its own instance, one clock, KiB a CPU'
    ]
    lines.append(
        'event() { if [ -e "$T/events/$1" ]; then echo "-e $2"; else echo "no $1 here" >&2; fi; }   # one that is there'
    )
    for one in events:
        option = f"$(event {one.name} {one.name.replace('/', ':')})"
        lines.append(f'set -- "$@" {option}   # {one.why}')
    filters = {one.name: one.filter for one in probes if one.filter}
    lines.append("for p in $probes; do")
    lines.append('    set -- "$@" -e "lab:$p"')
    lines.extend(f'    [ "$p" != {name} ] || set -- "$@" -f \'{text}\'' for name, text in filters.items())
    lines.append("done")
    lines.append("\n" + _HOST.rstrip())
    return lines
