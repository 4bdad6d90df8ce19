//! Random tables, walked by the library and by the specification.

use core::cell::RefCell;
use std::collections::BTreeMap;

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{
    CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, Pdptes, PhysBits, Pkru,
};
use vmmu::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, Walker};
use vmmu_spec as spec;
use vmmu_tests::convert;
use vmmu_tests::guest::{NX, P, PS};

use super::agree;

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
