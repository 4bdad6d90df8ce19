//! A run: processors on their threads, or one after the other by seed.
//!
//! Invariants:
//! 1. Deterministic, nobody is inside the guest while another's call runs.

use core::panic::AssertUnwindSafe;
use core::time::Duration;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Instant;

use crate::check::{Load, Observer};
use crate::cpu::exit::{Exit, Pause};
use crate::cpu::{Kick, Processor};
use crate::machine::{End, Handle, Nature, Placement, Record};
use crate::vmm::Vm;
use crate::vmm::quiet::Member;
use crate::vmm::reclaim::Reclaim;
use crate::vmm::report;
use crate::vmm::runner::{Exits, Runner};

/// Instructions between two looks at timers and interrupts.
const BUDGET: u64 = 20_000;
/// The most instructions of a turn, where processors take turns.
const TURN: u64 = 4_000;
/// The longest sleep.
const NAP: Duration = Duration::from_millis(20);

/// The time between two times of taking frames back and ageing others.
const BREATH: Duration = Duration::from_micros(500);
/// One turn in so many takes frames back, and ages others.
const RECLAIM_ODDS: u32 = 64;
/// What makes the seed of taking frames back another one.
const RECLAIM_SEED: u64 = 0x7265_636c_6169_6d00;

/// What a processor leaves behind.
struct Remains {
    work: crate::cpu::Work,
    mmu: vmmu_cpu::Counters,
    exits: Exits,
    port_reads: BTreeMap<u16, u64>,
}

/// A machine, whoever watches it.
pub(crate) trait Run: core::fmt::Debug + Send {
    /// Returns a handle for other threads.
    fn handle(&self) -> Handle;
    /// Runs to the end.
    fn run(self: Box<Self>) -> Record;
}

/// What other threads can do to a machine, whoever watches it.
pub(crate) trait Control: core::fmt::Debug + Send + Sync {
    /// Ends the run.
    fn stop(&self);
    /// Sends bytes to the guest's serial port.
    fn serial_input(&self, bytes: &[u8]);
}

impl<O: Observer + core::fmt::Debug + 'static> Control for Vm<O> {
    fn stop(&self) {
        self.finish(End::Stopped);
    }
    fn serial_input(&self, bytes: &[u8]) {
        self.platform.serial_input(self.clock.now(), bytes);
    }
}

/// A machine with its processors.
#[derive(Debug)]
pub(crate) struct Assembled<O: Observer> {
    pub(crate) vm: Arc<Vm<O>>,
    pub(crate) processors: Vec<Processor<O>>,
    pub(crate) nature: Nature,
    pub(crate) seed: u64,
    pub(crate) reclaims: bool,
    pub(crate) placement: Placement,
}

impl<O: Observer + core::fmt::Debug + 'static> Run for Assembled<O> {
    fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.vm) as Arc<dyn Control>)
    }

    fn run(self: Box<Self>) -> Record {
        let begin = Instant::now();
        let vm = &*self.vm;
        let mut reclaim = Reclaim::new(self.seed ^ RECLAIM_SEED);
        let remains = match self.nature {
            Nature::Plain | Nature::Hostile => {
                let reclaim = self.reclaims.then_some(&mut reclaim);
                run_in_parallel(vm, self.processors, self.placement, reclaim)
            }
            Nature::Deterministic => run_in_turn(
                vm,
                self.processors,
                self.seed,
                self.reclaims.then_some(&mut reclaim),
            ),
        };
        vm.audit();
        let mut exits = Exits::default();
        for (sum, one) in remains.iter().flat_map(exits_of) {
            exits.0[sum] += one;
        }
        let mut port_reads = BTreeMap::new();
        for (port, count) in remains.iter().flat_map(|one| &one.port_reads) {
            *port_reads.entry(*port).or_default() += count;
        }
        Record {
            end: vm.take_end().unwrap_or(End::Stopped),
            elapsed: begin.elapsed(),
            instructions: remains.iter().map(|one| one.work.instructions).sum(),
            work: remains.iter().map(|one| one.work).collect(),
            mmu: remains.iter().map(|one| one.mmu).collect(),
            exits,
            port_reads,
            stats: vm.mmu.stats(),
            judged: vm.observer.judged(),
            audits: vm.audits.count(),
            frames_moved: reclaim.moved,
            frames_used: reclaim.used,
            marks: vm.take_marks(),
        }
    }
}

fn exits_of(remains: &Remains) -> impl Iterator<Item = (usize, u64)> {
    remains.exits.0.iter().copied().enumerate()
}

fn runner<'m, O: Observer>(
    vm: &'m Vm<O>,
    number: usize,
    processor: Processor<O>,
) -> Option<Runner<'m, O>> {
    match Runner::new(vm, number as u16, processor) {
        Ok(mut runner) => {
            runner.apply(Load::Machine);
            Some(runner)
        }
        Err(error) => {
            vm.finish(End::Refused(error.to_string()));
            None
        }
    }
}

fn remains<O: Observer>(runner: &Runner<'_, O>) -> Remains {
    Remains {
        work: runner.processor.work(),
        mmu: runner.processor.mmu().counters(),
        exits: runner.exits,
        port_reads: runner.port_reads.clone(),
    }
}

fn run_in_parallel<O: Observer>(
    vm: &Vm<O>,
    processors: Vec<Processor<O>>,
    placement: Placement,
    reclaim: Option<&mut Reclaim>,
) -> Vec<Remains> {
    std::thread::scope(|scope| {
        if let Some(reclaim) = reclaim {
            scope.spawn(move || {
                let _guard = EndsTheRun(vm);
                let member = vm.quiet.join();
                while !vm.is_over() {
                    reclaim.take_some(vm);
                    reclaim.age_some(vm);
                    member.away(|| std::thread::sleep(BREATH));
                }
            });
        }
        let threads: Vec<_> = processors
            .into_iter()
            .enumerate()
            .map(|(number, processor)| {
                scope.spawn(move || {
                    placement.bind(number);
                    run_one(vm, number, processor)
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok().flatten())
            .collect()
    })
}

fn run_one<O: Observer>(vm: &Vm<O>, number: usize, processor: Processor<O>) -> Option<Remains> {
    let _guard = EndsTheRun(vm);
    let member = vm.quiet.join();
    vm.kicks[number].is_here();
    let mut runner = runner(vm, number, processor)?;
    // After a panic the runner is only looked at, for the report.
    let result = catch_unwind(AssertUnwindSafe(|| run_with_others(&mut runner, &member)));
    if let Err(panic) = result {
        vm.finish(End::Broken(report::panicked(&mut runner, &*panic)));
    }
    Some(remains(&runner))
}

fn run_with_others<O: Observer>(runner: &mut Runner<'_, O>, member: &Member<'_>) {
    let vm = runner.vm();
    while !vm.is_over() {
        member.pass();
        match runner.turn(BUDGET) {
            None => sleep(runner, member),
            Some(exit) if vm.audits.counts(exit) => {
                member.alone(|| vm.kicks.iter().for_each(Kick::kick), || vm.audit());
            }
            // It may spin on what another processor is to do, whose thread may have no core yet.
            Some(Exit::Pause(Pause::Budget)) if vm.kicks.len() > 1 => std::thread::yield_now(),
            Some(_) => {}
        }
    }
}

/// Ends the run if its thread panics, which is a bug: the others are not to wait for that one for ever.
struct EndsTheRun<'m, O: Observer>(&'m Vm<O>);

impl<O: Observer> Drop for EndsTheRun<'_, O> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .finish(End::Broken("a thread of the machine panicked".to_owned()));
        }
    }
}

/// Sleeps until the next timer, a kick, or a while.
fn sleep<O: Observer>(runner: &mut Runner<'_, O>, member: &Member<'_>) {
    let vm = runner.vm();
    vm.set_stuck(runner.number(), runner.is_stuck());
    runner.look_at_the_clock();
    let now = vm.clock.now();
    let until = vm.platform.next_event();
    let longest = until.map_or(NAP, |at| {
        Duration::from_nanos(at.0.saturating_sub(now.0)).min(NAP)
    });
    if !vm.platform.has_pending(runner.number()) || runner.is_stuck() {
        member.away(|| vm.kicks[runner.number()].sleep(longest));
    }
    vm.set_stuck(runner.number(), false);
}

fn run_in_turn<O: Observer>(
    vm: &Vm<O>,
    processors: Vec<Processor<O>>,
    seed: u64,
    mut reclaim: Option<&mut Reclaim>,
) -> Vec<Remains> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7475_726e);
    let made = processors.into_iter().enumerate();
    let mut runners: Vec<_> = made
        .filter_map(|(number, processor)| runner(vm, number, processor))
        .collect();
    while !vm.is_over() {
        if let Some(reclaim) = &mut reclaim
            && rng.u32(..RECLAIM_ODDS) == 0
        {
            reclaim.take_some(vm);
            reclaim.age_some(vm);
        }
        let first = rng.usize(0..runners.len().max(1));
        let count = runners.len();
        let mut ran = false;
        for i in 0..count {
            let runner = &mut runners[(first + i) % count];
            if let Some(exit) = runner.turn(rng.u64(1..TURN)) {
                ran = true;
                if vm.audits.counts(exit) {
                    vm.audit();
                }
                break;
            }
        }
        if !ran {
            pass_time(vm, &runners);
        }
    }
    runners.iter().map(remains).collect()
}

/// Lets time pass until the next timer, where everybody sleeps.
fn pass_time<O: Observer>(vm: &Vm<O>, runners: &[Runner<'_, O>]) {
    // Those that are not stuck first: what is noted of them is older than this.
    for is_stuck in [false, true] {
        for runner in runners.iter().filter(|one| one.is_stuck() == is_stuck) {
            vm.set_stuck(runner.number(), is_stuck);
        }
    }
    let now = vm.clock.now();
    match vm.platform.next_event() {
        Some(at) => vm.clock.pass(at.0.saturating_sub(now.0).max(1)),
        // Only somebody outside can wake them.
        None => std::thread::sleep(Duration::from_millis(1)),
    }
    if let Some(runner) = runners.first() {
        runner.look_at_the_clock();
    }
}
