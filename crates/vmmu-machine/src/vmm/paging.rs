//! Which registers are in force while the guest runs.
//!
//! | the guest's | under shadow paging | under nested paging |
//! |---|---|---|
//! | CR0 | PG and WP are always set | as it is |
//! | CR3 | the library's root | as it is; the nested root is the library's |
//! | CR4 | PAE is always set, PGE never; without paging nothing that belongs to it | as it is |
//! | EFER | with paging also NXE, without no LME | as it is |
//!
//! Invariants:
//! 1. The root is what the library gave for this very entry.

use vmmu::addr::Hpa;
use vmmu::paging::{Cr0, Cr3, Cr4, Efer, PagingState, Pkru};
use vmmu_cpu::{Asid, Nested, Registers, World};
use vmmu_emu::State;

use crate::cpu::Dimensions;
use crate::machine::NestedTables;
use crate::vmm::cpuid::Shape;

/// Returns the guest's paging registers.
pub(super) fn state_of(state: &State, shape: &Shape) -> PagingState {
    PagingState {
        cr0: Cr0::from_bits_retain(state.cr0),
        cr3: Cr3::new(state.cr3),
        cr4: Cr4::from_bits_retain(state.cr4),
        efer: Efer::from_bits_retain(state.efer),
        pkru: Pkru::new(state.pkru),
        ..PagingState::reset(shape.model())
    }
}

/// Returns the world to enter with a root.
pub(super) fn world(
    guest: &PagingState,
    dimensions: Dimensions,
    tables: NestedTables,
    root: Hpa,
) -> World {
    let root = vmmu_cpu::Hpa::new(root.get());
    let asid = Asid::new(1);
    match dimensions {
        Dimensions::Nested => World {
            regs: registers(
                guest.cr0,
                guest.cr3.get(),
                guest.cr4,
                guest.efer,
                guest.pkru,
            ),
            asid,
            nested: Some(match tables {
                NestedTables::Npt => Nested::npt4(root),
                NestedTables::Ept => Nested::ept4(root),
            }),
        },
        Dimensions::Shadow => World {
            regs: registers(
                guest.cr0 | Cr0::PG | Cr0::WP,
                root.get(),
                shadow_cr4(guest),
                shadow_efer(guest),
                guest.pkru,
            ),
            asid,
            nested: None,
        },
    }
}

fn registers(cr0: Cr0, cr3: u64, cr4: Cr4, efer: Efer, pkru: Pkru) -> Registers {
    Registers {
        cr0: vmmu_cpu::Cr0::from_bits_truncate(cr0.bits()),
        cr3: vmmu_cpu::Cr3::new(cr3),
        cr4: vmmu_cpu::Cr4::from_bits_truncate(cr4.bits()),
        efer: vmmu_cpu::Efer::from_bits_truncate(efer.bits()),
        pkru: vmmu_cpu::Pkru::new(pkru.get()),
    }
}

/// Returns EFER under shadow paging.
fn shadow_efer(guest: &PagingState) -> Efer {
    if guest.efer.contains(Efer::LMA) {
        // The tables in force may forbid execution where the guest's can't.
        guest.efer | Efer::NXE
    } else {
        guest.efer - (Efer::LME | Efer::NXE)
    }
}

/// Returns CR4 under shadow paging.
fn shadow_cr4(guest: &PagingState) -> Cr4 {
    let paged = guest.cr0.contains(Cr0::PG);
    let foreign = if paged {
        Cr4::empty()
    } else {
        Cr4::SMEP | Cr4::SMAP | Cr4::PSE
    };
    (guest.cr4 | Cr4::PAE) - (foreign | Cr4::PGE)
}

#[cfg(test)]
mod registers_in_force {
    use super::*;
    use crate::vmm::cpuid::Hidden;

    fn guest(cr0: Cr0, cr4: Cr4, efer: Efer) -> PagingState {
        let cpu = Shape::new(Hidden::empty(), None, 1).model();
        PagingState {
            cr0,
            cr4,
            efer,
            ..PagingState::reset(cpu)
        }
    }

    #[test]
    fn without_paging_are_those_of_a_pae_table() {
        let guest = guest(Cr0::PE, Cr4::SMEP, Efer::LME | Efer::NXE);
        let shadow = world(
            &guest,
            Dimensions::Shadow,
            NestedTables::Npt,
            Hpa::new(0x5000),
        )
        .regs;
        assert_eq!(shadow.cr4, vmmu_cpu::Cr4::PAE);
        assert_eq!(shadow.efer, vmmu_cpu::Efer::empty());
        assert!(shadow.cr0.contains(vmmu_cpu::Cr0::PG | vmmu_cpu::Cr0::WP));
        assert_eq!(shadow.cr3.get(), 0x5000);
    }

    #[test]
    fn under_nested_paging_are_the_guests_own() {
        let long = Efer::LME | Efer::LMA;
        let guest = guest(Cr0::PE | Cr0::PG, Cr4::PAE | Cr4::PGE, long);
        let world = world(
            &guest,
            Dimensions::Nested,
            NestedTables::Ept,
            Hpa::new(0x5000),
        );
        assert_eq!(world.regs.cr4, vmmu_cpu::Cr4::PAE | vmmu_cpu::Cr4::PGE);
        assert_eq!(world.regs.cr3.get(), 0);
        let root = vmmu_cpu::Hpa::new(0x5000);
        assert_eq!(world.nested, Some(Nested::ept4(root)));
    }
}
