//! Random guests: programs of guests, hypervisors and hosts, checked after each step; what fails shrinks.
//!
//! `VMMU_TEST_CASES` sets how many programs each test runs, 64 unless told. `VMMU_TEST_SEED` sets the seed; without it the short run takes
//! the same one everywhere, so that it says something about a change, and a longer run takes a new one each time and prints it.

use proptest::prelude::{Just, Rng, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use vmmu::addr::Level;
use vmmu::{Engine, ForeignWrites, SlotFlags};
use vmmu_cpu::Policy;
use vmmu_tests::machine::{Judged, Writes};
use vmmu_tests::program::{Alias, Ground, Step, run};

fn step() -> impl Strategy<Value = Step> {
    let b = any::<u8>;
    let v = any::<u16>;
    prop_oneof![
        12 => (b(), b(), b(), v()).prop_map(|(cpu, at, access, value)| Step::Access { cpu, at, access, value }),
        8 => (b(), b(), b(), v()).prop_map(|(cpu, table, slot, value)| Step::Edit { cpu, table, slot, value }),
        4 => (b(), b(), v()).prop_map(|(table, slot, value)| Step::Emulated { table, slot, value }),
        1 => (b(), b(), v()).prop_map(|(table, slot, value)| Step::Unseen { table, slot, value }),
        2 => b().prop_map(|table| Step::Report { table }),
        3 => (b(), b()).prop_map(|(cpu, at)| Step::Invlpg { cpu, at }),
        3 => (b(), b()).prop_map(|(cpu, table)| Step::LoadCr3 { cpu, table }),
        1 => b().prop_map(|cpu| Step::Flush { cpu }),
        1 => (b(), b()).prop_map(|(cpu, bits)| Step::Controls { cpu, bits }),
        1 => (b(), b()).prop_map(|(frame, frames)| Step::TakeBack { frame, frames }),
        1 => b().prop_map(|frame| Step::Share { frame }),
        1 => b().prop_map(|large| Step::Size { large }),
        1 => Just(Step::Slot),
        1 => b().prop_map(|bits| Step::Flags { bits }),
        1 => (b(), b()).prop_map(|(cpu, table)| Step::Unprotect { cpu, table }),
        1 => b().prop_map(|which| Step::Harvest { which }),
        1 => b().prop_map(|cpu| Step::Exit { cpu }),
    ]
}

fn ground(engine: Engine) -> impl Strategy<Value = Ground> {
    let policy = prop_oneof![Just(Policy::KEEP), Just(Policy::RANDOM)];
    let writes = prop_oneof![Just(Writes::Emulate), Just(Writes::Unprotect)];
    let level = prop_oneof![Just(Level::L1), Just(Level::L4)];
    let pages = prop_oneof![3 => Just(0), 1 => Just(1), 1 => Just(20)];
    let flags = prop_oneof![3 => Just(SlotFlags::empty()), 1 => Just(SlotFlags::LOG_DIRTY)];
    let prefetch = prop_oneof![Just(0), Just(64)];
    let limit = prop_oneof![Just(1), Just(2), Just(32)];
    let alias = prop_oneof![3 => Just(Alias::None), 1 => Just(Alias::Shown)];
    let foreign = prop_oneof![
        Just(ForeignWrites::SeenEarly),
        Just(ForeignWrites::ReportedFirst)
    ];
    let memory = (limit, flags, alias, foreign);
    (1..4_u8, policy, writes, level, pages, prefetch, memory).prop_map(
        move |(cpus, policy, writes, unsync_level, max_pages, prefetch, memory)| {
            let (unsync_limit, flags, alias, foreign_writes) = memory;
            Ground {
                engine,
                cpus,
                policy,
                writes,
                unsync_level,
                max_pages,
                prefetch,
                unsync_limit,
                foreign_writes,
                flags,
                alias,
            }
        },
    )
}

/// Chooses a guest whose memory needs more nested tables than there may be.
fn crowded(engine: Engine) -> impl Strategy<Value = Ground> {
    ground(engine).prop_map(|ground| Ground {
        cpus: 1,
        max_pages: 1,
        alias: Alias::Shown,
        ..ground
    })
}

fn check(engine: Engine, share: u32) {
    let _ = check_on(ground(engine), engine, share);
}

fn check_on(grounds: impl Strategy<Value = Ground>, engine: Engine, share: u32) -> Judged {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let cases = number("VMMU_TEST_CASES");
    let fresh = cases.map_or(1, |_| TestRunner::default().rng().next_u64());
    let seed = number("VMMU_TEST_SEED").unwrap_or(fresh);
    println!("{engine:?}: VMMU_TEST_SEED={seed}");
    let cases = cases.unwrap_or(64) as u32;
    let mut runner = TestRunner::new(Config {
        cases: cases / share,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    });
    let programs = (grounds, proptest::collection::vec(step(), 1..200));
    let judged = core::cell::Cell::new(Judged::default());
    let result = runner.run(&programs, |(ground, steps)| {
        let mut sum = judged.get();
        sum += run(ground, &steps);
        judged.set(sum);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, (ground, steps))) => {
            panic!("{why}\non {ground:?}:\n{steps:?}");
        }
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
    println!("{engine:?}: {:?}", judged.get());
    judged.get()
}

#[test]
fn a_shadowed_guest_sees_what_a_processor_may_show() {
    check(Engine::Shadow, 1);
}

#[test]
fn a_guest_on_npt_sees_what_a_processor_may_show() {
    check(Engine::Npt, 4);
}

#[test]
fn a_guest_on_ept_sees_what_a_processor_may_show() {
    check(Engine::Ept, 4);
}

#[test]
fn a_guest_with_too_few_nested_tables_sees_what_a_processor_may_show() {
    for engine in [Engine::Npt, Engine::Ept] {
        let judged = check_on(crowded(engine), engine, 1);
        assert_ne!(judged.reclaimed, 0, "no table had to go");
    }
}
