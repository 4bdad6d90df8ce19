//! One execution: two or three vCPUs and the host, in phases, with the auditor in between.
//!
//! Key types: [`Program`] (what kind), [`Slots`]. What the guest does is in `guest`, what the host does meanwhile in `pressure`.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use shuttle::rand::RngCore;
use shuttle::thread;
use vmmu::addr::Gfn;
use vmmu::host::MemoryToken;
use vmmu::{AddressSpace, Config, Event, Mmu, SlotConfig, SlotFlags, SlotId, Strictness};
use vmmu_spec::{Observation, Physical};
use vmmu_tests::machine::MODEL;

use crate::guest::{self, Guest};
use crate::host::Host;
use crate::judge::{self, Counts, count};
use crate::pressure::Pressure;
use crate::processor::{Processor, used_bits};
use crate::state::FRAMES;

/// The first frame of data; those below are tables.
pub(crate) const DATA: u64 = 0x200;
/// The slot whose writes are logged, and the one that changes: a block of 2 MiB each.
pub(crate) const LOGGED: Range<u64> = 0x200..0x400;
pub(crate) const CHANGING: Range<u64> = 0x400..FRAMES;
/// Frames that are used in each.
pub(crate) const USED: u64 = 4;
const PHASES: usize = 2;
/// What each thread does in a phase.
const STEPS: usize = 7;

/// Kinds of programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// Shadow paging of a guest with pages of 4 KiB.
    Small,
    /// Shadow paging of a guest with pages of both sizes; the host has its memory in large pieces, or hasn't.
    Large,
    /// Nested paging; the host has its memory in large pieces, or hasn't.
    Nested,
}

/// What the changing slot is like, as far as it is certain.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) is_gone: AtomicBool,
    pub(crate) is_read_only: AtomicBool,
}

impl Slots {
    /// Judges a use of a frame.
    pub(crate) fn judge(&self, gfn: u64, writes: bool) {
        if CHANGING.contains(&gfn) {
            let is_gone = self.is_gone.load(Ordering::SeqCst);
            assert!(!is_gone, "a frame of a removed slot is used");
            let is_read_only = self.is_read_only.load(Ordering::SeqCst);
            assert!(!(writes && is_read_only), "read-only memory is written");
        }
    }
}

/// Judges an access under nested paging: it goes where its address says.
pub(crate) fn judge_nested(gpa: u64, seen: Observation) {
    assert_eq!(seen, Observation::Access(Physical::new(gpa)));
}

/// Executes a program that the scheduler's random numbers decide.
pub(crate) fn run(program: Program, counts: &Arc<Counts>) {
    let mut random = fastrand::Rng::with_seed(shuttle::rand::thread_rng().next_u64());
    let slots = Arc::new(Slots::default());
    let vcpus = random.u16(2..4);
    let guest = Guest::choose(program, &mut random);
    let (mmu, [logged, changing]) = make(&guest, &mut random, (vcpus, counts));
    let mut processors: Vec<Processor> = (0..vcpus)
        .map(|id| Processor::new(&mmu, &slots, id, guest.engine))
        .collect();
    for processor in &mut processors {
        processor.set_paging(guest::ROOTS[0], true);
    }
    let mut pressure = Pressure {
        mmu: Arc::clone(&mmu),
        slots,
        logged,
        changing,
        random: random.fork(),
    };
    for _ in 0..PHASES {
        let busy: Vec<_> = processors
            .drain(..)
            .map(|mut processor| {
                processor.random = random.fork();
                thread::spawn(move || {
                    (0..STEPS).for_each(|_| guest.step(&mut processor));
                    processor.leave();
                    processor
                })
            })
            .collect();
        let other = thread::spawn(move || {
            (0..STEPS).for_each(|_| pressure.step());
            pressure
        });
        let joined = busy
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        processors.extend(joined);
        pressure = other.join().expect("no panic");
        rest(&mmu, &guest, logged, &mut processors);
    }
    let stats = mmu.stats();
    count(&counts.large, stats.get(Event::Leaf2M));
    count(&counts.reclaimed, stats.get(Event::Reclaim));
}

/// Nobody runs: the auditor looks at everything, every page is touched, every use is told, and the log is complete.
fn rest(mmu: &Mmu<Host>, guest: &Guest, logged: SlotId, processors: &mut [Processor]) {
    // The auditor asks the host what it allows.
    mmu.host().state().is_fickle = false;
    if let Err(failure) = mmu.audit(Strictness::Exact) {
        panic!("{failure}");
    }
    mmu.host().state().is_fickle = true;
    for processor in processors {
        guest.addresses().for_each(|va| processor.access(va, None));
        processor.leave();
    }
    age(mmu, guest.frames());
    let host = mmu.host();
    let (_, dirty) = used_bits(guest.engine);
    host.state().usage.judge(|slot| host.peek(slot), dirty);
    let dirty = harvest(mmu, logged);
    let mut state = host.state();
    judge::judge_harvest(&state, &dirty, LOGGED);
    judge::copy(&mut state, &dirty, &host.counts);
}

/// Returns the written frames of a slot that logs.
pub(crate) fn harvest(mmu: &Mmu<Host>, logged: SlotId) -> Vec<u64> {
    let mut dirty = Vec::new();
    let harvested = mmu.harvest_dirty(logged, |gfn| dirty.push(gfn.get()));
    harvested.expect("the slot logs");
    dirty
}

/// Ages a range, whole blocks, and notes what is told.
pub(crate) fn age(mmu: &Mmu<Host>, frames: Range<u64>) {
    let mut news = 0;
    mmu.age(Gfn::new(frames.start), frames.end - frames.start, |gfn| {
        assert!(frames.contains(&gfn.get()), "{gfn:?} was not asked for");
        news += u64::from(mmu.host().state().usage.told(gfn.get()));
    });
    count(&mmu.host().counts.aged, news);
}

/// Makes the guest and its MMU; returns the two slots that matter.
fn make(
    guest: &Guest,
    random: &mut fastrand::Rng,
    (vcpus, counts): (u16, &Arc<Counts>),
) -> (Arc<Mmu<Host>>, [SlotId; 2]) {
    let mut config = Config::new(guest.engine, vcpus, FRAMES, MODEL);
    config.stripes = 2;
    config.max_pages = if random.bool() {
        config.smallest_limit()
    } else {
        40
    };
    config.unsync_limit = random.u16(1..4);
    config.unsync_patience = random.u8(..3);
    config.prefetch = random.u16(..3);
    let host = Host::new(guest.largest, Arc::clone(counts));
    let mmu = Arc::new(Mmu::new(host, config).expect("a sound configuration"));
    add(&mmu, 0..DATA, SlotFlags::empty());
    let logged = add(&mmu, LOGGED, SlotFlags::LOG_DIRTY);
    let changing = add(&mmu, CHANGING, SlotFlags::empty());
    if let Some(far) = guest.far() {
        add(&mmu, far, SlotFlags::empty());
    }
    guest.boot(&mut mmu.host().state());
    (mmu, [logged, changing])
}

/// Adds a slot.
pub(crate) fn add(mmu: &Mmu<Host>, frames: Range<u64>, flags: SlotFlags) -> SlotId {
    let config = SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(frames.start),
        frames: frames.end - frames.start,
        token: MemoryToken(frames.start),
        flags,
    };
    mmu.add_slot(&config).expect("there is room for the slot")
}
