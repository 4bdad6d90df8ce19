//! What a vCPU translates with, and when what it has cached was flushed.
//!
//! Key types: [`View`] (under the vCPU's lock), [`Views`], [`Space`] (an address space that was left).
//!
//! Invariants:
//! 1. A view changes by calls of its own vCPU's thread only; the lock is for reports.
//! 2. Where a record is given up for want of room, what is allowed becomes more, never less.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use vmmu::TlbFlush;
use vmmu::host::VcpuId;
use vmmu::paging::{Cr0, Cr4, PagingState};
use vmmu_spec::{Controls, Cr3, Time};

use super::convert;
use super::memo::Memo;
use super::observer::{Epoch, Load};

/// How many pages' flushes are remembered one by one.
const PAGES: usize = 8192;
/// How many address spaces that were left are remembered for their global translations.
const SPACES: usize = 64;

/// An address space that was left since global translations were flushed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    pub(super) root: Cr3,
    pub(super) entered: Time,
    pub(super) left: Time,
}

/// One vCPU as the guest sees it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) state: Option<PagingState>,
    pub(super) controls: Option<Controls>,
    /// When all that is not global was flushed last.
    flushed: Time,
    /// When everything was.
    flushed_all: Time,
    /// When single pages were, since then.
    pages: FxHashMap<u64, Time>,
    /// When the address space was entered.
    entered: Time,
    pub(super) spaces: Vec<Space>,
    /// More spaces were left than are remembered.
    pub(super) spaces_lost: bool,
    /// How many changes of what lies where this vCPU's caches were looked through for.
    pub(super) swept: u32,
    pub(super) memo: Memo,
}

impl View {
    const fn new() -> Self {
        Self {
            state: None,
            controls: None,
            flushed: Time::START,
            flushed_all: Time::START,
            pages: FxHashMap::with_hasher(rustc_hash::FxBuildHasher),
            entered: Time::START,
            spaces: Vec::new(),
            spaces_lost: false,
            swept: 0,
            memo: Memo::new(),
        }
    }

    /// Returns CR3 as the specification has it.
    pub(super) fn root(&self) -> Cr3 {
        Cr3::new(self.state.as_ref().map_or(0, |state| state.cr3.get()))
    }

    /// Returns when the cached translations of an address were flushed last, those that are not global.
    pub(super) fn since(&self, va: u64) -> Time {
        self.page(va).max(self.flushed)
    }

    /// Returns when the global ones were.
    pub(super) fn since_global(&self, va: u64) -> Time {
        self.page(va).max(self.flushed_all)
    }

    fn page(&self, va: u64) -> Time {
        self.pages.get(&(va >> 12)).copied().unwrap_or(Time::START)
    }

    fn flush_all(&mut self, now: Time) {
        self.flushed = now;
        self.flushed_all = now;
        self.pages.clear();
        self.spaces.clear();
        self.spaces_lost = false;
        self.entered = now;
    }

    /// Notes a flush of one address, global translations included.
    pub(super) fn flush_page(&mut self, va: u64, now: Time) {
        if self.pages.len() >= PAGES {
            self.pages.clear();
        }
        self.pages.insert(va >> 12, now);
    }

    /// Notes a load of CR3.
    pub(super) fn load_root(&mut self, cr3: vmmu::paging::Cr3, now: Time) {
        let left = Space {
            root: self.root(),
            entered: self.entered,
            left: now,
        };
        self.flushed = now;
        self.entered = now;
        if let Some(space) = self.spaces.iter_mut().find(|s| s.root == left.root) {
            // Too long a stay allows more.
            space.left = now;
        } else if self.spaces.len() < SPACES {
            self.spaces.push(left);
        } else {
            self.spaces_lost = true;
        }
        if let Some(state) = &mut self.state {
            state.cr3 = cr3;
        }
    }

    /// Notes loaded registers.
    pub(super) fn load(&mut self, state: &PagingState, load: Load, now: Time) {
        match (load, &self.state) {
            (Load::Machine, _) | (_, None) => self.flush_all(now),
            (Load::Control, Some(old)) if flushes(old, state) => self.flush_all(now),
            (Load::Control, Some(_)) => {}
        }
        self.state = Some(*state);
        self.controls = convert::controls(state);
    }

    /// Notes a flush that the guest asked for.
    pub(super) fn flush(&mut self, what: TlbFlush, now: Time) {
        match what {
            TlbFlush::Address(gva) => self.flush_page(gva.get(), now),
            _ => self.flush_all(now),
        }
    }
}

/// Says whether a change of control registers flushes all translations (Intel SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.3).
fn flushes(old: &PagingState, new: &PagingState) -> bool {
    let any = Cr4::PGE | Cr4::PSE | Cr4::PAE | Cr4::LA57;
    (old.cr0 ^ new.cr0).contains(Cr0::PG)
        || (old.cr4 ^ new.cr4).intersects(any)
        || (new.cr4 - old.cr4).contains(Cr4::SMEP)
}

/// One vCPU: its view, and how far its front array is behind.
#[derive(Debug)]
struct Slot {
    view: Mutex<View>,
    /// Flushes of its own.
    own: AtomicU32,
    /// The number of common changes that its array has been renewed for.
    renewed: AtomicU32,
    inside: AtomicBool,
    /// When it left its guest last.
    left: AtomicU64,
    flushed: AtomicU64,
}

/// All vCPUs.
#[derive(Debug)]
pub(super) struct Views {
    slots: Box<[Slot]>,
    /// Changes that concern all.
    common: AtomicU32,
    /// Changes of what lies where.
    remaps: AtomicU32,
}

impl Views {
    pub(super) fn new(vcpus: usize) -> Self {
        let slot = || Slot {
            view: Mutex::new(View::new()),
            own: AtomicU32::new(0),
            renewed: AtomicU32::new(0),
            inside: AtomicBool::new(false),
            left: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        };
        Self {
            slots: (0..vcpus).map(|_| slot()).collect(),
            common: AtomicU32::new(0),
            remaps: AtomicU32::new(0),
        }
    }

    fn slot(&self, vcpu: VcpuId) -> &Slot {
        // A machine has as many views as vCPUs; a number beyond is taken as the last one's.
        let last = self.slots.len() - 1;
        &self.slots[usize::from(vcpu.0).min(last)]
    }

    pub(super) fn lock(&self, vcpu: VcpuId) -> MutexGuard<'_, View> {
        let view = &self.slot(vcpu).view;
        view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn epoch(&self, vcpu: VcpuId) -> Epoch {
        let own = self.slot(vcpu).own.load(Ordering::Relaxed);
        Epoch(self.common.load(Ordering::SeqCst).wrapping_add(own))
    }

    pub(super) fn renewed(&self, vcpu: VcpuId, epoch: Epoch) {
        let slot = self.slot(vcpu);
        // Its own flushes are its own thread's: none has come in between.
        let common = epoch.0.wrapping_sub(slot.own.load(Ordering::Relaxed));
        slot.renewed.store(common, Ordering::SeqCst);
    }

    pub(super) fn entered(&self, vcpu: VcpuId) {
        self.slot(vcpu).inside.store(true, Ordering::SeqCst);
        // Pairs with the one in `raise`: either the raiser sees the vCPU inside, or the vCPU sees the new epoch.
        fence(Ordering::SeqCst);
    }

    pub(super) fn exited(&self, vcpu: VcpuId, now: Time) {
        let slot = self.slot(vcpu);
        slot.left.store(now.get(), Ordering::Relaxed);
        slot.inside.store(false, Ordering::SeqCst);
    }

    /// Returns when what is told of a vCPU now began: the processor's own operation just now, one that the hypervisor serves at the exit. What
    /// others stored while it was served, the library may have seen or not.
    pub(super) fn served_since(&self, vcpu: VcpuId, now: Time) -> Time {
        let slot = self.slot(vcpu);
        if slot.inside.load(Ordering::Relaxed) {
            return now;
        }
        Time::new(slot.left.load(Ordering::Relaxed))
    }

    /// Makes one vCPU's entries be judged anew.
    pub(super) fn raise_own(&self, vcpu: VcpuId, flushed: Time) {
        let slot = self.slot(vcpu);
        slot.own.fetch_add(1, Ordering::Relaxed);
        slot.flushed.store(flushed.get(), Ordering::Relaxed);
    }

    /// Makes all vCPUs renew their arrays; returns the number to wait for.
    pub(super) fn raise(&self) -> u32 {
        let number = self.common.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        fence(Ordering::SeqCst);
        number
    }

    /// Notes that guest frames lie elsewhere.
    pub(super) fn remapped(&self) {
        self.remaps.fetch_add(1, Ordering::SeqCst);
        self.raise();
    }

    /// Returns how often guest frames came to lie elsewhere.
    pub(super) fn remaps(&self) -> u32 {
        self.remaps.load(Ordering::Relaxed)
    }

    /// Says whether every vCPU that is inside its guest has renewed its array since a number was raised.
    pub(super) fn all_renewed(&self, number: u32) -> bool {
        self.slots.iter().all(|slot| {
            let renewed = slot.renewed.load(Ordering::SeqCst);
            !slot.inside.load(Ordering::SeqCst) || renewed.wrapping_sub(number) as i32 >= 0
        })
    }

    /// Returns the time since which every vCPU has flushed everything.
    pub(super) fn oldest(&self) -> Time {
        let flushed = self.slots.iter().map(|s| s.flushed.load(Ordering::Relaxed));
        Time::new(flushed.min().unwrap_or(0))
    }
}

impl View {
    /// Returns the time since which nothing that is cached is older.
    pub(super) fn oldest(&self) -> Time {
        self.flushed_all
    }
}

#[cfg(test)]
mod a_flush {
    use super::{PAGES, Space, View, Views};
    use crate::check::observer::{Epoch, Load};
    use vmmu::TlbFlush;
    use vmmu::addr::Gva;
    use vmmu::host::VcpuId;
    use vmmu::paging::{Cr3, Cr4, Efer};
    use vmmu_spec::Time;
    use vmmu_tests::guest::long4;

    const fn at(time: u64) -> Time {
        Time::new(time)
    }

    #[test]
    fn of_one_page_narrows_that_page_alone() {
        let mut view = View::new();
        view.load(&long4(1), Load::Machine, at(1));
        view.flush(TlbFlush::Address(Gva::new(0x5678)), at(4));
        assert_eq!((view.since(0x5000), view.since(0x6000)), (at(4), at(1)));
        for page in 0..=PAGES as u64 {
            view.flush_page(page << 12, at(5));
        }
        assert!(
            view.since(0x5000) >= at(1),
            "less is remembered, more is allowed"
        );
        view.flush(TlbFlush::All, at(7));
        assert_eq!(
            (view.since(0x5000), view.since_global(0x5000)),
            (at(7), at(7))
        );
    }

    #[test]
    fn by_a_load_of_cr3_spares_global_translations_of_the_space_that_is_left() {
        let mut view = View::new();
        view.load(&long4(1), Load::Machine, at(1));
        view.load_root(Cr3::new(2 << 12), at(3));
        let space = Space {
            root: vmmu_spec::Cr3::new(1 << 12),
            entered: at(1),
            left: at(3),
        };
        assert_eq!(view.spaces, [space]);
        assert_eq!((view.since(0), view.since_global(0)), (at(3), at(1)));
        let mut state = long4(2);
        state.cr4.toggle(Cr4::PGE);
        view.load(&state, Load::Control, at(6));
        assert!(view.spaces.is_empty());
        assert_eq!(view.since_global(0), at(6));
    }

    #[test]
    fn is_none_where_the_manuals_ask_for_none() {
        let mut view = View::new();
        let mut state = long4(1);
        state.efer.remove(Efer::NXE);
        view.load(&state, Load::Machine, at(1));
        state.efer.insert(Efer::NXE);
        view.load(&state, Load::Control, at(2));
        state.cr4.insert(Cr4::SMAP);
        view.load(&state, Load::Control, at(3));
        assert_eq!(view.since(0), at(1));
        state.cr4.insert(Cr4::SMEP);
        state.cr3 = Cr3::new(1 << 12);
        view.load(&state, Load::Control, at(4));
        assert_eq!(view.since(0), at(4));
    }

    #[test]
    fn that_the_hypervisor_serves_counts_from_the_exit_on() {
        let (views, vcpu) = (Views::new(1), VcpuId(0));
        views.entered(vcpu);
        assert_eq!(views.served_since(vcpu, at(5)), at(5));
        views.exited(vcpu, at(6));
        assert_eq!(views.served_since(vcpu, at(9)), at(6));
    }

    #[test]
    fn of_one_processor_makes_no_other_one_late() {
        let (views, one, two) = (Views::new(2), VcpuId(0), VcpuId(1));
        views.entered(one);
        views.entered(two);
        views.raise_own(one, at(1));
        assert_ne!(views.epoch(one), Epoch(0));
        assert_eq!(views.epoch(two), Epoch(0));
        let number = views.raise();
        views.renewed(one, views.epoch(one));
        assert!(!views.all_renewed(number), "the second has not");
        views.renewed(two, views.epoch(two));
        assert!(views.all_renewed(number));
        let number = views.raise();
        views.exited(two, at(2));
        views.renewed(one, views.epoch(one));
        assert!(views.all_renewed(number), "the second is outside");
    }
}
