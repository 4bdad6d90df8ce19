//! Whether a unit may be used, and whether a pending x87 exception comes first (AMD APM vol. 2, sections 3.1.1 and 3.1.3).

use crate::cpu::{Cpu, Exception, Stop};
use crate::float::{self, Env};

/// CR0.MP: FWAIT too obeys CR0.TS.
const MP: u64 = 1 << 1;
/// CR0.EM: there is no floating-point unit.
const EM: u64 = 1 << 2;
/// CR0.TS: a task switch has left the registers to be saved.
const TS: u64 = 1 << 3;
/// CR4.OSFXSR: the system saves XMM registers.
const OSFXSR: u64 = 1 << 9;
/// CR4.OSXMMEXCPT: the system handles #XM.
const OSXMMEXCPT: u64 = 1 << 10;
/// The flags that operands raise, before there is a result.
const OF_OPERANDS: u16 = float::INVALID | float::DENORMAL | float::DIVIDE;

/// Lets an SSE instruction through.
#[inline(always)]
pub(crate) fn sse<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    let state = cpu.state();
    if state.cr0 & (EM | TS) == 0 && state.cr4 & OSFXSR != 0 {
        Ok(())
    } else if state.cr0 & EM != 0 || state.cr4 & OSFXSR == 0 {
        Err(Exception::UNDEFINED.into())
    } else {
        Err(Exception::NO_FPU.into())
    }
}

/// Lets an MMX instruction through.
#[inline(always)]
pub(crate) fn mmx<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    let state = cpu.state();
    if state.cr0 & EM != 0 {
        Err(Exception::UNDEFINED.into())
    } else if state.cr0 & TS != 0 {
        Err(Exception::NO_FPU.into())
    } else {
        no_pending(cpu)
    }
}

/// Lets an x87 instruction through that does not wait for pending exceptions.
#[inline(always)]
pub(crate) fn x87_control<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    if cpu.state().cr0 & (EM | TS) == 0 {
        Ok(())
    } else {
        Err(Exception::NO_FPU.into())
    }
}

/// Lets any other x87 instruction through.
#[inline(always)]
pub(crate) fn x87<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    x87_control(cpu)?;
    no_pending(cpu)
}

/// Lets FWAIT through.
pub(crate) fn wait<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    if cpu.state().cr0 & (MP | TS) == MP | TS {
        Err(Exception::NO_FPU.into())
    } else {
        no_pending(cpu)
    }
}

/// Raises what an earlier x87 instruction left. Without CR0.NE too: the external interrupt of old machines is not modelled.
#[inline(always)]
fn no_pending<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    if cpu.state().fpu.has_pending() {
        Err(Exception::X87.into())
    } else {
        Ok(())
    }
}

/// Takes over the flags of an SSE instruction: before its result, which is not written if one is not masked.
///
/// # Errors
/// #XM, or #UD if the system does not handle that. The flags are set even so, those of results only if none of operands is unmasked (Intel SDM
/// vol. 1, section 11.5.3).
#[inline(always)]
pub(crate) fn simd_flags<C: Cpu>(cpu: &mut C, env: &Env) -> Result<(), Stop> {
    let mut flags = env.flags & float::ALL;
    let unmasked = flags & !env.masks;
    if unmasked & OF_OPERANDS != 0 {
        flags &= OF_OPERANDS;
    }
    let state = cpu.state_mut();
    state.fpu.mxcsr |= u32::from(flags);
    if unmasked == 0 {
        Ok(())
    } else if state.cr4 & OSXMMEXCPT != 0 {
        Err(Exception::SIMD.into())
    } else {
        Err(Exception::UNDEFINED.into())
    }
}
