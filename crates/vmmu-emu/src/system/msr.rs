//! Model-specific registers that live in the state: those that instructions use, and plain storage.
//!
//! Key type: [`Msrs`]; key functions: [`read`] and [`write()`], for an embedder's `read_msr` and `write_msr` to fall back on.

use crate::address::is_canonical;
use crate::cpu::Exception;
use crate::state::{SegmentName, State};
use crate::system::control;
use crate::system::features::Features;

/// The number of variable-range MTRRs.
const VARIABLE_RANGES: usize = 8;

/// The numbers of fixed-range MTRRs, in the order of their addresses (AMD APM vol. 2, section 7.7.2).
const FIXED_RANGES: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// Model-specific registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Msrs {
    /// Selectors of SYSCALL and SYSRET, and the legacy target.
    pub star: u64,
    /// The target of SYSCALL from 64-bit code.
    pub lstar: u64,
    /// The target of SYSCALL from compatibility mode.
    pub cstar: u64,
    /// The flags that SYSCALL clears.
    pub sfmask: u64,
    /// What SWAPGS exchanges GS's base with.
    pub kernel_gs_base: u64,
    /// The code selector of SYSENTER.
    pub sysenter_cs: u64,
    /// The stack pointer of SYSENTER.
    pub sysenter_esp: u64,
    /// The target of SYSENTER.
    pub sysenter_eip: u64,
    /// The page-attribute table.
    pub pat: u64,
    /// What RDTSCP and RDPID return.
    pub tsc_aux: u32,
    /// The memory-type ranges.
    pub mtrr: Mtrr,
}

/// The memory-type range registers: stored and read back, without effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mtrr {
    fixed: [u64; FIXED_RANGES.len()],
    variable: [[u64; 2]; VARIABLE_RANGES],
    default: u64,
}

impl Msrs {
    /// After a reset (AMD APM vol. 2, section 14.1.3).
    pub const RESET: Self = Self {
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: 0x0007_0406_0007_0406,
        tsc_aux: 0,
        mtrr: Mtrr {
            fixed: [0; FIXED_RANGES.len()],
            variable: [[0; 2]; VARIABLE_RANGES],
            default: 0,
        },
    };
}

/// Reads a register that lives in the state.
///
/// # Errors
/// #GP for every other.
pub fn read(state: &State, number: u32) -> Result<u64, Exception> {
    let msrs = &state.msrs;
    Ok(match number {
        0xfe => 0x500 | VARIABLE_RANGES as u64,
        0x174 => msrs.sysenter_cs,
        0x175 => msrs.sysenter_esp,
        0x176 => msrs.sysenter_eip,
        0x277 => msrs.pat,
        0xc000_0080 => state.efer,
        0xc000_0081 => msrs.star,
        0xc000_0082 => msrs.lstar,
        0xc000_0083 => msrs.cstar,
        0xc000_0084 => msrs.sfmask,
        0xc000_0100 => state.segment(SegmentName::Fs).base,
        0xc000_0101 => state.segment(SegmentName::Gs).base,
        0xc000_0102 => msrs.kernel_gs_base,
        0xc000_0103 => u64::from(msrs.tsc_aux),
        other => return msrs.mtrr.read(other),
    })
}

/// Writes a register that lives in the state. For EFER, what follows from it beyond the state is the caller's.
///
/// # Errors
/// #GP for every other, and for a value that the register refuses.
pub fn write(
    state: &mut State,
    features: &Features,
    number: u32,
    value: u64,
) -> Result<(), Exception> {
    if matches!(
        number,
        0x175 | 0x176 | 0xc000_0082 | 0xc000_0083 | 0xc000_0100..=0xc000_0102
    ) && !is_canonical(state, value)
    {
        return Err(Exception::GENERAL_PROTECTION);
    }
    let msrs = &mut state.msrs;
    match number {
        0x174 => msrs.sysenter_cs = value,
        0x175 => msrs.sysenter_esp = value,
        0x176 => msrs.sysenter_eip = value,
        0x277 if value.to_le_bytes().into_iter().all(is_pat_type) => msrs.pat = value,
        0xc000_0080 => {
            control::check_efer(state, features, value)?;
            control::set_efer(state, value);
        }
        0xc000_0081 => msrs.star = value,
        0xc000_0082 => msrs.lstar = value,
        0xc000_0083 => msrs.cstar = value,
        0xc000_0084 => msrs.sfmask = value & 0xffff_ffff,
        0xc000_0100 => state.segments[SegmentName::Fs as usize].base = value,
        0xc000_0101 => state.segments[SegmentName::Gs as usize].base = value,
        0xc000_0102 => msrs.kernel_gs_base = value,
        0xc000_0103 => msrs.tsc_aux = value as u32,
        other => return msrs.mtrr.write(other, value, features),
    }
    Ok(())
}

/// Says whether the page-attribute table may hold the type (AMD APM vol. 2, section 7.8.2).
const fn is_pat_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4..=7)
}

/// Says whether an MTRR may hold the type (AMD APM vol. 2, section 7.7.1).
const fn is_mtrr_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4..=6)
}

impl Mtrr {
    /// Returns the type of what no range covers, with the two enable bits (MTRRdefType).
    #[must_use]
    pub const fn default_type(&self) -> u64 {
        self.default
    }

    fn read(&self, number: u32) -> Result<u64, Exception> {
        if let Some(n) = FIXED_RANGES.iter().position(|fixed| *fixed == number) {
            return Ok(self.fixed[n]);
        }
        match number {
            0x200..=0x20f => {
                let n = number as usize & 0xf;
                Ok(self.variable[n / 2][n % 2])
            }
            0x2ff => Ok(self.default),
            _ => Err(Exception::GENERAL_PROTECTION),
        }
    }

    fn write(&mut self, number: u32, value: u64, features: &Features) -> Result<(), Exception> {
        let above = !0 << features.physical_bits.min(63);
        if let Some(n) = FIXED_RANGES.iter().position(|fixed| *fixed == number) {
            if value.to_le_bytes().into_iter().all(is_mtrr_type) {
                self.fixed[n] = value;
                return Ok(());
            }
            return Err(Exception::GENERAL_PROTECTION);
        }
        let n = number as usize & 0xf;
        match number {
            0x200..=0x20f if n.is_multiple_of(2) => {
                if value & (above | 0xf00) != 0 || !is_mtrr_type(value as u8) {
                    return Err(Exception::GENERAL_PROTECTION);
                }
                self.variable[n / 2][0] = value;
            }
            0x200..=0x20f => {
                if value & (above | 0x7ff) != 0 {
                    return Err(Exception::GENERAL_PROTECTION);
                }
                self.variable[n / 2][1] = value;
            }
            0x2ff if value & !0xcff == 0 && is_mtrr_type(value as u8) => self.default = value,
            _ => return Err(Exception::GENERAL_PROTECTION),
        }
        Ok(())
    }
}

#[cfg(test)]
mod values_refused {
    use super::{read, write};
    use crate::cpu::Exception;
    use crate::state::State;
    use crate::system::features::Features;

    #[test]
    fn a_base_must_be_canonical() {
        let mut state = State::reset();
        for number in [0xc000_0082, 0xc000_0100, 0xc000_0102] {
            let refused = write(&mut state, &Features::BASELINE, number, 1 << 47);
            assert_eq!(refused, Err(Exception::GENERAL_PROTECTION));
            assert_eq!(read(&state, number), Ok(0));
            let base = !0 << 47;
            assert_eq!(write(&mut state, &Features::BASELINE, number, base), Ok(()));
            assert_eq!(read(&state, number), Ok(base));
        }
    }

    #[test]
    fn types_of_memory_are_checked() {
        let mut state = State::reset();
        let mut write = |number, value| write(&mut state, &Features::BASELINE, number, value);
        assert!(write(0x277, 0x0007_0406_0007_0402).is_err());
        assert!(write(0x277, 0x0007_0406_0007_0401).is_ok());
        assert!(write(0x250, 0x0606_0606_0606_0607).is_err());
        assert!(write(0x2ff, 0xc06).is_ok());
        assert!(write(0x2ff, 0x1c06).is_err());
        assert!(write(0x201, 1 << 60).is_err());
    }

    #[test]
    fn what_is_not_here_raises_gp() {
        let state = State::reset();
        assert_eq!(read(&state, 0x1b), Err(Exception::GENERAL_PROTECTION));
    }
}
