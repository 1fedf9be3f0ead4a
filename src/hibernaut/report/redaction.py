# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of `inspect` without what names a person or a machine, for bug reports.

What stays is chosen by a list, not what goes: a parameter of the command line that the list lacks loses its value.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from hibernaut.report.documents import InspectDocument, ListedProcessDocument, MachineIdentityDocument

__all__ = ["redacted_inspect_document"]

MASK = "[left out]"
FILE = "IMAGE"
BUILDER = re.compile(r"\([^()\s]*@[^()]*\)")
"""User and host that built the kernel, in its banner."""
KEPT_NAMES = (
    "acpi acpi_osi acpi_sleep apparmor console debug debug_pagealloc earlyprintk fbcon hibernate hugepages "
    "hugepagesz hugetlb_free_vmemmap idle init_on_alloc init_on_free initcall_debug intel_idle.max_cstate "
    "intel_iommu iommu kasan kfence.sample_interval kvm.nx_huge_pages log_buf_len loglevel lsm max_loop maxcpus "
    "mce mem mem_encrypt mem_sleep_default memmap memory_corruption_check memtest mitigations mminit_loglevel "
    "module.sig_enforce no5lvl no_console_suspend no_timer_check noapic noapictimer noefi nohibernate nokaslr "
    "nolapic nomodeset nopcid nopti noresume nosmap nosmep nosmp nosmt nox2apic nr_cpus numa nvme.noacpi "
    "page_alloc.shuffle page_owner page_poison panic pci pcie_aspm pm_debug_messages pti quiet random.trust_cpu "
    "reserve resume_offset resumedelay resumewait ro rodata rootdelay rootwait rw secretmem.enable security "
    "single slab_nomerge slub_debug spectre_v2 splash stack_depot_disable swiotlb systemd.show_status "
    "test_suspend transparent_hugepage tsc vmalloc vsyscall x2apic_phys zswap.compressor zswap.enabled "
    "zswap.max_pool_percent zswap.zpool "
)
"""Parameters of the command line that neither name a machine nor a person, whatever their value."""
ALL_KEPT = frozenset(KEPT_NAMES.split())
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.,:+%!$@-]{1,40}")
THREAD = re.compile(r"[A-Za-z_][A-Za-z0-9_/:-]*(?<!-manager)")
"""A kernel thread that is not named like an address; NFS has one that is named `SERVER-manager`."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def redacted_inspect_document(document: InspectDocument, name: str) -> InspectDocument:
    """Return the document of an inspection without what names a person or a machine.

    Args:
        document: the document.
        name: name of the file, which problems and remarks have.
    """
    found = document.copy()
    found["remarks"] = [remark.replace(name, FILE) for remark in document["remarks"]]
    found["problems"] = [
        {
            "what": problem["what"].replace(name, FILE),
            "where": problem["where"] and problem["where"].replace(name, FILE),
        }
        for problem in document["problems"]
    ]
    found["codec"] = [{**one, "file": one["file"] and PurePath(one["file"]).name} for one in document["codec"]]
    if "machine" in document:
        found["machine"] = _machine(document["machine"])
    return found


def _machine(machine: MachineIdentityDocument) -> MachineIdentityDocument:
    found = machine.copy()
    kernel = found["kernel"] = machine["kernel"].copy()
    if kernel["banner"] is not None:
        kernel["banner"] = BUILDER.sub(f"({MASK})", kernel["banner"])
    if machine["command_line"] is not None:
        found["command_line"] = " ".join(map(_parameter, machine["command_line"].split()))
    for key in ("hostname", "domain", "machine_id", "zone", "network", "log"):
        found[key] = None
    left_out = ["builder", "hostname", "domain", "machine_id", "command_line", "zone", "network", "log"]
    if machine["swap"] is not None:
        found["swap"] = [{**one, "path": None} for one in machine["swap"]]
    if machine["mounts"] is not None:
        found["mounts"] = [{**one, "path": None, "source": None} for one in machine["mounts"]]
    left_out += ["swap.path", "mounts"]
    if "processes" in machine:
        processes = machine["processes"]
        found["processes"] = None if processes is None else [_process(one) for one in processes]
        left_out.append("processes")
    found["left_out"] = left_out
    return found


def _parameter(parameter: str) -> str:
    """Return a parameter of the command line, its value only where the list has the name and the value is plain."""
    name, equals, value = parameter.partition("=")
    if name in ALL_KEPT:
        return parameter if not equals or PLAIN_VALUE.fullmatch(value) else f"{name}={MASK}"
    return f"{name}={MASK}" if equals and NAME.fullmatch(name) else MASK


def _process(process: ListedProcessDocument) -> ListedProcessDocument:
    """Return a process without its arguments and its user; its name only if it is a kernel thread."""
    name = process["name"] if process["kernel"] and THREAD.fullmatch(process["name"] or "") else None
    return {
        **process,
        "uid": None,
        "name": name,
        "arguments": None,
        "arguments_cut": False,
    }
