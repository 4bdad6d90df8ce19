//! How long faults take while another thread zaps everything, or write-protects all memory, of a VM with very many mapped pages.
//!
//! Key types: [`Scale`], [`Latencies`] (of one phase). One vCPU faults on fresh pages all the time; the other thread acts now and then.
//!
//! Invariants:
//! 1. A fault is timed from its exit until the tables let the access through, retries included.
//! 2. A fault during which the thread lost its processor is not the library's: it is counted apart.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::time::Instant;

use vmmu::addr::{Gfn, Gva, Pfn};
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::walk::Access;
use vmmu::{
    AddressSpace, Config, Engine, FaultOutcome, ForeignWrites, Mmu, SlotConfig, SlotFlags, SlotId,
    Vcpu,
};

use crate::Trouble;
use crate::crew::{Clocks, processors, together};
use crate::guest::{Tables, forget_use};
use crate::host::{FlatHost, GUEST};
use crate::memory::Memory;
use crate::rig::{cpu, paging, walk};

/// Where the addresses of the many pages begin, and those of the pages that are touched.
const MANY: u64 = 0x80_0000_0000;
const FRESH: u64 = 0x100_0000_0000;
/// Pages that are touched before they are taken away and touched again.
const TOUCHED: u64 = 2048;
/// Guest frames of the tables of both.
const TOUCHED_TABLES: u64 = 0;
const MANY_TABLES: u64 = 512;
/// A fault that takes longer may have been interrupted.
const SUSPECT: Duration = Duration::from_micros(20);

/// How large the VM is, and how long to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// Pages that are mapped, a multiple of 512.
    pub pages: u64,
    /// How often each action is repeated.
    pub repeats: u32,
    /// How long to look while nothing happens, each time.
    pub calm: Duration,
}

/// What the other thread does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing.
    Calm,
    /// It zaps every page.
    Zap,
    /// It has writes logged from now on, which takes every mapping away.
    Protect,
    /// It takes the log, which write-protects what was written.
    Harvest,
    /// It prepares the next; not reported.
    Preparing,
}

impl Phase {
    /// Those that are reported.
    pub const REPORTED: [Self; 4] = [Self::Calm, Self::Zap, Self::Protect, Self::Harvest];

    /// Returns the name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "nothing",
            Self::Zap => "zaps everything",
            Self::Protect => "has writes logged",
            Self::Harvest => "takes the log",
            Self::Preparing => "prepares",
        }
    }
}

/// The faults of one phase.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Latencies {
    /// What the other thread did.
    pub phase: Phase,
    /// How long it took, all repetitions together, in seconds.
    pub seconds: f64,
    /// Faults.
    pub faults: usize,
    /// Half took less, in nanoseconds.
    pub p50: u64,
    /// 99 of 100 took less.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// Faults that were interrupted, and are in none of the figures.
    pub interrupted: usize,
}

/// A VM with very many mapped pages.
pub(crate) struct Large {
    pub(crate) mmu: Mmu<FlatHost>,
    pub(crate) slot: SlotId,
    pages: u64,
    /// The first of the frames that are touched.
    data: Gfn,
    roots: [Gfn; 2],
}

const fn touched(page: u64) -> Gva {
    Gva::new(FRESH + page * 4096)
}

impl Large {
    pub(crate) fn new(pages: u64) -> Result<Self, Trouble> {
        let tables = pages / 512 + 512;
        let backed = MANY_TABLES + tables;
        let data = backed.next_multiple_of(512);
        let frames = data + TOUCHED + pages;
        let memory = Memory::new(backed as usize, 3 * tables as usize);
        let mut own = Tables::from(&memory, Gfn::new(TOUCHED_TABLES));
        let first = own.take();
        (0..TOUCHED).for_each(|page| own.map(first, touched(page), Gfn::new(data + page)));
        let mut own = Tables::from(&memory, Gfn::new(MANY_TABLES));
        let second = own.take();
        for page in 0..pages {
            let (gva, gfn) = (MANY + page * 4096, data + TOUCHED + page);
            own.map_used(second, Gva::new(gva), Gfn::new(gfn));
        }
        let mut config = Config::new(Engine::Shadow, 2, frames, cpu());
        config.foreign_writes = ForeignWrites::ReportedFirst;
        let mmu = Mmu::new(FlatHost::new(memory), config)?;
        let slot = mmu.add_slot(&SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames,
            token: MemoryToken(GUEST),
            flags: SlotFlags::empty(),
        })?;
        Ok(Self {
            mmu,
            slot,
            pages,
            data: Gfn::new(data),
            roots: [first, second],
        })
    }

    fn vcpu(&self, id: u16) -> Result<Vcpu<'_, FlatHost>, Trouble> {
        let vcpu = self.mmu.vcpu(VcpuId(id))?;
        let root = self.roots[usize::from(id)];
        vcpu.set_paging(&paging(root), AddressSpace::Normal)?;
        Ok(vcpu)
    }

    /// Makes an access: faults until the tables let it through.
    fn access(&self, vcpu: &Vcpu<'_, FlatHost>, root: Pfn, gva: Gva) -> Result<Pfn, Trouble> {
        let mut root = root;
        while walk(&self.mmu.host().memory, root, gva).is_none() {
            vcpu.exited();
            let outcome = vcpu.handle_fault(gva, Access::WRITE)?;
            root = Pfn::containing(vcpu.enter()?.root);
            match outcome {
                FaultOutcome::Resume | FaultOutcome::Retry => {}
                other => return Err(Trouble::Answer(gva, other)),
            }
        }
        Ok(root)
    }

    /// Maps the many pages.
    pub(crate) fn fill(&self) -> Result<(), Trouble> {
        let vcpu = self.vcpu(1)?;
        let mut root = Pfn::containing(vcpu.enter()?.root);
        let done = (0..self.pages).try_for_each(|page| {
            root = self.access(&vcpu, root, Gva::new(MANY + page * 4096))?;
            Ok(())
        });
        vcpu.exited();
        done
    }

    /// Does what is reported, again and again.
    fn act(&self, scale: &Scale, phase: &Current) -> Result<(), Trouble> {
        for _ in 0..scale.repeats {
            self.fill()?;
            phase.next(Phase::Calm);
            let begun = Instant::now();
            while begun.elapsed() < scale.calm {
                core::hint::spin_loop();
            }
            phase.next(Phase::Zap);
            self.mmu.zap_all();
            phase.next(Phase::Preparing);
            self.fill()?;
            phase.next(Phase::Protect);
            self.mmu.set_slot_flags(self.slot, SlotFlags::LOG_DIRTY)?;
            phase.next(Phase::Preparing);
            self.fill()?;
            phase.next(Phase::Harvest);
            self.mmu.harvest_dirty(self.slot, |_| {})?;
            phase.next(Phase::Preparing);
            self.mmu.set_slot_flags(self.slot, SlotFlags::empty())?;
            phase.next(Phase::Preparing);
        }
        Ok(())
    }

    /// Faults until the end; adds each to its phase's.
    fn suffer(&self, phase: &Current, seen: &mut Seen) -> Result<(), Trouble> {
        let vcpu = self.vcpu(0)?;
        while phase.get() != Current::END {
            for page in 0..TOUCHED {
                forget_use(&self.mmu.host().memory, self.roots[0], touched(page));
            }
            drop(self.mmu.invalidate_begin(self.data, TOUCHED));
            let mut root = Pfn::containing(vcpu.enter()?.root);
            for page in 0..TOUCHED {
                let before = phase.get();
                let begun = Instant::now();
                // The pages are not mapped: each is a fault.
                root = self.access(&vcpu, root, touched(page))?;
                let took = begun.elapsed();
                seen.add(belongs(before, phase.get()), took);
            }
            vcpu.exited();
        }
        Ok(())
    }
}

/// The phases of a repetition, in order.
const ORDER: [Phase; 8] = [
    Phase::Preparing,
    Phase::Calm,
    Phase::Zap,
    Phase::Preparing,
    Phase::Protect,
    Phase::Preparing,
    Phase::Harvest,
    Phase::Preparing,
];

/// How many phases there were, for both threads.
struct Current(AtomicU32);

impl Current {
    const END: u32 = u32::MAX;

    /// Begins the next phase.
    fn next(&self, phase: Phase) {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        debug_assert_eq!(ORDER[now as usize % ORDER.len()], phase);
    }

    fn end(&self) {
        self.0.store(Self::END, Ordering::SeqCst);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Returns the phase that a fault belongs to: an action that it met, or none.
fn belongs(before: u32, after: u32) -> Phase {
    let met = (before..=after.min(before.saturating_add(ORDER.len() as u32)))
        .map(|at| ORDER[at as usize % ORDER.len()]);
    let acted = met
        .clone()
        .find(|phase| !matches!(phase, Phase::Calm | Phase::Preparing));
    acted.unwrap_or(if before == after {
        ORDER[before as usize % ORDER.len()]
    } else {
        Phase::Preparing
    })
}

const PHASES: usize = Phase::Preparing as usize + 1;

/// What was seen in each phase.
struct Seen {
    took: [Vec<u64>; PHASES],
    interrupted: [usize; PHASES],
    clocks: Clocks,
}

impl Seen {
    fn new() -> Self {
        Self {
            took: Default::default(),
            interrupted: [0; PHASES],
            clocks: Clocks::read(),
        }
    }

    fn add(&mut self, phase: Phase, took: Duration) {
        let at = phase as usize;
        let count = self.took[at].len() + 1;
        // The clocks are read now and then, so that what was lost before is not held against this fault.
        if took > SUSPECT || count.is_multiple_of(64) {
            let now = Clocks::read();
            let lost = self.clocks.lost_until(now);
            self.clocks = now;
            if took > SUSPECT && lost > took / 2 {
                self.interrupted[at] += 1;
                return;
            }
        }
        self.took[at].push(took.as_nanos() as u64);
    }

    fn sum_up(&mut self, phase: Phase) -> Option<Latencies> {
        let at = phase as usize;
        let took = &mut self.took[at];
        took.sort_unstable();
        let part = |part: usize| took.get(took.len().checked_sub(1)? * part / 1000).copied();
        Some(Latencies {
            phase,
            seconds: took.iter().sum::<u64>() as f64 / 1e9,
            faults: took.len(),
            p50: part(500)?,
            p99: part(990)?,
            max: part(1000)?,
            interrupted: self.interrupted[at],
        })
    }
}

/// Measures the faults of one vCPU while another thread does what it does.
///
/// # Errors
/// [`Trouble`].
pub fn measure(scale: &Scale) -> Result<Vec<Latencies>, Trouble> {
    let cpus = processors(2)?;
    let large = Large::new(scale.pages)?;
    let phase = Current(AtomicU32::new(0));
    let seen = std::sync::Mutex::new(None);
    together(
        &cpus,
        |_| {},
        |worker| {
            if worker == 0 {
                let mut own = Seen::new();
                let done = large.suffer(&phase, &mut own);
                *seen
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(own);
                done
            } else {
                let done = large.act(scale, &phase);
                phase.end();
                done
            }
        },
    )?;
    let mut seen = seen
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .unwrap_or_else(Seen::new);
    let sums = Phase::REPORTED.map(|phase| seen.sum_up(phase));
    Ok(sums.into_iter().flatten().collect())
}

#[cfg(test)]
mod a_measurement {
    use super::{Phase, Scale, measure};
    use crate::Trouble;
    use core::time::Duration;

    #[test]
    fn sees_faults_in_every_phase() {
        let scale = Scale {
            pages: 64 * 512,
            repeats: 2,
            calm: Duration::from_millis(20),
        };
        match measure(&scale) {
            Ok(found) => {
                assert_eq!(found.first().map(|l| l.phase), Some(Phase::Calm));
                for latencies in found {
                    assert!(latencies.p50 <= latencies.p99, "{latencies:?}");
                }
            }
            Err(Trouble::OneProcessor) => {}
            Err(trouble) => panic!("{trouble}"),
        }
    }
}
