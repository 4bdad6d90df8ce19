//! IN and OUT, and who may use which port.
//!
//! Key function: [`check`], for the string forms too.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Cpu, Exception, Stop};
use crate::op::{Op, Run};
use crate::operand::{I, Operand, R0, R1};
use crate::state::{Gpr, State};
use crate::system::descriptor::{self, kind};
use crate::word::Word;

/// Says whether the current code may use `bytes` ports from `port` on (AMD APM vol. 2, section 12.2.4): by its privilege, or by the bitmap of its task.
///
/// # Errors
/// #GP; #PF of reading the bitmap.
pub(crate) fn check(cpu: &mut impl Cpu, port: u16, bytes: usize) -> Result<(), Stop> {
    let state = cpu.state();
    let by_level = state.cpl <= state.flags.iopl() && !state.is_virtual_8086();
    if state.is_real() || by_level {
        return Ok(());
    }
    let refused = Err(Exception::GENERAL_PROTECTION.into());
    let tr = state.tr;
    if !has_bitmap(state) {
        return refused;
    }
    let bitmap: u16 = descriptor::load(cpu, tr.base, 0x66)?;
    let offset = u64::from(bitmap) + u64::from(port / 8);
    // Two bytes are read: the ports may straddle one.
    if offset + 1 > u64::from(tr.limit) {
        return refused;
    }
    let bits: u16 = descriptor::load(cpu, tr.base, offset)?;
    let mask = (1 << bytes) - 1;
    if bits >> (port % 8) & mask == 0 {
        Ok(())
    } else {
        refused
    }
}

/// Says whether the task state has an I/O bitmap: it is a 32-bit or 64-bit one, long enough to say where.
const fn has_bitmap(state: &State) -> bool {
    let kind_of = (state.tr.attributes & 0x1f) as u8;
    matches!(kind_of, kind::TSS | kind::TSS_BUSY)
        && state.tr.attributes & 1 << 7 != 0
        && state.tr.limit >= 0x67
}

fn input<W: Word, P: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let port: u16 = P::get(cpu, op)?;
    check(cpu, port, W::BYTES)?;
    let value = cpu.port_in(port, W::BYTES)?;
    R0::set(cpu, op, W::truncate(u64::from(value)))
}

fn output<W: Word, P: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let port: u16 = P::get(cpu, op)?;
    check(cpu, port, W::BYTES)?;
    let value = W::truncate(cpu.state().get(Gpr::RAX)).zero_extend();
    cpu.port_out(port, W::BYTES, value as u32)
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::In => {
            let immediate = instruction.op1_kind() == OpKind::Immediate8;
            Some(match (instruction.op0_register().size(), immediate) {
                (1, true) => input::<u8, I, C>,
                (1, false) => input::<u8, R1, C>,
                (2, true) => input::<u16, I, C>,
                (2, false) => input::<u16, R1, C>,
                (_, true) => input::<u32, I, C>,
                (_, false) => input::<u32, R1, C>,
            })
        }
        Mnemonic::Out => {
            let immediate = instruction.op0_kind() == OpKind::Immediate8;
            Some(match (instruction.op1_register().size(), immediate) {
                (1, true) => output::<u8, I, C>,
                (1, false) => output::<u8, R0, C>,
                (2, true) => output::<u16, I, C>,
                (2, false) => output::<u16, R0, C>,
                (_, true) => output::<u32, I, C>,
                (_, false) => output::<u32, R0, C>,
            })
        }
        _ => None,
    }
}
