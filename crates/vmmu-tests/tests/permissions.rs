//! P3: the walker, and the shadow engine end to end, against the specification over every combination of rights (rules R9 and R13).
//!
//! Exhaustive is meant so: what decides an access is the AND of the rights on the way, the entry that stops the walk, the control bits and the access.
//! Each test runs the whole product of those for which the specification may say different things:
//! 1. every W, U and NX at every level, for every size of page, times WP, SMEP, SMAP, NXE, protection key rights, times every access;
//! 2. every way in which an entry of any level stops a walk, below every combination of rights above it, times controls and accesses;
//! 3. every A of every level and D of the leaf, times every access.
//!
//! Each prints how many walks it compared.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{
    CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, Pdptes, PhysBits, Pkru,
};
use vmmu::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, Rights, WalkFailure, Walker};
use vmmu::{Engine, SlotFlags};
use vmmu_spec as spec;
use vmmu_tests::convert;
use vmmu_tests::guest::{
    A, D, NX, P, PS, RESERVED, ROOT, TABLE, U, W, entry, long4, map_tree, slot,
};
use vmmu_tests::machine::{Audits, Machine, Setup};

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

/// Guest memory of the random comparison.
#[derive(Default)]
struct Sparse {
    words: RefCell<BTreeMap<u64, u64>>,
    set: RefCell<Vec<(u64, u64)>>,
}

impl GpteMemory for Sparse {
    fn read(&self, at: Gpa, _: GpteWidth) -> Result<Gpte, GpteError> {
        let words = self.words.borrow();
        let found = words.get(&at.get()).ok_or(GpteError::Missing)?;
        Ok(Gpte::new(*found))
    }
    fn compare_exchange(
        &self,
        at: Gpa,
        _: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        let mut words = self.words.borrow_mut();
        let word = words.get_mut(&at.get()).ok_or(GpteError::Missing)?;
        if *word != current.raw() {
            return Ok(CasOutcome::Lost);
        }
        *word = new.raw();
        self.set
            .borrow_mut()
            .push((at.get(), new.raw() & !current.raw()));
        Ok(CasOutcome::Done)
    }
}

/// One random case: control state, tables, and the address.
struct Case {
    state: PagingState,
    gva: u64,
    words: BTreeMap<u64, u64>,
}

fn random_state(rng: &mut fastrand::Rng, mode: u64) -> PagingState {
    let widths = [32, 36, 39, 40, 46, 52];
    let mut cr0 = 1 | rng.u64(0..2) << 16;
    let mut cr4 = 0;
    let mut efer = rng.u64(0..2) << 11;
    for bit in [4, 7, 20, 21, 22] {
        cr4 |= rng.u64(0..2) << bit;
    }
    if mode != 0 {
        cr0 |= 1 << 31;
    }
    match mode {
        // LA57 means nothing outside of long mode.
        1 => cr4 |= rng.u64(0..2) << 12,
        2 => cr4 |= 1 << 5 | rng.u64(0..2) << 12,
        3 => (cr4, efer) = (cr4 | 1 << 5, efer | 0x500),
        4 => (cr4, efer) = (cr4 | 1 << 5 | 1 << 12, efer | 0x500),
        _ => {}
    }
    let low = if mode == 2 { 0x1f } else { 0xfff };
    PagingState {
        cr0: Cr0::from_bits_retain(cr0),
        cr3: Cr3::new(0x1_0000 | rng.u64(..) & low),
        cr4: Cr4::from_bits_retain(cr4),
        efer: Efer::from_bits_retain(efer),
        pkru: Pkru::new(rng.u32(..)),
        pdptes: None,
        cpu: CpuModel {
            phys_bits: PhysBits::new(widths[rng.usize(0..6)]).expect("a width"),
            features: CpuFeatures::from_bits_truncate(rng.u8(..)),
        },
    }
}

fn random_entry(rng: &mut fastrand::Rng, mode: u64, level: u32, bits: u8) -> u64 {
    let mut one_in = |n: u32| rng.u32(0..n) == 0;
    let mut entry = (0x2_0000 + u64::from(level) * 0x1_0000) | P;
    if !(mode == 2 && level == 3) {
        for (bit, odds, set) in [
            (1, 8, false),
            (2, 8, false),
            (63, 8, true),
            (5, 2, true),
            (6, 2, true),
            (7, 4, true),
            (8, 4, true),
        ] {
            let set = one_in(odds) == set;
            entry |= u64::from(set) << bit;
        }
        if mode >= 3 {
            entry |= rng.u64(0..16) << 59;
        }
    }
    if level == 1 || entry & PS != 0 {
        let align = match (level, mode) {
            (1, _) => 12,
            (2, 1) => 22,
            (2, _) => 21,
            _ => 30,
        };
        if rng.u8(0..8) != 0 {
            let base = rng.u64(..) & ((1 << bits) - 1) & !((1 << align) - 1);
            entry = entry & (0x7800_0000_0000_0fff | NX) | base;
            entry |= if level > 1 { rng.u64(0..2) << 12 } else { 0 };
            if mode == 1 && level == 2 {
                entry |= rng.u64(..) & 0x1f_e000 & if rng.bool() { 0x1_e000 } else { u64::MAX };
            }
        }
    }
    match rng.u32(0..60) {
        0..5 => entry ^ 1 << rng.u32(0..64),
        5 => rng.u64(..),
        6 => 0,
        _ => entry,
    }
}

fn random_case(rng: &mut fastrand::Rng) -> Case {
    let mode = if rng.u8(0..20) == 0 { 0 } else { rng.u64(1..5) };
    let mut state = random_state(rng, mode);
    let bits = state.cpu.phys_bits.get();
    let gva = match mode {
        _ if rng.u8(0..10) == 0 => rng.u64(..),
        0..3 => u64::from(rng.u32(..)),
        3 => ((rng.u64(..) << 16) as i64 >> 16) as u64,
        _ => ((rng.u64(..) << 7) as i64 >> 7) as u64,
    };
    let mut words = BTreeMap::new();
    let mut table = 0x1_0000_u64;
    let levels = [0, 2, 3, 4, 5][mode as usize];
    for level in (1..=levels).rev() {
        let (width, shift, mask) = match (mode, level) {
            (1, _) => (4, 12 + 10 * (level - 1), 0x3ff),
            (2, 3) => (8, 30, 3),
            _ => (8, 12 + 9 * (level - 1), 0x1ff),
        };
        let mut entry = random_entry(rng, mode, level, bits);
        entry &= if mode == 1 { 0xffff_ffff } else { u64::MAX };
        if mode == 2 && level == 3 && rng.bool() {
            let mut registers = [0; 4].map(|_: u64| rng.u64(..));
            registers[(gva >> 30 & 3) as usize] = entry;
            state.pdptes = Some(Pdptes::new(registers));
        } else if rng.u32(0..200) != 0 {
            words.insert(table + width * (gva >> shift & mask), entry);
        }
        table = entry & ((1 << bits) - 1) & !0xfff;
    }
    Case { state, gva, words }
}

#[test]
fn p3_random_tables_are_walked_as_the_specification_walks_them() {
    let cases = std::env::var("VMMU_TEST_CASES").ok();
    let cases: u64 = cases.and_then(|c| c.parse().ok()).unwrap_or(64) * 2000;
    let mut rng = fastrand::Rng::with_seed(0x5eed);
    let mut translated = 0;
    for _ in 0..cases {
        let case = random_case(&mut rng);
        let controls = convert::controls(&case.state);
        let walker = Walker::new(case.state);
        let access = spec::Access::ALL[rng.usize(0..12)];
        let memory = Sparse {
            words: RefCell::new(case.words.clone()),
            set: RefCell::default(),
        };
        let read = |at: spec::Physical, _: spec::Width| case.words.get(&at.get()).copied();
        let root = spec::Cr3::new(case.state.cr3.get());
        let expected = spec::translate(&controls, root, spec::Linear::new(case.gva), access, &read);
        let got = walker.walk(&memory, Gva::new(case.gva), convert::access(access));
        translated += u64::from(got.is_ok());
        assert!(
            agree(&expected, &got, &memory.set.borrow()),
            "{:x?}\n{:x} {access:?}\n{:x?}\nspecification: {expected:x?}\nlibrary: {got:x?}",
            case.state,
            case.gva,
            case.words
        );
    }
    println!("{cases} random walks compared, {translated} of them translations");
    assert!(
        translated * 10 > cases,
        "the cases are too odd to test much"
    );
}

/// A tree whose level-2 entries and level-1 entries have every combination of W, U and NX, level-1 ones without A and D too, and one that is reserved.
fn machine(bits: u64) -> Machine {
    let mut machine = Machine::new(&Setup::new(Engine::Shadow, 1));
    machine.audits = Audits::OnDemand;
    machine.add_slot(0, 1024, 0x4000, SlotFlags::empty());
    map_tree(&mut machine);
    for upper in 0..8 {
        let table = ROOT + 3 + upper;
        let rights = Format::Level4.entry(2, upper, false) & 0x8000_0000_0000_0fff;
        machine.poke(slot(ROOT + 2, upper), entry(table, rights));
        for lower in 0..8 {
            let rights = Format::Level4.entry(1, lower, true) & 0x8000_0000_0000_0fff;
            machine.poke(slot(table, lower), entry(100 + lower, rights));
            machine.poke(
                slot(table, 8 + lower),
                entry(100 + lower, rights & !(A | D)),
            );
        }
        machine.poke(slot(table, 16), entry(100, TABLE | RESERVED));
    }
    let mut state = long4(ROOT);
    let on = |bit: u64| bits >> bit & 1 != 0;
    state.cr0.set(Cr0::WP, on(0));
    state.cr4.set(Cr4::SMEP, on(1));
    state.cr4.set(Cr4::SMAP, on(2));
    state.efer.set(Efer::NXE, on(3));
    machine.set_state(0, state);
    machine
}

#[test]
fn p3_shadow_tables_grant_what_the_specification_grants() {
    let mut judged = 0;
    for bits in 0..16 {
        let mut machine = machine(bits);
        // Twice and in two orders: what one access left behind must not serve another.
        for round in 0..2 {
            for upper in 0..8 {
                for lower in 0..17 {
                    for i in 0..12 {
                        let access = spec::Access::ALL[if round == 0 { i } else { 11 - i }];
                        let va = upper << 21 | lower << 12;
                        let _ = machine.access(0, va, access);
                    }
                }
            }
            machine.audit();
            machine.flush(0);
        }
        judged += machine.judged.all;
    }
    println!("{judged} accesses through shadow tables judged");
}
