//! Control registers and EFER: which values they refuse, and what a write changes in the state.
//!
//! Key functions: [`check`] and [`set`] for MOV and its relatives, [`check_efer`] and [`set_efer`] for WRMSR. The emulator has called the checks
//! before it calls an embedder's `write_control`; the embedder calls [`set`], then does what follows beyond the state.

use crate::cpu::{Control, Exception};
use crate::state::{SegmentName, State};
use crate::system::features::Features;

/// CR0 (AMD APM vol. 2, section 3.1.1).
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
    /// Every bit that can be set: PE to NE, WP, AM, NW, CD, PG.
    pub(crate) const DEFINED: u64 = 0xe005_003f;
}

/// CR4 (AMD APM vol. 2, section 3.1.3).
pub(crate) mod cr4 {
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const LA57: u64 = 1 << 12;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const PCIDE: u64 = 1 << 17;
}

/// EFER (AMD APM vol. 2, section 3.1.7).
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1 << 0;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
}

const REFUSED: Exception = Exception::GENERAL_PROTECTION;

/// Says whether a control register takes the value.
///
/// # Errors
/// #GP.
pub fn check(
    state: &State,
    features: &Features,
    register: Control,
    value: u64,
) -> Result<(), Exception> {
    match register {
        Control::Cr0 => check_cr0(state, value),
        Control::Cr3 => check_cr3(state, features, value),
        Control::Cr4 => check_cr4(state, features, value),
        Control::Cr8 if value > 15 => Err(REFUSED),
        Control::Cr8 => Ok(()),
    }
}

/// Says whether CR0 takes the value (AMD APM vol. 2, sections 3.1.1 and 14.8.1).
///
/// # Errors
/// #GP.
pub fn check_cr0(state: &State, value: u64) -> Result<(), Exception> {
    let on = |bit| value & bit != 0;
    let starts = on(cr0::PG) && state.cr0 & cr0::PG == 0;
    let ends = !on(cr0::PG) && state.cr0 & cr0::PG != 0;
    let cs_is_long = state.segment(SegmentName::Cs).attributes & 1 << 9 != 0;
    let refused = value >> 32 != 0
        || on(cr0::PG) && !on(cr0::PE)
        || on(cr0::NW) && !on(cr0::CD)
        || starts && state.efer & efer::LME != 0 && (state.cr4 & cr4::PAE == 0 || cs_is_long)
        || ends && (state.is_64_bit() || state.cr4 & cr4::PCIDE != 0);
    if refused { Err(REFUSED) } else { Ok(()) }
}

/// Says whether CR3 takes the value: no bit above the physical-address width, but bit 63 with PCIDs (AMD APM vol. 2, section 5.5.1).
///
/// # Errors
/// #GP.
pub fn check_cr3(state: &State, features: &Features, value: u64) -> Result<(), Exception> {
    let keeps = if state.cr4 & cr4::PCIDE != 0 {
        1 << 63
    } else {
        0
    };
    if state.is_long() && (value & !keeps) >> features.physical_bits.min(63) != 0 {
        return Err(REFUSED);
    }
    Ok(())
}

/// Says whether CR4 takes the value (AMD APM vol. 2, sections 3.1.3, 5.5.1 and 14.8.1).
///
/// # Errors
/// #GP.
pub fn check_cr4(state: &State, features: &Features, value: u64) -> Result<(), Exception> {
    let changed = value ^ state.cr4;
    let sets_pcide = changed & value & cr4::PCIDE != 0;
    let refused = value & !features.cr4 != 0
        || state.is_long() && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
        || sets_pcide && (!state.is_long() || state.cr3 & 0xfff != 0);
    if refused { Err(REFUSED) } else { Ok(()) }
}

/// Says whether EFER takes the value. LMA follows LME and CR0.PG; what is written there is ignored.
///
/// # Errors
/// #GP.
pub fn check_efer(state: &State, features: &Features, value: u64) -> Result<(), Exception> {
    let changed = value ^ state.efer;
    let refused = value & !(features.efer | efer::LMA) != 0
        || changed & efer::LME != 0 && state.cr0 & cr0::PG != 0;
    if refused { Err(REFUSED) } else { Ok(()) }
}

/// Writes a control register into the state, with what follows in it: EFER.LMA, and the end of CR3's bit 63.
pub fn set(state: &mut State, register: Control, value: u64) {
    match register {
        Control::Cr0 => {
            state.cr0 = value & cr0::DEFINED | cr0::ET;
            set_efer(state, state.efer);
        }
        Control::Cr3 => state.cr3 = value & !(1 << 63),
        Control::Cr4 => state.cr4 = value,
        Control::Cr8 => state.cr8 = value & 15,
    }
}

/// Writes EFER into the state.
pub fn set_efer(state: &mut State, value: u64) {
    let active = value & efer::LME != 0 && state.cr0 & cr0::PG != 0;
    state.efer = value & !efer::LMA | if active { efer::LMA } else { 0 };
}

#[cfg(test)]
mod ways_into_long_mode {
    use super::{check_cr0, check_cr4, check_efer, set, set_efer};
    use crate::cpu::Control;
    use crate::state::{SegmentName, State};
    use crate::system::features::Features;

    #[test]
    fn paging_makes_long_mode_active_and_its_end_ends_it() {
        let mut state = State::reset();
        set(&mut state, Control::Cr0, 0x11);
        set_efer(&mut state, 0x100);
        assert!(check_cr0(&state, 0x8000_0011).is_err(), "without PAE");
        set(&mut state, Control::Cr4, 0x20);
        assert!(check_cr0(&state, 0x8000_0010).is_err(), "without PE");
        assert!(check_cr0(&state, 0x8000_0011).is_ok());
        set(&mut state, Control::Cr0, 0x8000_0011);
        assert!(state.is_long());
        assert!(check_cr4(&state, &Features::BASELINE, 0).is_err());
        assert!(check_efer(&state, &Features::BASELINE, 0).is_err());
        state.segments[SegmentName::Cs as usize].attributes |= 1 << 9;
        assert!(check_cr0(&state, 0x11).is_err(), "from 64-bit code");
        state.segments[SegmentName::Cs as usize].attributes &= !(1 << 9);
        assert!(check_cr0(&state, 0x11).is_ok());
        set(&mut state, Control::Cr0, 0x11);
        assert!(!state.is_long());
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let state = State::reset();
        assert!(check_cr4(&state, &Features::BASELINE, 1 << 22).is_err());
        assert!(check_efer(&state, &Features::BASELINE, 1 << 12).is_err());
    }
}
