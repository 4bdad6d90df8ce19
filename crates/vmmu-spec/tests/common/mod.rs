//! Sparse memory and short ways to build a control state.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;

use vmmu_spec::{
    Access, Controls, Cr0, Cr3, Cr4, Efer, Features, Kind, Linear, Memory, Outcome, PhysBits,
    Physical, Privilege, Processor, Width, translate,
};

pub(crate) const P: u64 = 1 << 0;
pub(crate) const W: u64 = 1 << 1;
pub(crate) const U: u64 = 1 << 2;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const G: u64 = 1 << 8;
pub(crate) const NX: u64 = 1 << 63;

/// The root of every test's tables.
pub(crate) const ROOT: u64 = 0x1000;

/// Entries by address; the rest of memory is zero below `END` and absent above.
#[derive(Clone, Default)]
pub(crate) struct Tables(pub(crate) BTreeMap<u64, u64>);

impl Tables {
    pub(crate) const END: u64 = 1 << 40;

    pub(crate) fn new(entries: &[(u64, u64)]) -> Self {
        Self(entries.iter().copied().collect())
    }
}

impl Memory for Tables {
    fn read(&self, at: Physical, _: Width) -> Option<u64> {
        (at.get() < Self::END).then(|| self.0.get(&at.get()).copied().unwrap_or(0))
    }
}

pub(crate) fn processor(bits: u8, features: Features) -> Processor {
    Processor::new(PhysBits::new(bits).unwrap(), features)
}

/// A processor with 40 address bits, 1 GiB pages and PSE-36.
pub(crate) fn usual() -> Processor {
    processor(40, Features::GIGABYTE_PAGES | Features::PSE36)
}

pub(crate) fn paged(processor: Processor, cr4: Cr4, efer: Efer) -> Controls {
    Controls::new(processor, Cr0::PE | Cr0::PG | Cr0::WP, cr4, efer).unwrap()
}

pub(crate) fn legacy(cr4: Cr4) -> Controls {
    paged(usual(), cr4, Efer::empty())
}

pub(crate) fn long(cr4: Cr4, efer: Efer) -> Controls {
    paged(usual(), cr4 | Cr4::PAE, efer | Efer::LME | Efer::LMA)
}

pub(crate) fn four_level() -> Controls {
    long(Cr4::empty(), Efer::NXE)
}

pub(crate) fn user(kind: Kind) -> Access {
    Access::new(kind, Privilege::User)
}

pub(crate) fn kernel(kind: Kind) -> Access {
    Access::new(kind, Privilege::Supervisor)
}

pub(crate) fn walk(controls: &Controls, linear: u64, access: Access, tables: &Tables) -> Outcome {
    translate(
        controls,
        Cr3::new(ROOT),
        Linear::new(linear),
        access,
        tables,
    )
}

pub(crate) fn physical(outcome: &Outcome) -> Option<u64> {
    outcome.translation().map(|t| t.mapping().physical.get())
}

pub(crate) fn code(outcome: &Outcome) -> Option<u32> {
    outcome.page_fault().map(|fault| fault.code().bits())
}
