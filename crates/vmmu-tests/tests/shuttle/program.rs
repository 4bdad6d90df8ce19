//! What everybody does, at random: two or three vCPUs and the host, in phases, with the auditor in between.
//!
//! The guest has two roots over two level-1 tables, which map data, and a third, the window, which maps the tables themselves. Two levels of tables are
//! edited: through the window, as a guest does, and by an emulator that reports.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use shuttle::rand::RngCore;
use shuttle::thread;
use vmmu::addr::Gfn;
use vmmu::host::MemoryToken;
use vmmu::{AddressSpace, Config, Engine, Mmu, SlotConfig, SlotFlags, SlotId, Strictness};
use vmmu_tests::guest::{A, D, P, U, W, entry, slot};
use vmmu_tests::machine::MODEL;

use crate::host::{FRAMES, Host};
use crate::judge;
use crate::processor::Processor;

/// The guest's roots.
pub(crate) const ROOTS: [u64; 2] = [1, 7];
/// The tables of level 2, by root.
const DIRECTORIES: [u64; 2] = [3, 9];
/// The tables of level 1 that map data.
const LEAVES: [u64; 2] = [4, 5];
/// The table of level 1 that maps what the guest edits.
const WINDOW: u64 = 6;
/// The first frame of data; those below are tables.
pub(crate) const DATA: u64 = 0x200;
/// The slot whose writes are logged, and the one that changes.
const LOGGED: Range<u64> = 0x200..0x400;
const CHANGING: Range<u64> = 0x400..FRAMES;
/// Frames of data that are mapped in each.
const MAPPED: u64 = 4;
const PHASES: usize = 2;
/// What each thread does in a phase.
const STEPS: usize = 7;

/// What the changing slot is like, as far as it is certain.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    is_gone: AtomicBool,
    is_read_only: AtomicBool,
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

/// One execution.
pub(crate) fn run() {
    let mut random = fastrand::Rng::with_seed(shuttle::rand::thread_rng().next_u64());
    let slots = Arc::new(Slots::default());
    let vcpus = random.u16(2..4);
    let (mmu, [logged, changing]) = make(&mut random, vcpus);
    let mut processors: Vec<Processor> = (0..vcpus)
        .map(|id| Processor::new(&mmu, &slots, id))
        .collect();
    for processor in &mut processors {
        processor.set_paging(ROOTS[0], true);
    }
    let mut host = HostThread {
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
                    (0..STEPS).for_each(|_| step(&mut processor));
                    processor.leave();
                    processor
                })
            })
            .collect();
        let other = thread::spawn(move || {
            (0..STEPS).for_each(|_| host.step());
            host
        });
        let joined = busy
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        processors.extend(joined);
        host = other.join().expect("no panic");
        rest(&mmu, logged, &mut processors);
    }
}

/// Nobody runs: the auditor looks at everything, every page is touched, and the log is complete.
fn rest(mmu: &Mmu<Host>, logged: SlotId, processors: &mut [Processor]) {
    if let Err(failure) = mmu.audit(Strictness::Exact) {
        panic!("{failure}");
    }
    for processor in processors {
        for table in 0..LEAVES.len() as u64 {
            for page in 0..MAPPED {
                processor.access(table << 21 | page << 12, None);
            }
        }
        processor.leave();
    }
    let dirty = harvest(mmu, logged);
    let mut state = mmu.host().state();
    judge::judge_harvest(&state, &dirty, LOGGED);
    judge::copy(&mut state, &dirty);
}

fn harvest(mmu: &Mmu<Host>, logged: SlotId) -> Vec<u64> {
    let mut dirty = Vec::new();
    let harvested = mmu.harvest_dirty(logged, |gfn| dirty.push(gfn.get()));
    harvested.expect("the slot logs");
    dirty
}

/// Makes the guest and its MMU; returns the two slots that matter.
fn make(random: &mut fastrand::Rng, vcpus: u16) -> (Arc<Mmu<Host>>, [SlotId; 2]) {
    let mut config = Config::new(Engine::Shadow, vcpus, FRAMES, MODEL);
    config.stripes = 2;
    config.max_pages = if random.bool() {
        config.smallest_limit()
    } else {
        40
    };
    config.unsync_limit = random.u16(1..4);
    config.unsync_patience = random.u8(..3);
    config.prefetch = random.u16(..3);
    let mmu = Arc::new(Mmu::new(Host::new(), config).expect("a sound configuration"));
    add(&mmu, 0..DATA, SlotFlags::empty());
    let logged = add(&mmu, LOGGED, SlotFlags::LOG_DIRTY);
    let changing = add(&mmu, CHANGING, SlotFlags::empty());
    let mut state = mmu.host().state();
    let table = P | W | U | A;
    for (root, directory) in ROOTS.into_iter().zip(DIRECTORIES) {
        state.store(slot(root, 0), entry(root + 1, table));
        state.store(slot(root + 1, 0), entry(directory, table));
        for (i, leaves) in LEAVES.into_iter().chain([WINDOW]).enumerate() {
            state.store(slot(directory, i as u64), entry(leaves, table));
        }
    }
    for (leaves, first) in LEAVES.into_iter().zip([LOGGED.start, CHANGING.start]) {
        for i in 0..MAPPED {
            state.store(slot(leaves, i), entry(first + i, table | D));
        }
    }
    for (i, edited) in LEAVES.into_iter().chain(DIRECTORIES).enumerate() {
        state.store(slot(WINDOW, i as u64), entry(edited, table | D));
    }
    drop(state);
    (mmu, [logged, changing])
}

fn add(mmu: &Mmu<Host>, frames: Range<u64>, flags: SlotFlags) -> SlotId {
    let config = SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(frames.start),
        frames: frames.end - frames.start,
        token: MemoryToken(frames.start),
        flags,
    };
    mmu.add_slot(&config).expect("there is room for the slot")
}

/// What a guest does next.
fn step(processor: &mut Processor) {
    let random = &mut processor.random;
    let va = random.u64(..2) << 21 | random.u64(..MAPPED) << 12;
    match random.u8(..16) {
        0..7 => {
            let value = random.bool().then_some(0);
            processor.access(va, value);
        }
        7..10 => {
            let (place, index, value) = edit(random);
            let edited = 2 << 21 | place << 12 | index << 3;
            processor.access(edited, Some(value));
            if processor.random.bool() {
                processor.invlpg(va);
            }
        }
        10..12 => {
            let (place, index, value) = edit(random);
            let table = [LEAVES, DIRECTORIES].concat()[place as usize];
            processor.write_and_report(slot(table, index), value);
        }
        12..14 => {
            let root = ROOTS[random.usize(..2)];
            processor.load_root(root);
        }
        14 => {
            let (root, protects) = (ROOTS[random.usize(..2)], random.bool());
            processor.set_paging(root, protects);
        }
        _ => processor.invlpg(va),
    }
}

/// Returns an edit of a table: its place in the window, the entry, and what it becomes.
fn edit(random: &mut fastrand::Rng) -> (u64, u64, u64) {
    let rights = P | U | if random.u8(..4) != 0 { W } else { 0 };
    let used = [0, A, A | D, A | D][random.usize(..4)];
    let is_gone = random.u8(..6) == 0;
    let place = random.u64(..4);
    let (index, frame) = if place < 2 {
        let data = [LOGGED.start, CHANGING.start][random.usize(..2)] + random.u64(..MAPPED);
        let table = LEAVES[random.usize(..2)];
        (
            random.u64(..MAPPED),
            if random.u8(..8) == 0 { table } else { data },
        )
    } else {
        (random.u64(..2), LEAVES[random.usize(..2)])
    };
    (
        place,
        index,
        if is_gone {
            0
        } else {
            entry(frame, rights | used)
        },
    )
}

/// The host's thread.
struct HostThread {
    mmu: Arc<Mmu<Host>>,
    slots: Arc<Slots>,
    logged: SlotId,
    changing: SlotId,
    random: fastrand::Rng,
}

impl HostThread {
    fn step(&mut self) {
        match self.random.u8(..10) {
            0..4 => self.move_frame(),
            4 => {
                self.mmu.zap_all();
            }
            5 => {
                let table = [1, 2, 3, 4, 5, 6, 8, 9][self.random.usize(..8)];
                self.mmu.zap_frame(Gfn::new(table));
            }
            6..8 => {
                let dirty = harvest(&self.mmu, self.logged);
                judge::copy(&mut self.mmu.host().state(), &dirty);
            }
            8 => self.remove_and_add(),
            _ => self.change_flags(),
        }
    }

    /// Takes a frame back, uses it for something else, and gives the guest another one.
    fn move_frame(&mut self) {
        let first = [LOGGED.start, CHANGING.start, 3][self.random.usize(..3)];
        let gfn = first + self.random.u64(..MAPPED);
        let invalidation = self.mmu.invalidate_begin(Gfn::new(gfn), 1);
        self.mmu.host().state().taken.insert(gfn);
        self.mmu.host().bus();
        {
            let mut state = self.mmu.host().state();
            state.move_frame(gfn);
            state.taken.remove(&gfn);
        }
        drop(invalidation);
    }

    fn remove_and_add(&mut self) {
        self.mmu.remove_slot(self.changing).expect("it is there");
        self.slots.is_gone.store(true, Ordering::SeqCst);
        self.mmu.host().bus();
        self.slots.is_gone.store(false, Ordering::SeqCst);
        self.slots.is_read_only.store(false, Ordering::SeqCst);
        self.changing = add(&self.mmu, CHANGING, SlotFlags::empty());
    }

    fn change_flags(&mut self) {
        let is_read_only = self.random.bool();
        let flags = if is_read_only {
            SlotFlags::READ_ONLY
        } else {
            SlotFlags::empty()
        };
        self.slots.is_read_only.store(false, Ordering::SeqCst);
        let set = self.mmu.set_slot_flags(self.changing, flags);
        set.expect("it is there");
        self.slots
            .is_read_only
            .store(is_read_only, Ordering::SeqCst);
    }
}
