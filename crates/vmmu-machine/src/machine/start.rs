//! How the bootstrap processor begins.

use vmmu_emu::{Gpr, Segment, SegmentName, State};

use crate::load::Entry;

/// 64-bit code: present, accessed, read and execute.
const CODE_64: u16 = 0xa9b;
/// The same, 32-bit.
const CODE_32: u16 = 0xc9b;
/// Data: present, accessed, read and write, 32-bit.
const DATA_32: u16 = 0xc93;
/// A busy task-state segment.
const TASK: u16 = 0x8b;

const PE: u64 = 1 << 0;
const ET: u64 = 1 << 4;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;

/// Sets the registers for the first instruction.
pub(crate) fn enter_at(state: &mut State, entry: Entry) {
    let flat = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    state.segments = [flat(0x18, DATA_32); 6];
    state.tr = Segment {
        selector: 0,
        attributes: TASK,
        limit: 0x67,
        base: 0,
    };
    state.cr0 = PE | ET;
    match entry {
        Entry::Long { rip, rsi, cr3, gdt } => {
            state.segments[SegmentName::Cs as usize] = flat(0x10, CODE_64);
            (state.gdtr.base, state.gdtr.limit) = (gdt.get(), 31);
            state.cr0 |= PG;
            state.cr4 = PAE;
            state.efer = LME | LMA;
            state.cr3 = cr3.get();
            state.set_rip(rip);
            state.set(Gpr::RSI, rsi);
        }
        Entry::Protected { eip, eax, ebx } => {
            state.segments[SegmentName::Cs as usize] = flat(0x10, CODE_32);
            state.set_rip(u64::from(eip));
            state.set(Gpr::RAX, u64::from(eax));
            state.set(Gpr::RBX, u64::from(ebx));
        }
    }
}
