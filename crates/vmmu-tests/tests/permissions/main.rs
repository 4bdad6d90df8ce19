//! P3: the walker, and the shadow engine end to end, against the specification over every combination of rights (rules R9 and R13).
//!
//! Exhaustive is meant so: what decides an access is the AND of the rights on the way, the entry that stops the walk, the control bits and the access.
//! Each test runs the whole product of those for which the specification may say different things:
//! 1. every W, U and NX at every level, for every size of page, times WP, SMEP, SMAP, NXE, protection key rights, times every access;
//! 2. every way in which an entry of any level stops a walk, below every combination of rights above it, times controls and accesses;
//! 3. every A of every level and D of the leaf, times every access.
//!
//! Each prints how many walks it compared.

mod random;
mod shadow;

use core::cell::{Cell, RefCell};

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits, Pkru};
use vmmu::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, Rights, WalkFailure, Walker};
use vmmu_spec as spec;
use vmmu_tests::convert;
use vmmu_tests::guest::{A, D, NX, P, PS, U, W};

/// One entry for each level: the table of level n lies at n << 16, and slot 0 is used.
#[derive(Default)]
struct Chain {
    entries: [Cell<u64>; 6],
    set: RefCell<Vec<(u64, u64)>>,
}

impl Chain {
    fn at(&self, at: u64) -> Option<&Cell<u64>> {
        let level = at >> 16;
        let known = (1..=5).contains(&level) && at & 0xffff == 0;
        known.then(|| &self.entries[level as usize])
    }
}

impl GpteMemory for Chain {
    fn read(&self, at: Gpa, _: GpteWidth) -> Result<Gpte, GpteError> {
        let cell = self.at(at.get()).ok_or(GpteError::Missing)?;
        Ok(Gpte::new(cell.get()))
    }
    fn compare_exchange(
        &self,
        at: Gpa,
        _: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        let cell = self.at(at.get()).ok_or(GpteError::Missing)?;
        assert_eq!(cell.get(), current.raw());
        self.set
            .borrow_mut()
            .push((at.get(), new.raw() & !current.raw()));
        Ok(CasOutcome::Done)
    }
}

/// What a comparison works on.
struct Pair {
    walker: Walker,
    controls: spec::Controls,
    cr3: u64,
}

impl Pair {
    fn new(state: PagingState) -> Self {
        Self {
            controls: convert::controls(&state),
            cr3: state.cr3.get(),
            walker: Walker::new(state),
        }
    }

    /// Compares the two for every access; returns how many.
    fn compare(&self, chain: &Chain) -> u64 {
        for access in spec::Access::ALL {
            let root = spec::Cr3::new(self.cr3);
            let read = |at: spec::Physical, _: spec::Width| chain.at(at.get()).map(Cell::get);
            let expected =
                spec::translate(&self.controls, root, spec::Linear::new(0), access, &read);
            chain.set.borrow_mut().clear();
            let got = self
                .walker
                .walk(chain, Gva::new(0), convert::access(access));
            let same = agree(&expected, &got, &chain.set.borrow());
            assert!(
                same,
                "{:x?} {access:?}\n{:x?}\nspecification: {expected:x?}\nlibrary: {got:x?}",
                self.controls, chain.entries
            );
        }
        12
    }
}

/// Says whether outcome, error code and the bits set agree.
fn agree(
    expected: &spec::Outcome,
    got: &Result<vmmu::walk::Walk, WalkFailure>,
    set: &[(u64, u64)],
) -> bool {
    match (expected, got) {
        (spec::Outcome::Translation(t), Ok(walk)) => {
            let mapping = t.mapping();
            t.updates()
                .map(|u| (u.slot.at.get(), u.set))
                .eq(set.iter().copied())
                && mapping.physical.get() == walk.gpa().get()
                && mapping.rights.is_user() == walk.rights().contains(Rights::USER)
        }
        (spec::Outcome::PageFault(f), Err(WalkFailure::Fault(fault))) => {
            set.is_empty() && f.code().bits() == fault.code.bits()
        }
        (spec::Outcome::NonCanonical, Err(WalkFailure::NonCanonical)) => true,
        (spec::Outcome::Unbacked(u), Err(WalkFailure::MemoryMissing { gpa, level })) => {
            u.slot().at.get() == gpa.get() && u.slot().level.number() == level.get()
        }
        _ => false,
    }
}

/// A format: its root's level, and the levels that have rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl Format {
    const ALL: [Self; 4] = [Self::Bits32, Self::Pae, Self::Level4, Self::Level5];

    const fn top(self) -> u64 {
        match self {
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    /// The highest level whose entries have W, U and NX.
    const fn rights_top(self) -> u64 {
        match self {
            Self::Pae => 2,
            other => other.top(),
        }
    }

    const fn largest(self) -> u64 {
        match self {
            Self::Bits32 | Self::Pae => 2,
            _ => 3,
        }
    }

    fn state(self, bits: u64, key: u64) -> PagingState {
        let on = |bit: u64| bits >> bit & 1 != 0;
        let mut cr0 = Cr0::PE | Cr0::PG;
        cr0.set(Cr0::WP, on(0));
        let mut cr4 = Cr4::PSE;
        cr4.set(Cr4::SMEP, on(1));
        cr4.set(Cr4::SMAP, on(2));
        let mut efer = Efer::empty();
        efer.set(Efer::NXE, on(3));
        if self != Self::Bits32 {
            cr4 |= Cr4::PAE;
        }
        if matches!(self, Self::Level4 | Self::Level5) {
            efer |= Efer::LME | Efer::LMA;
        }
        cr4.set(Cr4::LA57, self == Self::Level5);
        cr4.set(Cr4::PKE, key != 0);
        PagingState {
            cr0,
            cr3: Cr3::new(self.top() << 16),
            cr4,
            efer,
            // Key 5, with its two bits as the number says.
            pkru: Pkru::new((key.saturating_sub(1) << 10) as u32),
            pdptes: None,
            cpu: CpuModel {
                phys_bits: PhysBits::new(40).expect("a width"),
                features: CpuFeatures::all(),
            },
        }
    }

    /// An entry of `level` with rights: bit 0 W, bit 1 U, bit 2 NX.
    fn entry(self, level: u64, rights: u64, leaf: bool) -> u64 {
        let target = if leaf { 0x4000_0000 } else { (level - 1) << 16 };
        let mut entry = target | P | A | D;
        if self == Self::Pae && level == 3 {
            return target | P;
        }
        entry |= if rights & 1 != 0 { W } else { 0 };
        entry |= if rights & 2 != 0 { U } else { 0 };
        entry |= if rights & 4 != 0 && self != Self::Bits32 {
            NX
        } else {
            0
        };
        entry |= if leaf && level > 1 { PS } else { 0 };
        entry &= if leaf { u64::MAX } else { !D };
        if leaf && matches!(self, Self::Level4 | Self::Level5) {
            entry |= 5 << 59;
        }
        entry
    }

    const fn rights(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            _ => 8,
        }
    }
}

/// Fills the levels from `top` down to `leaf` with the rights that `choice` names, three bits a level.
fn fill(format: Format, chain: &Chain, leaf: u64, choice: u64) {
    let mut choice = choice;
    for level in (leaf..=format.top()).rev() {
        let has_rights = level <= format.rights_top();
        let rights = if has_rights {
            choice % format.rights()
        } else {
            0
        };
        choice /= if has_rights { format.rights() } else { 1 };
        chain.entries[level as usize].set(format.entry(level, rights, level == leaf));
    }
}

#[test]
fn p3_every_combination_of_rights_permits_what_the_specification_says() {
    let mut compared = 0;
    for format in Format::ALL {
        let chain = Chain::default();
        // Protection keys once for each pair of bits, and off; with five levels the upper ones are like those of four.
        let keys = if format == Format::Level4 { 5 } else { 1 };
        for bits in 0..16 {
            for key in 0..keys {
                let pair = Pair::new(format.state(bits, key));
                for leaf in 1..=format.largest() {
                    let levels = (format.rights_top() + 1 - leaf) as u32;
                    for choice in 0..format.rights().pow(levels) {
                        fill(format, &chain, leaf, choice);
                        compared += pair.compare(&chain);
                    }
                }
            }
        }
    }
    println!("{compared} walks compared, every combination of rights");
}

/// What an entry may have that stops a walk, or looks as if it did.
const STOPS: [u64; 12] = [
    0,
    1 << 40,
    1 << 51,
    1 << 52,
    1 << 62,
    NX,
    PS,
    PS | 1 << 13,
    PS | 1 << 20,
    1 << 8,
    1 << 5 | 1 << 6,
    1 << 1 | 1 << 2,
];

#[test]
fn p3_every_entry_that_stops_a_walk_gives_the_code_that_the_specification_gives() {
    let mut compared = 0;
    for format in Format::ALL {
        let chain = Chain::default();
        for bits in 0..16 {
            let pair = Pair::new(format.state(bits, 0));
            for stop in 1..=format.top() {
                let above = format.rights_top().saturating_sub(stop) as u32;
                for choice in 0..format.rights().pow(above) {
                    fill(format, &chain, 1, u64::MAX / 3);
                    fill(format, &chain, stop, choice);
                    let leaf = stop == 1;
                    let rights = format.entry(stop, 3, leaf);
                    for odd in STOPS {
                        for present in [0, P] {
                            let entry = rights & !P | present | odd;
                            let mask = if format == Format::Bits32 {
                                0xffff_ffff
                            } else {
                                u64::MAX
                            };
                            chain.entries[stop as usize].set(entry & mask);
                            compared += pair.compare(&chain);
                        }
                    }
                }
            }
        }
    }
    println!("{compared} walks compared, every stop");
}

#[test]
fn p3_accessed_and_dirty_bits_are_set_as_the_specification_sets_them() {
    let mut compared = 0;
    for format in Format::ALL {
        let chain = Chain::default();
        for bits in 0..16 {
            let pair = Pair::new(format.state(bits, 0));
            for leaf in 1..=format.largest() {
                let levels = format.top() + 1 - leaf;
                for marks in 0..1 << (levels + 1) {
                    // Kernel and user pages, read-only and writable.
                    for rights in 0..4 {
                        fill(format, &chain, leaf, 0o33333 & !3 | rights);
                        for level in leaf..=format.top() {
                            if format == Format::Pae && level == 3 {
                                continue;
                            }
                            let is = if level == leaf { rights } else { 3 };
                            let whole = format.entry(level, is, level == leaf);
                            let accessed = if marks >> (level - leaf) & 1 != 0 {
                                A
                            } else {
                                0
                            };
                            let dirty = if marks >> levels & 1 != 0 && level == leaf {
                                D
                            } else {
                                0
                            };
                            let entry = whole & !(A | D) | accessed | dirty;
                            chain.entries[level as usize].set(entry);
                        }
                        compared += pair.compare(&chain);
                    }
                }
            }
        }
    }
    println!("{compared} walks compared, every accessed and dirty bit");
}
