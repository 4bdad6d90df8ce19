//! The report on a guest that crashed, as text.

use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};

use vmmu::addr::Gva;
use vmmu::walk::{Access, AccessKind, WalkFailure};

use crate::arch::guest_ram::GuestRam;
use crate::decode::Gpr;
use crate::paging::Memory;
use crate::vcpu::Vcpu;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Writes the report.
pub fn crash(why: &str, vcpu: &mut Vcpu, ram: &GuestRam, memory: &Memory) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_report(&mut text, why, vcpu, ram, memory);
    text
}

fn write_report(
    text: &mut String,
    why: &str,
    vcpu: &mut Vcpu,
    ram: &GuestRam,
    memory: &Memory,
) -> fmt::Result {
    writeln!(text, "{why}")?;
    write_registers(text, vcpu)?;
    let at = vcpu.instruction_address();
    let mut bytes = [0; 15];
    let fetch = Access::new(AccessKind::Fetch, vcpu.privilege());
    match vcpu
        .translate(ram, at, fetch)
        .map(|gpa| ram.read(gpa, &mut bytes))
    {
        Some(Ok(())) => writeln!(text, "code at {at}: {bytes:02x?}")?,
        _ => writeln!(text, "code at {at}: not readable")?,
    }
    writeln!(text, "walks of the last page fault's address (cr2):")?;
    let fault = Gva::new(vcpu.vmcb.cr2);
    write_walks(
        text,
        vcpu,
        ram,
        memory,
        fault,
        Access::new(AccessKind::Read, vcpu.privilege()),
    )?;
    writeln!(text, "walks of rip:")?;
    write_walks(text, vcpu, ram, memory, at, fetch)
}

fn write_registers(text: &mut String, vcpu: &mut Vcpu) -> fmt::Result {
    for (number, name) in (0u8..).zip(NAMES) {
        let end = if number % 4 == 3 { '\n' } else { ' ' };
        write!(text, "{name:>3} {:016x}{end}", vcpu.get(Gpr(number)))?;
    }
    let state = *vcpu.state();
    let vmcb = &vcpu.vmcb;
    writeln!(
        text,
        "rip {:016x} flags {:08x} cpl {}",
        vmcb.rip, vmcb.rflags, vmcb.cpl
    )?;
    let (cr0, cr3, cr4, efer) = (
        state.cr0.bits(),
        state.cr3.get(),
        state.cr4.bits(),
        state.efer.bits(),
    );
    writeln!(
        text,
        "cr0 {cr0:x} cr2 {:x} cr3 {cr3:x} cr4 {cr4:x} efer {efer:x}",
        vmcb.cr2
    )?;
    writeln!(
        text,
        "in force: cr0 {:x} cr3 {:x} cr4 {:x} efer {:x} ncr3 {:x}",
        vmcb.cr0, vmcb.cr3, vmcb.cr4, vmcb.efer, vmcb.nested_cr3
    )?;
    for (name, segment) in [
        ("cs", vmcb.cs),
        ("ss", vmcb.ss),
        ("ds", vmcb.ds),
        ("es", vmcb.es),
        ("fs", vmcb.fs),
        ("gs", vmcb.gs),
        ("tr", vmcb.tr),
    ] {
        writeln!(
            text,
            "{name} {:04x} base {:x} limit {:x} attributes {:x}",
            segment.selector, segment.base, segment.limit, segment.attributes
        )?;
    }
    for (name, table) in [("gdt", vmcb.gdtr), ("idt", vmcb.idtr)] {
        writeln!(text, "{name} base {:x} limit {:x}", table.base, table.limit)?;
    }
    let (code, one, two) = (vmcb.exit_code, vmcb.exit_info1, vmcb.exit_info2);
    writeln!(
        text,
        "exit {code:x} info {one:x} {two:x} delivering {:x} event {:x}; the exit before: {:x}",
        vmcb.exit_int_info,
        vmcb.event,
        vcpu.exit_before()
    )
}

/// Writes the guest's walk and the processor's side by side.
fn write_walks(
    text: &mut String,
    vcpu: &mut Vcpu,
    ram: &GuestRam,
    memory: &Memory,
    gva: Gva,
    access: Access,
) -> fmt::Result {
    let (walk, result) = vcpu.probe(ram, gva, access);
    let target = result.is_ok().then(|| walk.gpa());
    let mut real = memory.walk(&vcpu.vmcb, gva, target).into_iter();
    writeln!(
        text,
        "  {:<42}the processor's tables",
        format!("{gva}: the guest's tables")
    )?;
    let mut records = walk.records();
    loop {
        let (guest, real) = (records.next(), real.next());
        if guest.is_none() && real.is_none() {
            break;
        }
        match guest {
            Some(record) => write!(
                text,
                "  {:?} at {:>10}: {:016x}  ",
                record.level,
                record.at,
                record.gpte.raw()
            )?,
            None => write!(text, "{:42}", "")?,
        }
        match real {
            Some(step) => writeln!(
                text,
                "{:?} in frame {:>7}: {:016x}",
                step.level, step.table, step.entry
            )?,
            None => writeln!(text)?,
        }
    }
    match result {
        Ok(()) => writeln!(text, "  -> {} rights {:?}", walk.gpa(), walk.rights()),
        Err(failure @ WalkFailure::Fault(_)) => writeln!(text, "  -> {failure}"),
        Err(failure) => writeln!(text, "  -> no translation: {failure}"),
    }
}
