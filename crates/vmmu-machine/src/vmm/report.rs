//! What is said about a guest that can't go on: registers, code, the walk of the guest's tables and of those in force.

use core::any::Any;
use core::fmt::Write;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use vmmu::addr::{Gva, Index, Level, Pfn};
use vmmu::host::TableMemory;
use vmmu::walk::{AccessKind, Privilege};
use vmmu_emu::{Gpr, SegmentName};

use crate::check::Observer;
use crate::vmm::runner::Runner;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Reports on a guest that can't go on.
pub fn crash<O: Observer>(runner: &mut Runner<'_, O>, why: &str) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = describe(&mut text, runner, why);
    text
}

/// Reports on a panic of the thread that runs a processor: a bug of the machine's, or of the library's.
pub fn panicked<O: Observer>(runner: &mut Runner<'_, O>, panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let why = format!(
        "the thread of processor {} panicked: {}",
        runner.number(),
        text.unwrap_or("without words")
    );
    // What the panic interrupted may be half done, and a report of it impossible.
    catch_unwind(AssertUnwindSafe(|| crash(runner, &why))).unwrap_or(why)
}

fn describe<O: Observer>(
    text: &mut String,
    runner: &mut Runner<'_, O>,
    why: &str,
) -> core::fmt::Result {
    let state = runner.processor.state().clone();
    write!(
        text,
        "{why}\n  cpu {}, rip {:#x}, rflags {:#x}, cpl {}",
        runner.number(),
        state.rip(),
        state.flags.bits(),
        state.cpl
    )?;
    for (number, name) in NAMES.iter().enumerate() {
        let separator = if number % 4 == 0 { "\n  " } else { ", " };
        write!(
            text,
            "{separator}{name} {:#x}",
            state.get(Gpr::new(number as u8))
        )?;
    }
    let code = state.segment(SegmentName::Cs);
    write!(
        text,
        "\n  cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, efer {:#x}, cs {:#x} base {:#x}, idt {:#x}",
        state.cr0,
        state.cr2,
        state.cr3,
        state.cr4,
        state.efer,
        code.selector,
        code.base,
        state.idtr.base
    )?;
    let at = runner.instruction_address();
    write!(text, "\n  code at {at}: ")?;
    code_bytes(text, runner, at)?;
    for (what, gva) in [
        ("rip", at),
        ("the last fault", Gva::new(state.fault_address)),
    ] {
        write!(text, "\n  {what} at {gva}:")?;
        guest_walk(text, runner, gva)?;
        host_walk(text, runner, gva)?;
    }
    Ok(())
}

fn code_bytes<O: Observer>(
    text: &mut String,
    runner: &mut Runner<'_, O>,
    at: Gva,
) -> core::fmt::Result {
    let len = (4096 - at.page_offset() as usize).min(16);
    let mut bytes = [0; 16];
    match runner.translate(at, AccessKind::Fetch, Privilege::KERNEL) {
        Ok(Ok(walk)) if runner.vm.guest.read(walk.gpa(), &mut bytes[..len]) => bytes[..len]
            .iter()
            .try_for_each(|byte| write!(text, "{byte:02x} ")),
        _ => text.write_str("not to be read"),
    }
}

/// Writes how the guest's tables translate an address.
fn guest_walk<O: Observer>(
    text: &mut String,
    runner: &mut Runner<'_, O>,
    gva: Gva,
) -> core::fmt::Result {
    match runner.translate(gva, AccessKind::Read, Privilege::KERNEL) {
        Ok(Ok(walk)) => {
            write!(text, " guest tables:")?;
            for record in walk.records() {
                write!(text, " {:#x}", record.gpte.raw())?;
            }
            write!(text, ", to {}", walk.gpa())
        }
        Ok(Err(failure)) => write!(text, " guest tables: {failure}"),
        Err(error) => write!(text, " guest tables: {error}"),
    }
}

/// Writes the entries in the tables in force, by the linear address under shadow paging, by the guest-physical one under nested paging.
fn host_walk<O: Observer>(
    text: &mut String,
    runner: &mut Runner<'_, O>,
    gva: Gva,
) -> core::fmt::Result {
    let (mmu, host) = (runner.processor.mmu(), runner.vm.mmu.host());
    let long = mmu.registers().efer.contains(vmmu_cpu::Efer::LMA);
    let (root, address, top) = match mmu.nested() {
        None if long => (mmu.registers().cr3.get(), gva.get(), Level::L4),
        None => (mmu.registers().cr3.get(), gva.get(), Level::L3),
        Some(nested) => {
            let root = nested.root.get();
            match runner.translate(gva, AccessKind::Read, Privilege::KERNEL) {
                Ok(Ok(walk)) => (root, walk.gpa().get(), Level::L4),
                _ => return Ok(()),
            }
        }
    };
    write!(text, "; tables in force:")?;
    let (mut table, mut level) = (Pfn::new(root >> 12), Some(top));
    while let Some(at) = level {
        let slot: Index = at.index(address);
        let entry = host.load(table, slot);
        write!(text, " {entry:#x}")?;
        if entry & 1 == 0 || entry & 0x80 != 0 {
            break;
        }
        table = Pfn::new((entry & 0x000f_ffff_ffff_f000) >> 12);
        level = at.below();
    }
    Ok(())
}
