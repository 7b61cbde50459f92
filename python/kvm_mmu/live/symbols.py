"""Symbols of a kernel and of kvm.ko: from a folder of facts, from kallsyms in the dump, from debug information.

Owns: which modules are asked (kvm, kvm_amd, kvm_intel), and the BTF of a kernel and its modules, read from its memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvm_mmu.errors import LiveError
from kvm_mmu.live.btf import Btf
from kvm_mmu.live.chains import Faults, list_nodes
from kvm_mmu.live.drgn_types import BtfTypes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import Memory

MODULES = ("kvm", "kvm_amd", "kvm_intel")
#: More than the BTF of any kernel.
MAX_BTF = 1 << 28


def facts_of(text: bytes, name: str) -> dict[str, tuple[int, int]]:
    """The symbols of a folder of facts: name to address and size.

    Raises:
        LiveError: not JSON of that form.
    """
    try:
        found = json.loads(text)
        return {
            str(key): (int(address, 16) if isinstance(address, str) else int(address), int(size))
            for key, (address, size) in found.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LiveError(
            f"{name}: expected JSON of name to [address, size] ({type(error).__name__})"
        ) from None


def register_facts(program: Any, symbols: dict[str, tuple[int, int]]) -> None:
    """Let drgn find these symbols."""
    import drgn

    made = [
        drgn.Symbol(name, address, size, drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.OBJECT)
        for name, (address, size) in symbols.items()
    ]
    program.register_symbol_finder("facts", drgn.SymbolIndex(made), enable_index=0)


def address_of(program: Any, name: str) -> int | None:
    """The address of a symbol; None where there is none."""
    try:
        return int(program.symbol(name).address)
    except (LookupError, ValueError):
        return None


def load_kernel_symbols(program: Any) -> None:
    """Let drgn find the symbols of vmlinux by the kallsyms that are in its memory, or of the running kernel.

    Raises:
        LiveError: there are none, or they are damaged.
    """
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    try:
        index = load_vmlinux_kallsyms(program)
    except Exception as error:
        raise LiveError(
            f"no kernel symbols in this dump ({type(error).__name__}): kernels before 6.0 do not say where theirs "
            "are; give the debug information (--debug vmlinux kvm.ko kvm-amd.ko)"
        ) from None
    program.register_symbol_finder("kallsyms", index, enable_index=0)


def load_kernel_types(program: Any, memory: Memory) -> BtfTypes:
    """Let drgn find the types of vmlinux by the BTF that is in its memory.

    Raises:
        LiveError: there is none, or it is damaged.
    """
    start, stop = address_of(program, "__start_BTF"), address_of(program, "__stop_BTF")
    if start is None or stop is None:
        raise LiveError(
            "this kernel carries no BTF: give its debug information (--debug vmlinux kvm.ko kvm-amd.ko)"
        )
    if not start < stop <= start + MAX_BTF:
        raise LiveError(f"BTF of vmlinux from {start:#x} to {stop:#x}: expected at most {MAX_BTF >> 20} MiB")
    return register_types(program, [Btf(memory.read(start, stop - start, "the BTF of vmlinux"), "vmlinux")])


def register_types(program: Any, images: list[Btf]) -> BtfTypes:
    """Let drgn find the types of these images, the first one first."""
    types = BtfTypes(program, images)
    program.register_type_finder("btf", types.find, enable_index=0)
    return types


def load_modules(program: Any, memory: Memory, types: BtfTypes, faults: Faults) -> None:
    """Add symbols and types of KVM's modules, where it is built as modules.

    Raises:
        LiveError: the kernel has modules and kvm is none of them, nor in the kernel.
    """
    import drgn
    from drgn.helpers.linux.kallsyms import module_kallsyms

    layout = Layout(program)
    found = _modules(program, memory, layout, faults)
    if "kvm" not in found and address_of(program, "vm_list") is None:
        raise LiveError("kvm is not loaded in this kernel: there are no VMs to look at")
    made: list[Any] = []
    for name in MODULES:
        if name in found:
            module = drgn.Object(program, program.type("struct module *"), value=found[name])
            try:
                made += module_kallsyms(module)
            except Exception as error:
                faults.add(f"symbols of {name}: {type(error).__name__}: {error}")
    program.register_symbol_finder("modules", drgn.SymbolIndex(made), enable_index=0)
    types.add(_module_types(program, memory, layout, types, faults))


def _offset(layout: Layout, structure: str, path: str) -> int:
    whole = layout.type(structure)
    found = layout._member(whole, path) if whole is not None else None
    if found is None:
        raise LiveError(f"this kernel's {structure} has no {path}")
    return found.offset


def _modules(program: Any, memory: Memory, layout: Layout, faults: Faults) -> dict[str, int]:
    head = address_of(program, "modules")
    if head is None:
        return {}
    link, name_at = _offset(layout, "struct module", "list"), _offset(layout, "struct module", "name")
    found: dict[str, int] = {}
    for node in list_nodes(memory, head, "the list of modules", faults, 1 << 16):
        address = node.address - link
        try:
            name = memory.read(address + name_at, 56, "a module's name").split(b"\0")[0].decode("latin-1")
        except LiveError as error:
            faults.add(error)
            continue
        if name in MODULES:
            found.setdefault(name, address)
    return found


def _module_types(program: Any, memory: Memory, layout: Layout, types: BtfTypes, faults: Faults) -> list[Btf]:
    head = address_of(program, "btf_modules")
    if head is None:
        return []
    link, inner = _offset(layout, "struct btf_module", "list"), _offset(layout, "struct btf_module", "btf")
    at = {name: _offset(layout, "struct btf", name) for name in ("data", "data_size", "name")}
    vmlinux = types.images[-1]
    found = []
    for node in list_nodes(memory, head, "the list of modules' types", faults, 1 << 16):
        try:
            btf = memory.number(node.address - link + inner, 8, "a module's types")
            name = memory.read(btf + at["name"], 56, "a module's name").split(b"\0")[0].decode("latin-1")
            if name not in MODULES:
                continue
            data = memory.number(btf + at["data"], 8, f"types of {name}")
            size = memory.number(btf + at["data_size"], 4, f"types of {name}")
            if size > MAX_BTF:
                raise LiveError(f"types of {name}: {size} bytes, expected at most {MAX_BTF}")
            found.append(Btf(memory.read(data, size, f"types of {name}"), name, vmlinux))
        except LiveError as error:
            faults.add(error)
    return found


def read_facts(folder: str | Path) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Read `types.btf` and `symbols.json` of a folder.

    Raises:
        LiveError: a file is missing or not readable.
    """
    try:
        return (
            (Path(folder) / "types.btf").read_bytes(),
            facts_of((Path(folder) / "symbols.json").read_bytes(), f"{folder}/symbols.json"),
        )
    except (OSError, ValueError) as error:
        raise LiveError(
            f"{folder}: {getattr(error, 'strerror', None) or error}; expected types.btf, symbols.json"
        ) from None
