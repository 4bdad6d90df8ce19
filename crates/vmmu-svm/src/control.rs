//! Writes to CR0, CR3, CR4 and EFER: what the processor would refuse, and what follows from the rest.
//!
//! Pure functions from the old state to the new one. The rules are those of AMD APM vol. 2, sections 3.1 and 14.6.

use vmmu::paging::{Cr0, Cr3, Cr4, Efer, PagingState};

use crate::cpuid::Shape;

/// The guest gets #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// Whether the code segment is 64-bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSegment {
    /// L is set.
    Long,
    /// L is clear.
    Legacy,
}

/// Bits of CR0 that exist; the others are ignored below bit 32 and refused above.
const CR0_VALID: Cr0 = Cr0::PE
    .union(Cr0::MP)
    .union(Cr0::EM)
    .union(Cr0::TS)
    .union(Cr0::ET)
    .union(Cr0::NE)
    .union(Cr0::WP)
    .union(Cr0::AM)
    .union(Cr0::NW)
    .union(Cr0::CD)
    .union(Cr0::PG);

/// Works out a write to CR0.
///
/// # Errors
/// [`Refused`].
pub fn write_cr0(
    mut state: PagingState,
    value: u64,
    code: CodeSegment,
) -> Result<PagingState, Refused> {
    let new = (Cr0::from_bits_retain(value) & CR0_VALID) | Cr0::ET;
    let paging = new.contains(Cr0::PG);
    let impossible = value >> 32 != 0
        || paging && !new.contains(Cr0::PE)
        || new.contains(Cr0::NW) && !new.contains(Cr0::CD);
    let was_paging = state.cr0.contains(Cr0::PG);
    let enters_long = paging && !was_paging && state.efer.contains(Efer::LME);
    let leaves_long = !paging && was_paging && state.efer.contains(Efer::LMA);
    if impossible
        || enters_long && (!state.cr4.contains(Cr4::PAE) || code == CodeSegment::Long)
        || leaves_long && code == CodeSegment::Long
    {
        return Err(Refused);
    }
    if enters_long || leaves_long {
        state.efer.set(Efer::LMA, enters_long);
    }
    state.cr0 = new;
    Ok(state)
}

/// Judges a write to CR3, which changes nothing but the register itself.
///
/// # Errors
/// [`Refused`].
#[inline]
pub fn check_cr3(state: &PagingState, value: u64) -> Result<Cr3, Refused> {
    if !state.efer.contains(Efer::LMA) {
        return Ok(Cr3::new(value & 0xffff_ffff));
    }
    if value >> state.cpu.phys_bits.get() != 0 {
        return Err(Refused);
    }
    Ok(Cr3::new(value))
}

/// Works out a write to CR4.
///
/// # Errors
/// [`Refused`].
pub fn write_cr4(
    mut state: PagingState,
    value: u64,
    shape: &Shape,
) -> Result<PagingState, Refused> {
    let new = Cr4::from_bits_retain(value);
    let changed = new ^ state.cr4;
    let long = state.efer.contains(Efer::LMA);
    if !shape.cr4_valid().contains(new) || long && changed.intersects(Cr4::PAE | Cr4::LA57) {
        return Err(Refused);
    }
    state.cr4 = new;
    Ok(state)
}

/// Works out a write to EFER.
///
/// # Errors
/// [`Refused`].
pub fn write_efer(
    mut state: PagingState,
    value: u64,
    shape: &Shape,
) -> Result<PagingState, Refused> {
    let new = Efer::from_bits_retain(value);
    let changed = new ^ state.efer;
    if !shape.efer_valid().contains(new)
        || state.cr0.contains(Cr0::PG) && changed.contains(Efer::LME)
    {
        return Err(Refused);
    }
    state.efer = (new - Efer::LMA) | (state.efer & Efer::LMA);
    Ok(state)
}

/// Works out a write to the local APIC's base register from its old value.
///
/// Only the enable bit can change: the page can't be moved, since it passes through, and x2APIC mode isn't offered.
///
/// # Errors
/// [`Refused`].
pub const fn write_apic_base(old: u64, value: u64) -> Result<u64, Refused> {
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    if value & X2APIC == 0 && (value ^ old) & !ENABLED == 0 {
        Ok(value)
    } else {
        Err(Refused)
    }
}

#[cfg(test)]
mod writes_are_judged_as_by_the_processor {
    use super::*;
    use crate::arch::register::CpuidResult;
    use crate::config::{Configuration, Hidden, Paging};
    use core::num::NonZeroU8;
    use vmmu::paging::{CpuFeatures, CpuModel, PhysBits};

    fn state(cr0: Cr0, cr4: Cr4, efer: Efer) -> PagingState {
        let cpu = CpuModel {
            phys_bits: PhysBits::new(40).unwrap(),
            features: CpuFeatures::empty(),
        };
        PagingState {
            cr0,
            cr4,
            efer,
            ..PagingState::reset(cpu)
        }
    }
    fn shape() -> Shape {
        let configuration = Configuration {
            paging: Paging::Shadow,
            memory: 0,
            cpus: NonZeroU8::MIN,
            phys_bits: None,
            hidden: Hidden::empty(),
            max_pages: None,
            audit: None,
        };
        Shape::new(&configuration, |_, _| CpuidResult {
            eax: 40,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        })
    }
    const PROTECTED: Cr0 = Cr0::PE.union(Cr0::ET);
    const PAGED: Cr0 = PROTECTED.union(Cr0::PG);
    const LONG: Efer = Efer::LME.union(Efer::LMA);

    #[test]
    fn cr0() {
        let unpaged = state(PROTECTED, Cr4::PAE, Efer::LME);
        let entered = write_cr0(unpaged, PAGED.bits(), CodeSegment::Legacy).unwrap();
        assert_eq!(entered.efer, LONG);
        let left = write_cr0(entered, PROTECTED.bits(), CodeSegment::Legacy).unwrap();
        assert_eq!(left.efer, Efer::LME);
        for (from, value, code) in [
            (unpaged, PAGED.bits() | 1 << 32, CodeSegment::Legacy),
            (unpaged, Cr0::PG.bits(), CodeSegment::Legacy),
            (unpaged, (PROTECTED | Cr0::NW).bits(), CodeSegment::Legacy),
            (unpaged, PAGED.bits(), CodeSegment::Long),
            (
                state(PROTECTED, Cr4::empty(), Efer::LME),
                PAGED.bits(),
                CodeSegment::Legacy,
            ),
            (entered, PROTECTED.bits(), CodeSegment::Long),
        ] {
            assert_eq!(write_cr0(from, value, code), Err(Refused), "{value:#x}");
        }
    }

    #[test]
    fn cr3() {
        let long = state(PAGED, Cr4::PAE, LONG);
        assert_eq!(check_cr3(&long, 1 << 40), Err(Refused));
        let narrow = 0xff_ffff_f018;
        assert_eq!(check_cr3(&long, narrow), Ok(Cr3::new(narrow)));
    }

    #[test]
    fn cr4() {
        let long = state(PAGED, Cr4::PAE, LONG);
        for bits in [
            Cr4::empty(),
            Cr4::PAE | Cr4::PCIDE,
            Cr4::PAE | Cr4::PKE,
            Cr4::PAE | Cr4::LA57,
        ] {
            assert_eq!(
                write_cr4(long, bits.bits(), &shape()),
                Err(Refused),
                "{bits:?}"
            );
        }
        assert_eq!(write_cr4(long, 1 << 40 | 0x20, &shape()), Err(Refused));
        assert!(write_cr4(long, (Cr4::PAE | Cr4::PGE | Cr4::SMEP).bits(), &shape()).is_ok());
    }

    #[test]
    fn efer() {
        let long = state(PAGED, Cr4::PAE, LONG);
        for bits in [Efer::SVME | LONG, Efer::LMA, Efer::LMSLE | LONG] {
            assert_eq!(
                write_efer(long, bits.bits(), &shape()),
                Err(Refused),
                "{bits:?}"
            );
        }
        assert_eq!(
            write_efer(long, (Efer::LME | Efer::SCE).bits(), &shape()).map(|s| s.efer),
            Ok(LONG | Efer::SCE)
        );
    }
}
