//! Grace periods: a dead page's table returns to the allocator when nobody can reach it any more (rule R8).
//!
//! Key types: [`Grace`], [`ReadGuard`] (every public call holds one).
//!
//! Epochs: a guard announces the epoch in which its call began; a page is retired with the epoch of its death, which moves on then. The page is
//! free when every announced epoch is later, and no vCPU has it loaded as its root. Waiting happens outside guards only.
//!
//! Invariants:
//! 1. A page is retired after it is unhashed, unlinked, emptied and flushed: only calls that began before can still have its number.
//! 2. The list of the retired is in the order of their epochs, but for roots that are still loaded.

use crate::addr::Gfn;
use crate::marking::{InFlight, Marking};
use crate::page::PageId;
use crate::pool::Pool;
use crate::sync::{
    Apart, AtomicU32, AtomicU64, Counter, Kind, Lock, Locks, Ordering, fence, pause,
};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Guards for callers other than vCPUs, at the same time.
const OTHERS: usize = if cfg!(loom) {
    2
} else if cfg!(shuttle) {
    4
} else {
    16
};
/// No call is running.
const IDLE: u64 = 0;

#[derive(Debug, Default)]
struct Retired {
    /// First and last page of the list, as number + 1, chained through `Page::chain`.
    head: u32,
    tail: u32,
}

/// What a caller announces.
#[derive(Debug)]
struct Caller {
    /// The epoch in which its call began.
    epoch: AtomicU64,
    marking: Marking,
}

/// Grace periods of a VM.
#[derive(Debug)]
pub(crate) struct Grace {
    epoch: AtomicU64,
    slots: Box<[Apart<Caller>]>,
    list: Lock<Retired>,
    waiting: AtomicU32,
    /// How many of them were still loaded when all were last looked at: a hint, so that not every call looks at them again.
    loaded: Counter,
}

/// A call that may hold page numbers.
#[derive(Debug)]
pub(crate) struct ReadGuard<'m> {
    slot: &'m Caller,
}

impl ReadGuard<'_> {
    /// Announces a store to the frame.
    #[inline]
    pub(crate) fn announce(&self, gfn: Gfn) -> InFlight<'_> {
        self.slot.marking.announce(gfn)
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Release: the call's accesses come before; pairs with the fence in `oldest`.
        self.slot.epoch.store(IDLE, Ordering::Release);
    }
}

impl Grace {
    pub(crate) fn new(vcpus: u16) -> Result<Self, crate::Error> {
        let mut slots = Vec::new();
        let count = usize::from(vcpus) + OTHERS;
        slots.try_reserve_exact(count)?;
        slots.resize_with(count, || {
            Apart(Caller {
                epoch: AtomicU64::new(IDLE),
                marking: Marking::default(),
            })
        });
        Ok(Self {
            epoch: AtomicU64::new(1),
            slots: slots.into_boxed_slice(),
            list: Lock::new(Kind::Leaf, Retired::default()),
            waiting: AtomicU32::new(0),
            loaded: Counter::new(0),
        })
    }

    /// Begins a call of a vCPU that the caller has claimed.
    #[inline]
    pub(crate) fn enter_vcpu(&self, vcpu: u16) -> ReadGuard<'_> {
        let slot = &self.slots[usize::from(vcpu)].0;
        slot.epoch
            .store(self.epoch.load(Ordering::Acquire), Ordering::Relaxed);
        // Full barrier: the announcement comes before any look at the structures; pairs with the one in `oldest`. Without it a page
        // could be freed that this call has just found.
        if !mutant!(GuardUnfenced) {
            fence(Ordering::SeqCst);
        }
        ReadGuard { slot }
    }

    /// Begins a call of anybody else.
    pub(crate) fn enter_other(&self) -> ReadGuard<'_> {
        let others = &self.slots[self.slots.len() - OTHERS..];
        loop {
            for Apart(slot) in others {
                let epoch = self.epoch.load(Ordering::Acquire);
                if slot.epoch.load(Ordering::Relaxed) == IDLE
                    && slot
                        .epoch
                        .compare_exchange(IDLE, epoch, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                {
                    if !mutant!(GuardUnfenced) {
                        fence(Ordering::SeqCst);
                    }
                    return ReadGuard { slot };
                }
            }
            pause();
        }
    }

    /// Waits until nobody stores to a frame of the range any more. `busy` has been raised for it; no lock is held.
    pub(crate) fn wait_for_marks(&self, base: Gfn, frames: u64) {
        // Full barrier: pairs with the one in `Marking::announce`.
        if !mutant!(MarkWaitUnfenced) {
            fence(Ordering::SeqCst);
        }
        for slot in &self.slots {
            slot.marking.wait(base, frames);
        }
    }

    /// Returns the epoch before which every call has ended.
    fn oldest(&self) -> u64 {
        // Full barrier: pairs with the one in `enter_vcpu`.
        fence(Ordering::SeqCst);
        self.slots
            .iter()
            .map(|slot| slot.epoch.load(Ordering::Acquire))
            .filter(|e| *e != IDLE)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Retires a page that is unhashed, emptied and flushed.
    pub(crate) fn retire(&self, locks: &Locks, pool: &Pool, id: PageId) {
        // AcqRel: who announces a later epoch has seen the page unlinked.
        let stamp = self.epoch.fetch_add(1, Ordering::AcqRel);
        let page = pool.get(id);
        page.stamp.store(stamp, Ordering::Relaxed);
        self.push(&mut self.list.lock(locks), pool, id);
    }

    fn push(&self, list: &mut Retired, pool: &Pool, id: PageId) {
        pool.get(id).chain.store(0, Ordering::Relaxed);
        match list.tail.checked_sub(1) {
            Some(tail) => pool
                .get(PageId(tail))
                .chain
                .store(id.0 + 1, Ordering::Relaxed),
            None => list.head = id.0 + 1,
        }
        list.tail = id.0 + 1;
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many pages wait for their grace period.
    #[inline]
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells whether a call should look for pages whose grace period is over: some wait, and not only for vCPUs to load other roots.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        let waiting = self.waiting();
        waiting != 0 && u64::from(waiting) > self.loaded.load(Ordering::Relaxed)
    }

    /// Notes that a dead root is loaded by nobody any more, or that the list is another one: it is looked at again.
    pub(crate) fn look_again(&self) {
        self.loaded.store(0, Ordering::Relaxed);
    }

    /// Takes a page whose grace period is over.
    pub(crate) fn pop(&self, locks: &Locks, pool: &Pool) -> Option<PageId> {
        if self.waiting() == 0 {
            return None;
        }
        let oldest = self.oldest();
        let mut list = self.list.lock(locks);
        // Roots that are still loaded go to the end; each is looked at once.
        let waiting = self.waiting();
        for _ in 0..waiting {
            let id = PageId(list.head.checked_sub(1)?);
            let page = pool.get(id);
            if page.stamp.load(Ordering::Relaxed) >= oldest && !mutant!(GuardsIgnored) {
                return None;
            }
            list.head = page.chain.load(Ordering::Relaxed);
            if list.head == 0 {
                list.tail = 0;
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if page.references.load(Ordering::Acquire) == 0 || mutant!(ReferencesIgnored) {
                self.look_again();
                return Some(id);
            }
            self.push(&mut list, pool, id);
        }
        self.loaded.store(u64::from(waiting), Ordering::Relaxed);
        None
    }
}

#[cfg(all(test, not(loom)))]
mod a_dead_root_that_stays_loaded {
    use crate::Engine;
    use crate::addr::{Gfn, Level};
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;

    #[test]
    fn is_not_looked_at_by_every_call_and_goes_when_it_is_unloaded() {
        let world = World::new(Engine::Shadow, |_| {});
        let page = (Gfn::new(600), Level::L1);
        Guest::new(World::ROOT).map(world.mmu.host(), 0, page, PWU | AD);
        world.set_root();
        let _ = world.touch(0, Access::READ);
        world.mmu.zap_all();
        drop(world.mmu.call());
        let grace = &world.mmu.grace;
        assert_eq!((grace.waiting(), grace.is_due()), (1, false));
        // It chooses another root, made anew.
        world.reload();
        drop(world.mmu.call());
        assert_eq!((grace.waiting(), grace.is_due()), (0, false));
    }
}
