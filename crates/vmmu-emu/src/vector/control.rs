//! Control and status words: FNINIT, FNCLEX, FLDCW, FNSTCW, FNSTSW, FWAIT, EMMS, LDMXCSR, STMXCSR (AMD APM vol. 4 and 5).

use iced_x86::{Code, Instruction};

use super::guard;
use crate::cpu::{Cpu, Exception, Stop};
use crate::fpu::Fpu;
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0};

fn fninit<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    cpu.state_mut().fpu.initialize();
    Ok(())
}

fn fnclex<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    cpu.state_mut().fpu.status &= 0x7f00;
    Ok(())
}

fn fldcw<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let control = M::get(cpu, op)?;
    cpu.state_mut().fpu.set_control(control);
    Ok(())
}

fn fnstcw<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    let control = cpu.state().fpu.control;
    M::set(cpu, op, control)
}

fn fnstsw<D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    let status = cpu.state().fpu.status;
    D::set(cpu, op, status)
}

fn fwait<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    guard::wait(cpu)
}

fn emms<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    guard::mmx(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.in_use = 0;
    fpu.set_top(0);
    Ok(())
}

fn ldmxcsr<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let mxcsr: u32 = M::get(cpu, op)?;
    if mxcsr & !Fpu::MXCSR_MASK != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    cpu.state_mut().fpu.mxcsr = mxcsr;
    Ok(())
}

fn stmxcsr<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let mxcsr = cpu.state().fpu.mxcsr;
    M::set(cpu, op, mxcsr)
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.code() {
        Code::Fninit => fninit,
        Code::Fnclex => fnclex,
        Code::Fldcw_m2byte => fldcw,
        Code::Fnstcw_m2byte => fnstcw,
        Code::Fnstsw_m2byte => fnstsw::<M, C>,
        Code::Fnstsw_AX => fnstsw::<R0, C>,
        Code::Wait => fwait,
        Code::Emms => emms,
        Code::Ldmxcsr_m32 => ldmxcsr,
        Code::Stmxcsr_m32 => stmxcsr,
        _ => return None,
    })
}
