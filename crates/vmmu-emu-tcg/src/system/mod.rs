//! Prepared sequences: what a kernel does with segments, gates, control registers and page tables, done well and done wrong.
//!
//! Key function: [`fill`]. `transfer` has segments and where control goes, `control` the registers and tables.

mod control;
mod transfer;

use iced_x86::{Code, Instruction};

use crate::layout::DATA;
use crate::slot::Slot;
use crate::world::GDT_BYTES;

/// A sequence; it returns the instruction that it is about.
type Sequence = fn(&mut Slot<'_>) -> Code;

const SEQUENCES: [Sequence; 24] = [
    transfer::segment,
    transfer::pop_segment,
    transfer::far_pointer,
    transfer::far_branch,
    transfer::far_branch,
    transfer::far_return,
    transfer::interrupt_return,
    transfer::interrupt_return,
    transfer::interrupt_return,
    transfer::interrupt,
    transfer::interrupt,
    transfer::interrupt,
    transfer::system_call,
    control::control_0,
    control::control_4,
    control::control_other,
    control::model_specific,
    control::probe,
    control::tables,
    control::page_entry,
    control::page_entry,
    control::flags,
    control::single_step,
    control::ports,
];

/// Fills a slot with one.
pub(crate) fn fill(slot: &mut Slot<'_>) -> Code {
    let sequence = SEQUENCES[slot.rng.usize(..SEQUENCES.len())];
    sequence(slot)
}

/// The selector of data that begins elsewhere. QEMU adds its base in 64-bit code too, so only FS and GS get it.
const ELSEWHERE: u64 = 0x90;

/// Picks any selector but [`ELSEWHERE`].
fn selector(slot: &mut Slot<'_>) -> u64 {
    let rng = &mut *slot.rng;
    let level = if rng.bool() {
        rng.u64(..4)
    } else if slot.kind.is_kernel() {
        0
    } else {
        3
    };
    match rng.u8(..) {
        // QEMU keeps the level of a null selector where a return makes it 0.
        0..20 => 0,
        20..50 => (rng.u64(..7) * 8) | 4 | level,
        _ => match rng.u64(1..GDT_BYTES / 8 + 2) * 8 {
            ELSEWHERE => 0x88 | level,
            other => other | level,
        },
    }
}

/// Returns a place in writable data.
fn scratch(slot: &mut Slot<'_>) -> u64 {
    slot.kind.view(DATA) + slot.rng.u64(..0x1f0) * 8
}

/// Unwraps an instruction that was made of fitting operands.
fn made(instruction: Result<Instruction, iced_x86::IcedError>) -> Instruction {
    instruction.expect("operands that fit the code")
}
