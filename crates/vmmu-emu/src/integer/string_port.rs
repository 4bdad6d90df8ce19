//! INS and OUTS: strings from and to ports.

use iced_x86::{Instruction, Mnemonic};

use super::string::{Element, destination, select_element, source};
use crate::cpu::{Access, Cpu, Stop};
use crate::op::{Op, Run};
use crate::state::{Gpr, State};
use crate::system::ports;
use crate::word::Word;

fn port(state: &State) -> u16 {
    state.get(Gpr::RDX) as u16
}

struct Ins;
impl Element for Ins {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;
    /// A port read can't be taken back, so the memory is checked before.
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let port = port(cpu.state());
        ports::check(cpu, port, W::BYTES)?;
        let to = destination(cpu.state(), op, W::BYTES, Access::Write)?;
        cpu.check_write(to, W::BYTES, Access::Write)?;
        let value = cpu.port_in(port, W::BYTES)?;
        cpu.store(to, W::truncate(value.into()), Access::Write)
    }
}

struct Outs;
impl Element for Outs {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    const COMPARES: bool = false;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let port = port(cpu.state());
        ports::check(cpu, port, W::BYTES)?;
        let from = source(cpu.state(), op, W::BYTES, Access::Read)?;
        let value = cpu.load::<W>(from, Access::Read)?.zero_extend();
        cpu.port_out(port, W::BYTES, value as u32)
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let size = instruction.memory_size().size();
    match instruction.mnemonic() {
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            select_element::<Ins, C>(instruction, size)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            select_element::<Outs, C>(instruction, size)
        }
        _ => None,
    }
}
