"""`kvm-mmu trace`: read, explain, strip and replay recordings; the kit that records them.

Owns the options and the exit status: 0 equal (or nothing to compare), 1 a difference, 2 an input that cannot
be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_mmu.cli import trace_diff, trace_fleet
from kvm_mmu.cli.words import YES_NO
from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.terminal import passing
from kvm_mmu.trace.analysis.operation_table import SORTS
from kvm_mmu.trace.replay.engine import BACKENDS
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.opened import open_recording
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.stripping import is_stripped
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text import recordings
from kvm_mmu.trace.text.line import nanoseconds, parse_line
from kvm_mmu.trace.text.recordings import SAMPLE
from kvm_mmu.trace.text.source import display_name, iter_chunks, lines_in, read_lines
from kvm_mmu.trace.text.window import Window
from kvm_mmu.view.out_folder import OutFolder
from kvm_mmu.words.bits import FAMILIES

if TYPE_CHECKING:
    from kvm_mmu.trace.analysis.explain import Explainer


#: Threads that read a text at most.
JOBS_MAX = 256


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` and its commands."""
    parser = subparsers.add_parser(
        "trace",
        help="real ftrace recordings: sample, summary, decode, stalls, export, kit, strip, replay, diff",
    )
    commands = parser.add_subparsers(dest="trace_command", required=True, metavar="COMMAND")
    _add_replay(commands)
    _add_strip(commands)
    _add_summary(commands)
    _add_decode(commands)
    trace_diff.add_parser(commands)
    _add_sample(commands)
    _add_kit(commands)
    _add_stalls(commands)
    _add_export(commands)
    _add_fidelity(commands)
    _add_evidence(commands)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay", help="drive the model with a recording's inputs and predict its outputs"
    )
    parser.add_argument("file", metavar="FILE", help="ftrace text, .gz or .xz, - for stdin")
    parser.add_argument("--kernel", help="kernel profile; without it the one of the host facts")
    parser.add_argument(
        "--host", metavar="FILE|JSON", help="facts of the host; they win over the trace's own"
    )
    parser.add_argument(
        "--ops", metavar="OPS", help="ops.jsonl of the recorder (full text of shortened markers)"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="the model to drive (auto: the core)",
    )
    parser.add_argument(
        "--emit", action="store_true", help="print each predicted line after its cause's line number"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run_replay)


def _add_strip(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("strip", help="print the recording without its outputs")
    parser.add_argument("file", metavar="FILE", help="ftrace text, .gz or .xz, - for stdin")
    parser.add_argument(
        "--ops", metavar="OPS", help="ops.jsonl of the recorder (full text of shortened markers)"
    )
    parser.add_argument(
        "--host", metavar="FILE|JSON", help="facts of the host; without it host.json beside the trace"
    )
    parser.add_argument(
        "--answers",
        choices=("auto", "yes", "no"),
        default="auto",
        help="add what host memory answered (default: auto)",
    )
    parser.set_defaults(run=run_strip)


def _add_summary(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "summary", help="what is in a trace: events, kernel, pages, generations, MMIO"
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="ftrace text, .gz or .xz, - for stdin; or a fleet: a folder, or a pattern",
    )
    parser.add_argument("--strict", action="store_true", help="a line that is not understood is an error")
    trace_fleet.add_arguments(parser, "summary")
    _add_window(parser)
    parser.add_argument(
        "--sort",
        choices=("count", "name"),
        default="count",
        help="order of the events (default: count, the most frequent first)",
    )
    _add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run_summary)


def _add_decode(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("decode", help="the same text with each role, SPTE and MMIO SPTE explained")
    parser.add_argument("file", metavar="FILE", help="ftrace text, .gz or .xz, - for stdin")
    parser.add_argument(
        "--kernel",
        help="whose layout; without it the kernel of the host facts, or the one its wording gives away",
    )
    parser.add_argument(
        "--host", metavar="FILE|JSON", help="facts of the host (kernel, mmu, phys_bits, l1tf_mask)"
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="the masks; without it those of the host facts, or those the trace shows",
    )
    parser.add_argument("--phys-bits", type=int, metavar="N", help="physical address width of the host")
    parser.add_argument("--l1tf", choices=tuple(YES_NO), default="auto", help="MMIO SPTEs have the L1TF mask")
    _add_window(parser)
    parser.add_argument(
        "--sort",
        choices=("line", "time", "task", "event"),
        default="line",
        help="order of the lines (default: line, as they stand; the others keep all of them in memory)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line that has words in it")
    parser.set_defaults(run=run_decode)


def _add_kit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("kit", help="print the shell script that records what a replay needs")
    parser.add_argument(
        "variant", nargs="?", choices=("tracefs", "trace-cmd"), default="tracefs", help="how it records"
    )
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=("replay", "stalls"),
        default="replay",
        help="everything a replay needs, or only what stalls need (default: replay)",
    )
    parser.set_defaults(run=run_kit)


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "sample", help="a recording that ships with the package: its text, or its files into a folder"
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default=SAMPLE,
        help=f"which (default: {SAMPLE}; --list names them)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="write trace.txt, host.json and ops.jsonl there: what replay and decode read beside the trace",
    )
    parser.add_argument("--list", action="store_true", help="list the recordings instead")
    parser.set_defaults(run=run_sample)


def _add_stalls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stalls", help="which MMU work kept vCPUs from making progress, and for how long"
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="ftrace text, .gz or .xz, - for stdin; or a fleet: a folder, or a pattern",
    )
    trace_fleet.add_arguments(parser, "stalls")
    _add_window(parser)
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default="total",
        metavar="COLUMN",
        help=f"the largest first of: {', '.join(SORTS)} (default: total)",
    )
    _add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, nanoseconds")
    parser.set_defaults(run=run_stalls)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="to Chrome JSON (Perfetto), Parquet or CSV")
    parser.add_argument("file", metavar="FILE", help="ftrace text, .gz or .xz, - for stdin")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--chrome", metavar="OUT.json", help="lanes per vCPU and per task; - for stdout")
    target.add_argument(
        "--parquet",
        metavar="DIR",
        help="one file per event (needs pyarrow or polars, and memory for the whole trace)",
    )
    target.add_argument(
        "--csv",
        metavar="DIR",
        help="one file per event (needs memory for the whole trace)",
    )
    parser.add_argument("--json", action="store_true", help="print the written files as JSON")
    parser.set_defaults(run=run_export)


def _add_fidelity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fidelity", help="replay every recording of a folder, print the table of kinds"
    )
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="folders KERNEL/SCENARIO with trace.txt.xz in them"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="the model to drive (auto: the core)",
    )
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument(
        "--keep",
        action="store_true",
        help="write the counts of a recording that is equal beside it (outputs.json)",
    )
    counts.add_argument(
        "--kept", action="store_true", help="print the table of the kept counts, without a replay"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.set_defaults(run=run_fidelity)


def _add_evidence(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "evidence", help="print which kernel, MMU and host is held against what, of kept counts"
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="folders KERNEL/SCENARIO with recordings and outputs.json in them",
    )
    parser.add_argument("--vectors", metavar="LIST", type=Path, help="the list of equal vector files")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.set_defaults(run=run_evidence)


def run(args: argparse.Namespace) -> int:
    """Run the chosen command."""
    result = args.run(args)
    return int(result)


def run_replay(args: argparse.Namespace) -> int:
    """`kvm-mmu trace replay`"""
    host = None if args.host is None else host_facts.facts_from(args.host)

    def tell(prediction: Prediction) -> None:
        sys.stdout.write(f"{prediction.line} {prediction.event}: {prediction.body}\n")

    report = replay(
        args.file,
        kernel=args.kernel,
        host=host,
        backend=args.backend,
        operations=args.ops,
        emit=tell if args.emit else None,
        keep=False,
    )
    if args.emit:
        for key, value in report.inferred.items():
            sys.stderr.write(f"{report.how_known(key)}: {key} = {value}\n")
        sys.stderr.writelines(f"kvm-mmu trace replay: {note}\n" for note in report.notes)
        return 0
    sys.stdout.write((json.dumps(report.as_json()) if args.json else report.as_text()) + "\n")
    return 0 if report.is_equal else 1


def run_strip(args: argparse.Namespace) -> int:
    """`kvm-mmu trace strip`"""
    host = None if args.host is None else host_facts.facts_from(args.host)
    answers = None if args.answers == "auto" else args.answers == "yes"
    with open_recording(args.file, host, args.ops, answers=answers) as opened:
        if opened.is_stripped:
            raise TraceError(f"{opened.name}: is stripped already")
        passing(sys.stdout).writelines(opened.stripped_text())
    return 0


def run_summary(args: argparse.Namespace) -> int:
    """`kvm-mmu trace summary`"""
    if trace_fleet.is_fleet(args):
        _refuse_of_fleet(args, args.strict)
        return trace_fleet.run(args, "summary", args.jobs)
    from kvm_mmu.trace.analysis.summary import summarize

    found = summarize(args.file, strict=args.strict, only=_window(args), jobs=args.jobs or 1)
    sys.stdout.write((json.dumps(found.as_json()) if args.json else found.as_text(args.sort)) + "\n")
    return 0


def run_decode(args: argparse.Namespace) -> int:
    """`kvm-mmu trace decode`"""
    from kvm_mmu.trace.analysis.explain import INDENT, as_json
    from kvm_mmu.trace.analysis.explain_host import host_explainer

    only = _window(args)
    name = display_name(args.file)
    chunks = iter_chunks(args.file)
    looked_at: list[bytes] = []
    stream = lines_in(_noted(chunks, looked_at))
    first = next(stream, None)
    if first is None:
        raise TraceError(f"{name}: empty: expected ftrace text")
    given = {"kernel": args.kernel, "family": args.family, "phys_bits": args.phys_bits}
    given["l1tf_mask"] = YES_NO[args.l1tf]
    facts = _facts(args.file, args.host, [first])
    explain, lines, notes = host_explainer(chain([first], stream), facts, given, name)
    sys.stderr.writelines(f"kvm-mmu trace decode: {note}\n" for note in notes)
    out = passing(sys.stdout)
    if only is None and args.sort == "line" and not args.json:
        out.writelines(explain.written(chain(looked_at, chunks)))
        return _told(explain)
    explained = explain.numbered(lines, only)
    if args.sort != "line":
        explained = iter(sorted(explained, key=lambda one: _place(one[1], args.sort)))
    for number, text, words in explained:
        if args.json:
            if words:
                sys.stdout.write(json.dumps(as_json(number, text, words)) + "\n")
            continue
        out.write(text + "\n")
        out.writelines(f"{INDENT}{word}\n" for word in words)
    return _told(explain)


def _noted(chunks: Iterator[bytes], seen: list[bytes]) -> Iterator[bytes]:
    """The pieces as they come, each noted."""
    for chunk in chunks:
        seen.append(chunk)
        yield chunk


def _told(explain: Explainer) -> int:
    """Say what could not be explained, and what contradicts; the exit status."""
    if explain.unread:
        kinds = ", ".join(f"{event} {count}" for event, count in sorted(explain.unread.items()))
        sys.stderr.write(
            f"kvm-mmu trace decode: not explained, in a wording that is not known ({kinds}): a text by the KVM "
            "plugin of libtraceevent? Report raw fields: trace-cmd report -R\n"
        )
    wrong = sum(explain.contradicted.values())
    if wrong and explain.first_contradiction is not None:
        line, text = explain.first_contradiction
        sys.stderr.write(
            f"kvm-mmu trace decode: {wrong} words say something else than their lines: kernel, --family, --phys-bits "
            f"or --l1tf are not those of this host; the first: line {line}: {text.strip()[:200]}\n"
        )
        return 1
    return 0


def _place(text: str, sort: str) -> tuple[str, int]:
    """Where a line comes in that order; comments come first, lines of one place stay as they are."""
    line = parse_line(text)
    if line is None:
        return "", -1
    said = {"task": line.task, "event": line.event}.get(sort, "")
    return said, nanoseconds(line.timestamp)


def run_kit(args: argparse.Namespace) -> int:
    """`kvm-mmu trace kit`"""
    from kvm_mmu.recorders.kit import script

    sys.stdout.write(script(args.variant, args.purpose))
    return 0


def run_sample(args: argparse.Namespace) -> int:
    """`kvm-mmu trace sample`"""
    if args.list:
        sys.stdout.writelines(f"{name}  {recordings.ABOUT.get(name, '')}\n" for name in recordings.names())
        return 0
    files = recordings.sample(args.name)
    if args.output is None:
        sys.stdout.write(files["trace.txt"].decode("utf-8"))
        return 0
    with OutFolder(args.output) as out:
        written = out.write(files)
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0


def run_stalls(args: argparse.Namespace) -> int:
    """`kvm-mmu trace stalls`"""
    if trace_fleet.is_fleet(args):
        _refuse_of_fleet(args)
        return trace_fleet.run(args, "stalls", args.jobs)
    from kvm_mmu.trace.analysis.stalls import stalls

    found = stalls(args.file, None, _window(args), args.sort, args.jobs or 1)
    if found.is_other_text:
        raise TraceError(f"{found.name}: no event in it: expected ftrace text")
    sys.stdout.write((json.dumps(found.as_json()) if args.json else found.as_text()) + "\n")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`kvm-mmu trace export`"""
    from kvm_mmu.trace.analysis.export import export_chrome, export_csv, export_parquet
    from kvm_mmu.view.whole_file import is_stdout

    if args.chrome is not None:
        if is_stdout(args.chrome):
            if args.json:
                raise UsageError(
                    "--json lists files on stdout, and --chrome writes there: expected one of them"
                )
            export_chrome(args.file, args.chrome)
            return 0
        written = export_chrome(args.file, args.chrome)
    elif args.parquet is not None:
        written = export_parquet(args.file, args.parquet)
    else:
        written = export_csv(args.file, args.csv)
    if args.json:
        listed = {
            "schema": "kvm-mmu/trace-export/1",
            "file": str(args.file),
            "written": [str(p) for p in written],
        }
        sys.stdout.write(json.dumps(listed) + "\n")
    else:
        sys.stdout.writelines(f"{path}\n" for path in written)
    return 0


def run_fidelity(args: argparse.Namespace) -> int:
    """`kvm-mmu trace fidelity`"""
    from kvm_mmu.trace.replay.fidelity import as_json, keep, kept_rows, markdown, rows

    found = list(kept_rows(args.folder) if args.kept else rows(args.folder, backend=args.backend))
    if args.keep:
        keep(args.folder, found)
    sys.stdout.write((json.dumps(as_json(found)) if args.json else markdown(found)) + "\n")
    return 0 if all(row.is_equal for row in found) else 1


def run_evidence(args: argparse.Namespace) -> int:
    """`kvm-mmu trace evidence`"""
    from kvm_mmu.trace.replay.evidence import as_json, evidence, markdown

    vectors = [] if args.vectors is None else read_lines(args.vectors)
    found = evidence(vectors, args.folder)
    sys.stdout.write((json.dumps(as_json(found)) if args.json else markdown(found)) + "\n")
    return 0


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="from_", metavar="S", help="no events before this second of trace time"
    )
    parser.add_argument("--to", metavar="S", help="no events after this second of trace time")
    parser.add_argument("--cpu", metavar="N[,N-M]", help="only events of these CPUs")
    parser.add_argument(
        "--vm",
        metavar="PID[,PID]",
        help="only events of these processes, or tasks where the trace names no process",
    )


def _refuse_of_fleet(args: argparse.Namespace, is_strict: bool = False) -> None:
    if is_strict or any(value is not None for value in (args.from_, args.to, args.cpu, args.vm)):
        raise UsageError(
            f"{args.file}: a fleet is read whole; expected none of --strict, --from, --to, --cpu, --vm"
        )


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=_jobs,
        metavar="N",
        help="read the text with N threads (default: 1), a fleet with N processes; the result is the same",
    )


def _jobs(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= JOBS_MAX:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected 1 to {JOBS_MAX}")
    return int(text)


def _window(args: argparse.Namespace) -> Window | None:
    return Window.of(args.from_, args.to, args.cpu, args.vm)


def _facts(path: str, option: str | None, lines: list[str]) -> dict[str, object]:
    """The host facts of a trace: what the user gave wins over its own line and over host.json beside it."""
    given = {} if option is None else host_facts.facts_from(option)
    if is_stripped(lines):
        return {
            **host_facts.parse_facts(lines[0][len(host_facts.PREFIX) :], f"{display_name(path)}:1"),
            **given,
        }
    return {**(host_facts.beside(path) or {}), **given}
