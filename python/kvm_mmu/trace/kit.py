"""The recording kit: a shell script that records on a host what a replay needs, with what each line is for.

Owns: which events and kprobes a recording must have. The script only uses tracefs or trace-cmd, and undoes
what it did.
"""

from __future__ import annotations

#: (events, what they are for)
EVENTS: tuple[tuple[str, str], ...] = (
    ("kvmmmu", "what the MMU did: the outputs that a replay predicts, and the requested mappings"),
    ("kvm/kvm_page_fault", "the faults: inputs of a replay"),
    ("kvm/kvm_smm_transition", "which address space a vCPU sees"),
    ("kvm/kvm_unmap_hva_range", "host memory that goes away"),
    ("kvm/kvm_age_hva", "host memory that is aged (only accessed bits)"),
    ("kvm/kvm_entry", "which task is which vCPU"),
    ("kvm/kvm_mmio", "accesses that went to the VMM"),
)

#: (name, definition, what it is for); `$arg` needs a kernel with BTF or fixed registers
PROBES: tuple[tuple[str, str, str], ...] = (
    ("set_memslot", "p:lab/set_memslot kvm:kvm_set_memslot change=$arg4:s32", "a memslot update begins"),
    (
        "swap_memslots",
        "p:lab/swap_memslots kvm:kvm_swap_active_memslots as_id=$arg2:s32",
        "which address space",
    ),
    (
        "memslots_updated",
        "p:lab/memslots_updated kvm:kvm_arch_memslots_updated gen=$arg2:x64",
        "the new generation",
    ),
    (
        "invalidate_mmio",
        "p:lab/invalidate_mmio kvm:kvm_mmu_invalidate_mmio_sptes gen=$arg2:x64",
        "the wrap test of the generation",
    ),
    (
        "flush_shadow_memslot",
        "p:lab/flush_shadow_memslot kvm:kvm_arch_flush_shadow_memslot",
        "a slot is removed",
    ),
    (
        "zap_oldest",
        "p:lab/zap_oldest kvm:kvm_mmu_zap_oldest_mmu_pages nr=$arg2:u64",
        "reclaim and shrinker scans",
    ),
    (
        "zap_oldest_ret",
        "r:lab/zap_oldest_ret kvm:kvm_mmu_zap_oldest_mmu_pages ret=$retval:u64",
        "what reclaim got",
    ),
    (
        "commit_zap",
        "p:lab/commit_zap kvm:kvm_mmu_commit_zap_page.part.0",
        "zapped pages are flushed and freed",
    ),
    (
        "change_mmu_pages",
        "p:lab/change_mmu_pages kvm:kvm_mmu_change_mmu_pages goal=$arg2:u64",
        "the page limit",
    ),
    (
        "dirty_masked",
        "p:lab/dirty_masked kvm:kvm_arch_mmu_enable_log_dirty_pt_masked gfn_offset=$arg3:x64 mask=$arg4:x64",
        "pages whose dirty log was read",
    ),
    ("mmu_load", "p:lab/mmu_load kvm:kvm_mmu_load", "a vCPU gets a root"),
    ("free_roots", "p:lab/free_roots kvm:kvm_mmu_free_roots mask=$arg3:x64", "a vCPU gives up roots"),
    ("reset_context", "p:lab/reset_context kvm:kvm_mmu_reset_context", "a vCPU changes its paging mode"),
    (
        "free_obsolete_roots",
        "p:lab/free_obsolete_roots kvm:kvm_mmu_free_obsolete_roots",
        "a root became obsolete",
    ),
)

_HEAD = """\
#!/bin/sh
# Records what `kvm-mmu trace replay` and `kvm-mmu trace stalls` need. Run as root: sh record.sh SECONDS OUTPUT
# Printed by `kvm-mmu trace kit`; read it before you run it.
set -eu
seconds=${1:-10}
output=${2:-trace.txt}
"""

_TRACEFS = """\
T=/sys/kernel/tracing
[ -d "$T/events" ] || mount -t tracefs tracefs "$T"     # where the kernel shows its trace
undo() {
    echo 0 > "$T/tracing_on"
    echo > "$T/set_event"
    for p in $probes; do echo "-:lab/$p" >> "$T/kprobe_events" || true; done
}
probes=""
trap undo EXIT INT TERM
echo 0 > "$T/tracing_on"                                # quiet while it is set up
echo > "$T/trace"                                       # forget what was traced before
echo 65536 > "$T/buffer_size_kb"                        # 64 MiB a CPU: lost events make a trace worthless
echo mono > "$T/trace_clock"                            # one clock for all CPUs
"""

_HOST = """\
# facts of the host that no trace line shows
p() { cat "/sys/module/$1/parameters/$2" 2>/dev/null || echo "${3:-?}"; }
bit() { case "$1" in Y|1|force|auto) echo 1;; *) echo 0;; esac; }
release=$(uname -r)
bits=$(sed -n 's/^address sizes.*: \\([0-9]*\\) bits physical.*/\\1/p' /proc/cpuinfo | head -n 1)
la57=$(grep -qw la57 /proc/cpuinfo && echo 1 || echo 0)
two=$(p kvm_amd npt "$(p kvm_intel ept N)")
[ "$(bit "$two")" = 1 ] && mmu=npt || mmu=shadow
{
    printf '{"kernel": "%s", "release": "%s", "mmu": "%s", ' "${release%%-*}" "$release" "$mmu"
    printf '"tdp_mmu": %s, "phys_bits": %s, "la57": %s, ' "$(bit "$(p kvm tdp_mmu N)")" "${bits:-40}" "$la57"
    printf '"nx_huge_pages": %s, ' "$(bit "$(p kvm nx_huge_pages N)")"
    printf '"mmio_caching": %s}\\n' "$(bit "$(p kvm mmio_caching Y)")"
} > "$(dirname "$output")/host.json"
"""


def script(variant: str = "tracefs") -> str:
    """The script; `variant` is `tracefs` or `trace-cmd`."""
    return _trace_cmd() if variant == "trace-cmd" else _tracefs()


def _tracefs() -> str:
    lines = [_HEAD, _TRACEFS, "", "# kprobes; one that this kernel does not have is left out and said so"]
    for name, definition, why in PROBES:
        lines.append(f"echo '{definition}' >> \"$T/kprobe_events\" 2>/dev/null \\")
        lines.append(f'    && probes="$probes {name}" || echo "no probe {name} here" >&2   # {why}')
    lines.append("\n# tracepoints")
    lines.extend(
        f'echo 1 > "$T/events/{event}/enable" || echo "no {event} here" >&2   # {why}'
        for event, why in EVENTS
    )
    lines.append('for p in $probes; do echo 1 > "$T/events/lab/$p/enable"; done')
    lines.extend(["", _HOST])
    lines.append('echo 1 > "$T/tracing_on"; sleep "$seconds"; echo 0 > "$T/tracing_on"    # record')
    lines.append('cat "$T/trace" > "$output"                                             # the text')
    lines.append("grep -c LOST \"$output\" | sed 's/^/places with lost events: /' >&2")
    return "\n".join(lines) + "\n"


def _trace_cmd() -> str:
    lines = [_HEAD, "# kprobes; one that this kernel does not have is left out and said so", "probes=''"]
    lines.append("K=/sys/kernel/tracing/kprobe_events")
    lines.append('undo() { for p in $probes; do echo "-:lab/$p" >> "$K" || true; done; }')
    lines.append("trap undo EXIT INT TERM")
    for name, definition, why in PROBES:
        lines.append(f"echo '{definition}' >> \"$K\" 2>/dev/null \\")
        lines.append(f'    && probes="$probes {name}" || echo "no probe {name} here" >&2   # {why}')
    lines.extend(["", _HOST])
    lines.append("set -- -C mono -b 65536                                     # one clock, 64 MiB a CPU")
    lines.extend(f'set -- "$@" -e {event.replace("/", ":")}   # {why}' for event, why in EVENTS)
    lines.append('for p in $probes; do set -- "$@" -e "lab:$p"; done')
    lines.append('trace-cmd record "$@" -o "$output.dat" sleep "$seconds"     # record')
    lines.append(
        'trace-cmd report -R -i "$output.dat" > "$output"     # -R: fields, not the role text of an old plugin'
    )
    return "\n".join(lines) + "\n"
