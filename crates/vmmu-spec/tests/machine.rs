//! `allowed` against a small machine that has a TLB and paging-structure caches and uses them at whim.
//!
//! Nothing that the machine shows may be missing from `allowed`, and where the machine writes
//! nothing itself (A and D are set already) everything in `allowed` is shown by some run of it.

mod common;

use std::collections::BTreeSet;

use common::{A, D, G, P, ROOT, Tables, U, W, long, user};
use vmmu_spec::{
    Access, Controls, Cr3, Cr4, Efer, Kind, Linear, Mapping, Memory, Observation, Physical,
    Progress, Scope, Start, Stop, Time, Update, Walk, Width, Window, WriteLog, allowed, error_code,
    is_allowed,
};

const T2: u64 = 0x2000;
const T3: u64 = 0x3000;
/// Two page tables, which the page directory switches between.
const TABLES: [u64; 2] = [0x4000, 0x5000];
const FULL: u64 = P | W | U;

/// A small generator, so that a failing seed can be named.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

struct Machine<'c> {
    controls: &'c Controls,
    log: WriteLog<Tables>,
    /// Walks suspended below a cached entry: the paging-structure caches.
    structures: Vec<Walk<'c>>,
    tlb: Vec<Mapping>,
}

impl<'c> Machine<'c> {
    fn new(controls: &'c Controls) -> Self {
        let table = FULL | A;
        let mut tables = Tables::new(&[
            (ROOT, T2 | table),
            (T2, T3 | table),
            (T3, TABLES[0] | table),
        ]);
        tables.0.insert(TABLES[0], 0x7000 | table | D);
        // Not to be seen by anyone if it is replaced before the table is linked.
        tables.0.insert(TABLES[1], 0xa000 | table | D);
        Self {
            controls,
            log: WriteLog::new(tables),
            structures: Vec::new(),
            tlb: Vec::new(),
        }
    }

    fn set(&mut self, update: &Update) {
        let Update { slot, set } = *update;
        let old = self.log.read(slot.at, slot.width).unwrap();
        if old | set != old {
            self.log.write(slot.at, slot.width, old | set);
        }
    }

    fn full_walk(&self) -> Walk<'c> {
        match Walk::start(self.controls, Cr3::new(ROOT), Linear::new(0)) {
            Start::Walk(walk) => walk,
            other => panic!("{other:?}"),
        }
    }

    /// Walks from a random cache entry or from the root, setting A and filling the caches at random.
    fn walk(&mut self, rng: &mut Rng) -> Result<Mapping, Stop> {
        let from = rng.below(self.structures.len() as u64 + 1) as usize;
        let mut walk = match self.structures.get(from) {
            Some(cached) => cached.clone(),
            None => self.full_walk(),
        };
        loop {
            let slot = walk.needs();
            let value = self.log.read(slot.at, slot.width).unwrap();
            let progress = walk.feed(value);
            if let Progress::Stopped(stop) = progress {
                return Err(stop);
            }
            if value & A == 0 {
                self.set(&Update { slot, set: A });
            }
            match progress {
                Progress::Done(mapping) => {
                    if rng.one_in(2) {
                        self.tlb.push(mapping);
                    }
                    return Ok(mapping);
                }
                _ if rng.one_in(2) => self.structures.push(walk.clone()),
                _ => {}
            }
        }
    }

    /// Makes an access, from the TLB or by a walk.
    fn access(&mut self, access: Access, rng: &mut Rng) -> Observation {
        let hit = rng.below(self.tlb.len() as u64 + 1) as usize;
        let mapping = match self.tlb.get(hit) {
            Some(mapping) => Ok(*mapping),
            None => self.walk(rng),
        };
        let cause = match mapping {
            Ok(mapping) => {
                let denial = mapping.rights.denial(self.controls, access);
                if denial.is_empty() {
                    return Observation::Access(mapping.physical);
                }
                vmmu_spec::Cause::Denied(denial)
            }
            Err(stop) => vmmu_spec::Cause::NoTranslation(vmmu_spec::Level::PageTable, stop),
        };
        // A page fault flushes its address (SDM section 4.10.4.1); here, every address.
        self.tlb.clear();
        self.structures.clear();
        Observation::PageFault(error_code(self.controls, access, cause))
    }

    fn write(&mut self, at: u64, value: u64) {
        self.log.write(Physical::new(at), Width::Eight, value);
    }
}

fn random_entry(rng: &mut Rng, flags: u64) -> u64 {
    let frame = 0x7000 + 0x1000 * rng.below(3);
    match rng.below(5) {
        0 => 0,
        1 => frame | P | U | flags,
        2 => frame | FULL | flags | 1 << 45,
        _ => frame | FULL | flags,
    }
}

#[test]
fn whatever_the_machine_shows_is_allowed() {
    let controls = long(Cr4::empty(), Efer::NXE);
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let mut stale = 0;
    for run in 0..3000 {
        let mut machine = Machine::new(&controls);
        let mut flushed = Time::START;
        for step in 0..30 {
            let flags = if rng.one_in(2) { A | D } else { 0 };
            match rng.below(8) {
                0 | 1 => {
                    let entry = random_entry(&mut rng, flags);
                    machine.write(TABLES[rng.below(2) as usize], entry);
                }
                2 => machine.write(T3, TABLES[rng.below(2) as usize] | FULL | flags & A),
                3 if rng.one_in(4) => {
                    machine.tlb.clear();
                    machine.structures.clear();
                    flushed = machine.log.now();
                }
                4 => {
                    let _ = machine.walk(&mut rng);
                }
                _ => {
                    let access = Access::ALL[rng.below(12) as usize];
                    let before = machine.log.clone();
                    let window = Window::since(flushed, before.now());
                    let observed = machine.access(access, &mut rng);
                    let (root, linear) = (Cr3::new(ROOT), Linear::new(0));
                    let ok = is_allowed(&controls, root, linear, access, &before, window, observed);
                    assert!(ok, "run {run} step {step}: {access:?} showed {observed:x?}");
                    let fresh = Window::since(before.now(), before.now());
                    stale += u32::from(!is_allowed(
                        &controls, root, linear, access, &before, fresh, observed,
                    ));
                    if matches!(observed, Observation::PageFault(_)) {
                        flushed = machine.log.now();
                    }
                }
            }
        }
    }
    assert!(
        stale > 500,
        "only {stale} accesses showed anything stale: the test tests little"
    );
}

/// Replays fixed writes with random fills in between, and returns all that the final read shows.
fn all_shown(controls: &Controls, writes: &[(u64, u64)], runs: u32) -> BTreeSet<String> {
    let mut rng = Rng(0x0fed_cba9_8765_4321);
    let mut shown = BTreeSet::new();
    for _ in 0..runs {
        let mut machine = Machine::new(controls);
        for (at, value) in writes {
            for _ in 0..rng.below(3) {
                let _ = machine.walk(&mut rng);
            }
            machine.write(*at, *value);
        }
        for _ in 0..rng.below(2) {
            let _ = machine.walk(&mut rng);
        }
        shown.insert(format!("{:?}", machine.access(user(Kind::Write), &mut rng)));
    }
    shown
}

#[test]
fn whatever_is_allowed_the_machine_shows_at_some_time() {
    let controls = long(Cr4::empty(), Efer::NXE);
    let mut rng = Rng(0x5555_1234_aaaa_4321);
    for history in 0..40 {
        let writes: Vec<_> = (0..4)
            .map(|_| match rng.below(3) {
                0 => (T3, TABLES[rng.below(2) as usize] | FULL | A),
                _ => (TABLES[rng.below(2) as usize], random_entry(&mut rng, A | D)),
            })
            .collect();
        let mut log = Machine::new(&controls).log;
        for (at, value) in &writes {
            log.write(Physical::new(*at), Width::Eight, *value);
        }
        let window = Window::since(Time::START, log.now());
        let (root, linear) = (Cr3::new(ROOT), Linear::new(0));
        let outcomes = allowed(&controls, root, linear, user(Kind::Write), &log, window);
        let expected: BTreeSet<_> = outcomes
            .iter()
            .map(|outcome| format!("{:?}", outcome.observation().unwrap()))
            .collect();
        let shown = all_shown(&controls, &writes, 4000);
        assert_eq!(shown, expected, "history {history}: {writes:x?}");
    }
}

/// SDM section 4.10.2.4: what a TLB may keep over a CR3 load is what `Window::left` allows.
#[test]
fn global_entries_of_the_machine_are_allowed_after_the_space_was_left() {
    let controls = long(Cr4::PGE, Efer::NXE);
    let mut rng = Rng(0x7777_1234_8888_4321);
    let mut kept = 0;
    for run in 0..2000 {
        let mut machine = Machine::new(&controls);
        for _ in 0..6 {
            let global = if rng.one_in(2) { G } else { 0 };
            let entry = random_entry(&mut rng, A | D | global);
            machine.write(TABLES[0], entry);
            let _ = machine.walk(&mut rng);
        }
        let left = machine.log.now();
        machine.tlb.retain(|mapping| mapping.scope == Scope::Global);
        machine.write(TABLES[0], 0);
        for mapping in &machine.tlb {
            let (root, linear) = (Cr3::new(ROOT), Linear::new(0));
            let window = Window::left(Time::START, left);
            let observed = Observation::Access(mapping.physical);
            let log = &machine.log;
            let read = user(Kind::Read);
            assert!(
                is_allowed(&controls, root, linear, read, log, window, observed),
                "run {run}"
            );
            kept += 1;
        }
    }
    assert!(kept > 500);
}
