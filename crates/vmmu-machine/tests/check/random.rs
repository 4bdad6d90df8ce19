//! Random guests on a library that is right: the judge has nothing to say.

use vmmu::Engine;
use vmmu::host::VcpuId;
use vmmu_cpu::{Access, Policy};
use vmmu_machine::check::Judged;
use vmmu_tests::guest::{A, D, G, NX, P, PS, TABLE, U, W, entry, slot};

use crate::rig::{ROOT, Rig, Seen};

const ACCESSES: [Access; 6] = [
    Access::READ,
    Access::WRITE,
    Access::EXECUTE,
    Access::USER_READ,
    Access::USER_WRITE,
    Access::USER_EXECUTE,
];

/// A second root, on the same lower tables and one of its own.
const OTHER: u64 = 24;

struct Guest {
    rig: Rig,
    rng: fastrand::Rng,
    vcpus: u16,
}

impl Guest {
    fn new(engine: Engine, vcpus: u16, policy: Policy, seed: u64) -> Self {
        let rig = Rig::new(engine, vcpus, policy);
        rig.write(slot(OTHER, 0), entry(ROOT + 1, TABLE));
        rig.write(slot(OTHER, 1), entry(OTHER + 1, TABLE));
        rig.write(slot(OTHER + 1, 0), entry(OTHER + 2, TABLE));
        rig.write(slot(OTHER + 2, 0), entry(ROOT + 3, TABLE));
        rig.map_window(OTHER);
        Self {
            rig,
            rng: fastrand::Rng::with_seed(seed),
            vcpus,
        }
    }

    fn vcpu(&mut self) -> VcpuId {
        VcpuId(self.rng.u16(0..self.vcpus))
    }

    fn address(&mut self) -> u64 {
        let top = u64::from(self.rng.u8(0..8) == 0) << 39;
        let upper = u64::from(self.rng.u8(0..4) == 0) << 21;
        top | upper | self.rng.u64(0..8) << 12 | self.rng.u64(0..512) << 3
    }

    fn leaf(&mut self) -> u64 {
        let mut flags = P;
        for flag in [W, U, A, D, A, G, NX] {
            if self.rng.bool() {
                flags |= flag;
            }
        }
        match self.rng.u8(0..16) {
            0 => 0,
            1 => entry(1 << 39, flags),
            2 => entry(2000, flags),
            _ => entry(100 + self.rng.u64(0..16), flags),
        }
    }

    fn edit(&mut self) {
        let vcpu = self.vcpu();
        let (table, index) = match self.rng.u8(0..16) {
            0 => (ROOT + 2, self.rng.u64(0..2)),
            1 => (OTHER + 2, self.rng.u64(0..2)),
            _ => (ROOT + 3, self.rng.u64(0..8)),
        };
        let value = match (table == ROOT + 3, self.rng.u8(0..4)) {
            (true, _) => self.leaf(),
            (false, 0) => self.leaf() & !0x1f_f000 | PS,
            (false, 1) => 0,
            _ => entry(ROOT + 3, TABLE),
        };
        let stored = self.rig.guest_store(vcpu, slot(table, index), value);
        stored.unwrap_or_else(|report| panic!("{report}"));
    }

    fn step(&mut self) {
        let vcpu = self.vcpu();
        match self.rng.u8(0..32) {
            0..6 => self.edit(),
            6 | 7 => {
                let va = self.address();
                self.rig.invlpg(vcpu, va);
            }
            8 => self
                .rig
                .mov_cr3(vcpu, if self.rng.bool() { ROOT } else { OTHER }),
            9 => {
                let gfn = 100 + self.rng.u64(0..16);
                self.rig.take_back(gfn);
            }
            10 => {
                let gfn = ROOT + self.rng.u64(0..4);
                self.rig.take_back(gfn);
            }
            _ => {
                let (va, access) = (self.address(), ACCESSES[self.rng.usize(0..6)]);
                match self.rig.access(vcpu, va, access) {
                    Ok(Seen::Memory(_) | Seen::Emulated(_) | Seen::Fault(_)) => {}
                    Err(report) => panic!("{report}"),
                }
            }
        }
    }
}

fn run(engine: Engine, vcpus: u16, policy: Policy) -> Judged {
    let mut total = Judged::default();
    for seed in 0..40 {
        let mut guest = Guest::new(engine, vcpus, policy, seed);
        for _ in 0..2000 {
            guest.step();
        }
        let judged = guest.rig.judge.judged();
        total.used += judged.used;
        total.refused += judged.refused;
        total.stale += judged.stale;
        total.uncertain += judged.uncertain;
    }
    println!("{engine:?} {vcpus} {total:?}");
    total
}

/// Checks that the past was asked for, and was nearly always known.
fn is_sharp(judged: Judged) {
    assert!(judged.stale > 100, "{judged:?}");
    assert!(judged.uncertain * 20 < judged.used, "{judged:?}");
}

#[test]
fn nothing_is_reported_of_one_processor_that_keeps_everything() {
    is_sharp(run(Engine::Shadow, 1, Policy::KEEP));
}

#[test]
fn nothing_is_reported_of_three_processors_that_choose_at_random() {
    is_sharp(run(Engine::Shadow, 3, Policy::RANDOM));
}

#[test]
fn nothing_is_reported_of_processors_without_caches() {
    run(Engine::Shadow, 2, Policy::NONE);
}

#[test]
fn nothing_is_reported_under_nested_paging() {
    is_sharp(run(Engine::Npt, 2, Policy::KEEP));
    is_sharp(run(Engine::Npt, 2, Policy::RANDOM));
}
