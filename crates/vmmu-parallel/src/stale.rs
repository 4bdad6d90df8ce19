//! The gate end to end: one vCPU makes the shadow of a guest's tables while another processor writes an entry of them in the guest's name.
//!
//! Key types: [`Stale`] (what was seen), [`Order`] (when the write is reported). Each round begins without a shadow page, so that the gate opens in it; both
//! sides begin together, the write after a delay that differs from round to round.
//!
//! Invariant:
//! 1. When both sides are done, the library's tables lead to the frame that the guest's entry names, or nowhere. What leads elsewhere is stale for good.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::{Gfn, Gpa, Gva, Pfn};
use vmmu::gate::Strategy;
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::walk::Access;
use vmmu::{
    AddressSpace, Config, Engine, FaultOutcome, ForeignWrites, Mmu, SlotConfig, SlotFlags, Vcpu,
};

use crate::Trouble;
use crate::crew::{Meeting, processors, together};
use crate::guest::Tables;
use crate::host::{FlatHost, GUEST};
use crate::memory::Memory;
use crate::rig::{cpu, paging, walk};

const ADDRESS: Gva = Gva::new(0x80_0000_0000);
/// The tables are the frames from 0 on: the root, and one of each level below it.
const LEAVES: u64 = 3;
const OLD: Gfn = Gfn::new(600);
const NEW: Gfn = Gfn::new(1200);
const FRAMES: u64 = 2048;
/// Steps that the write is delayed at most: longer than it takes to make the tables.
const DELAY: u64 = 4096;

/// When a guest write that the hypervisor performs is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// After the store, as it must be.
    AfterStore,
    /// Before it: wrong, to show that stale translations are seen.
    BeforeStore,
}

/// What was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Stale {
    /// The strategy's name.
    pub strategy: &'static str,
    /// Rounds.
    pub rounds: u32,
    /// Rounds in which the write came while tables were being made.
    pub met: u32,
    /// Rounds that left a stale translation.
    pub stale: u32,
}

/// Both sides' common ground.
struct Stage<G: Strategy> {
    mmu: Mmu<FlatHost<G>>,
    meeting: Meeting,
    making: AtomicBool,
    met: AtomicU64,
    stale: AtomicU64,
}

/// Lets both sides meet.
///
/// # Errors
/// [`Trouble`].
pub fn measure<G: Strategy>(gate: fn() -> G, rounds: u32, order: Order) -> Result<Stale, Trouble> {
    let cpus = processors(2)?;
    let stage = Stage::new(gate)?;
    together(
        &cpus,
        |_| {},
        |worker| {
            if worker == 0 {
                stage.make(rounds)
            } else {
                stage.write(rounds, order);
                Ok(())
            }
        },
    )?;
    Ok(Stale {
        strategy: G::NAME,
        rounds,
        met: stage.met.into_inner() as u32,
        stale: stage.stale.into_inner() as u32,
    })
}

impl<G: Strategy> Stage<G> {
    fn new(gate: fn() -> G) -> Result<Self, Trouble> {
        let memory = Memory::new(FRAMES as usize, 64);
        let mut tables = Tables::from(&memory, Gfn::new(0));
        let root = tables.take();
        tables.map_used(root, ADDRESS, OLD);
        let mut config = Config::new(Engine::Shadow, 1, FRAMES, cpu());
        config.foreign_writes = ForeignWrites::SeenEarly;
        let mmu = Mmu::new(FlatHost::with_gate(memory, gate), config)?;
        mmu.add_slot(&SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames: FRAMES,
            token: MemoryToken(GUEST),
            flags: SlotFlags::empty(),
        })?;
        Ok(Self {
            mmu,
            meeting: Meeting::of(2),
            making: AtomicBool::new(false),
            met: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        })
    }

    fn entry(&self) -> &AtomicU64 {
        self.mmu.host().memory.word(LEAVES, 0)
    }

    fn make(&self, rounds: u32) -> Result<(), Trouble> {
        let vcpu = self.mmu.vcpu(VcpuId(0))?;
        let old = self.entry().load(Ordering::Relaxed);
        let mut failed = Ok(());
        for _ in 0..rounds {
            self.meeting.attend();
            let made = self.make_once(&vcpu);
            self.meeting.attend();
            match made {
                Ok(root) => self.look(root),
                // The other side goes on, and has to find somebody at the meetings.
                Err(trouble) => failed = Err(trouble),
            }
            self.mmu.zap_all();
            self.entry().store(old, Ordering::Relaxed);
        }
        failed
    }

    /// Makes the tables from nothing, and has the vCPU leave its guest; returns the root.
    fn make_once(&self, vcpu: &Vcpu<'_, FlatHost<G>>) -> Result<Pfn, Trouble> {
        self.making.store(true, Ordering::SeqCst);
        vcpu.set_paging(&paging(Gfn::new(0)), AddressSpace::Normal)?;
        let mut root = Pfn::containing(vcpu.enter()?.root);
        while walk(&self.mmu.host().memory, root, ADDRESS).is_none() {
            vcpu.exited();
            let outcome = vcpu.handle_fault(ADDRESS, Access::WRITE)?;
            root = Pfn::containing(vcpu.enter()?.root);
            if !matches!(outcome, FaultOutcome::Resume | FaultOutcome::Retry) {
                vcpu.exited();
                return Err(Trouble::Answer(ADDRESS, outcome));
            }
        }
        vcpu.exited();
        self.making.store(false, Ordering::SeqCst);
        Ok(root)
    }

    /// Looks where the tables lead when both sides are done.
    fn look(&self, root: Pfn) {
        let found = walk(&self.mmu.host().memory, root, ADDRESS);
        if found.is_some_and(|found| found.get() != GUEST + NEW.get()) {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, rounds: u32, order: Order) {
        let at = Gfn::new(LEAVES).address();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..rounds {
            self.meeting.attend();
            pass(&mut random);
            let new = self.entry().load(Ordering::Relaxed) ^ (OLD.get() ^ NEW.get()) << 12;
            if self.making.load(Ordering::SeqCst) {
                self.met.fetch_add(1, Ordering::Relaxed);
            }
            match order {
                Order::AfterStore => {
                    self.entry().store(new, Ordering::Relaxed);
                    self.report(at);
                }
                Order::BeforeStore => {
                    self.report(at);
                    pass(&mut random);
                    self.entry().store(new, Ordering::Relaxed);
                }
            }
            self.meeting.attend();
        }
    }

    fn report(&self, at: Gpa) {
        self.mmu.guest_wrote(at, 8);
    }
}

/// Lets some time pass, another time each time: xorshift.
fn pass(random: &mut u64) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    for step in 0..*random % DELAY {
        core::hint::black_box(step);
    }
}

#[cfg(test)]
mod tables_that_are_written_while_they_are_made {
    use super::{Order, measure};
    use crate::Trouble;
    use rustix::thread::{MembarrierCommand, membarrier};
    use vmmu::gate::{Asymmetric, Fenced, HeavyBarrier, Locked, Strategy};

    const ROUNDS: u32 = 500;

    #[derive(Debug)]
    struct Membarrier;

    impl HeavyBarrier for Membarrier {
        fn heavy(&self) {
            membarrier(MembarrierCommand::PrivateExpedited).expect("it was registered");
        }
    }

    /// The asymmetric strategy, which fences where there is no membarrier(2).
    fn asymmetric() -> Asymmetric<Membarrier> {
        match membarrier(MembarrierCommand::RegisterPrivateExpedited) {
            Ok(()) => Asymmetric::new(Membarrier),
            Err(_) => Asymmetric::default(),
        }
    }

    /// Returns the rounds that met, and those that were stale; nothing where there is one processor.
    fn play<G: Strategy>(gate: fn() -> G, order: Order) -> Option<(u32, u32)> {
        match measure(gate, ROUNDS, order) {
            Ok(seen) => Some((seen.met, seen.stale)),
            Err(Trouble::OneProcessor) => None,
            Err(trouble) => panic!("{trouble}"),
        }
    }

    #[test]
    fn are_never_stale_with_any_strategy() {
        let all = [
            play(Fenced::default, Order::AfterStore),
            play(Locked::default, Order::AfterStore),
            play(asymmetric, Order::AfterStore),
        ];
        for (met, stale) in all.into_iter().flatten() {
            assert_eq!(stale, 0, "{met} rounds met");
        }
    }

    #[test]
    fn are_seen_to_be_stale_if_the_write_is_reported_too_early() {
        let early = || play(Fenced::default, Order::BeforeStore);
        // Nothing to see where there is one processor.
        assert!((0..20).any(|_| early().is_none_or(|(_, stale)| stale > 0)));
    }
}
