//! The bracket around a write that the embedder makes in the guest's name: announced, stored, reported (docs/concurrency.md, "A write in flight").
//!
//! Key types: [`Writing`] (one write, announced), [`Writes`] (those of a VM). Neighbours: `report` derives what a write may have changed; `root`, `clean`,
//! `vcpu`, `tree` and `shadow` look here before they promise anything.
//!
//! Between store and report the guest's tables say one thing and shadow entries another. Who finds a write announced waits for nobody: it derives the same
//! entries as the report will, itself.
//!
//! | `from` | meaning | who changes it |
//! |---|---|---|
//! | 0 | the place is free | a writer takes it by compare-exchange |
//! | `u64::MAX` | taken; nothing is stored yet | its writer |
//! | gpa + 1 | a write of `len` bytes at `gpa` may be in memory | its writer; free again after the report |
//!
//! Invariants:
//! 1. A write is announced before it can be seen, and until it is reported: who has seen it finds the place, or the report's work done.
//! 2. `len` is stored before `from`: who reads the two reads no shorter length than that of the write it has to find. It may read that of a later one in the
//!    same place; then the earlier has been reported.

use crate::addr::Gpa;
use crate::config::Engine;
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::stats::Observer;
use crate::sync::{Apart, AtomicU32, AtomicU64, Ordering, SMALL, fence};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Places besides one for each vCPU: for devices.
const OTHERS: usize = if SMALL { 1 } else { 16 };

const FREE: u64 = 0;
const TAKEN: u64 = u64::MAX;

/// One write.
#[derive(Debug)]
struct Place {
    from: AtomicU64,
    len: AtomicU64,
}

/// The writes of a VM that are announced and not yet reported.
#[derive(Debug)]
pub(crate) struct Writes {
    /// How many there are; most of the time none, and nobody looks further.
    raised: Apart<AtomicU32>,
    places: Box<[Apart<Place>]>,
}

impl Place {
    /// Returns the write that is announced here.
    fn announced(&self) -> Option<(Gpa, u64)> {
        // Acquire: of a free place, pairs with the Release in `withdraw`: the report is done. Of a taken one, with that in `take`: its length.
        match self.from.load(Ordering::Acquire) {
            FREE | TAKEN => None,
            from => Some((Gpa::new(from - 1), self.len.load(Ordering::Relaxed))),
        }
    }

    /// Announces a write here, if the place is free; tells whether it was.
    fn take(&self, gpa: Gpa, len: u64) -> bool {
        // Acquire: who finds the later write here and not the earlier one relies on the earlier one's report.
        let is_free = self.from.load(Ordering::Relaxed) == FREE
            && self
                .from
                .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if is_free {
            self.len.store(len, Ordering::Relaxed);
            // No slot reaches the end of the address space.
            let from = gpa.get().min(TAKEN - 2) + 1;
            self.from.store(from, Ordering::Release);
        }
        is_free
    }
}

impl Writes {
    pub(crate) fn new(vcpus: u16) -> Result<Self, crate::Error> {
        let mut places = Vec::new();
        let n = usize::from(vcpus) + OTHERS;
        places.try_reserve_exact(n)?;
        places.resize_with(n, || {
            Apart(Place {
                from: AtomicU64::new(FREE),
                len: AtomicU64::new(0),
            })
        });
        Ok(Self {
            raised: Apart(AtomicU32::new(0)),
            places: places.into_boxed_slice(),
        })
    }

    /// Tells whether a write may be in flight that the caller, or a guest that runs on its processor, has seen.
    #[inline]
    pub(crate) fn are_in_flight(&self) -> bool {
        // Acquire: pairs with the Release fence in `announce`, by way of the write itself, which the guest has read with whatever order it has. Without it
        // the count may be older than what was read. No instruction on x86.
        if !mutant!(MeetUnfenced) {
            fence(Ordering::Acquire);
        }
        // Acquire: pairs with the Release in `withdraw`: what is not counted any more is reported.
        self.raised.load(Ordering::Acquire) != 0 && !mutant!(MeetNobody)
    }

    /// Announces a write; returns its place. Waits, with no lock held, if every place is taken.
    fn announce(&self, gpa: Gpa, len: u64, relax: impl Fn(u32)) -> usize {
        let n = self.places.len();
        let first = (gpa.get() >> 12) as usize % n;
        let mut round = 0_u32;
        let at = loop {
            let mut places = (first..n).chain(0..first);
            match places.find(|at| self.places[*at].take(gpa, len)) {
                Some(at) => break at,
                None => relax(round),
            }
            crate::sync::pause();
            round = round.saturating_add(1);
        };
        self.raised.fetch_add(1, Ordering::Relaxed);
        // Release: whoever reads what the embedder stores from now on sees the announcement. Message passing, not store buffering: who has not seen the
        // write need not see that it comes. No instruction on x86.
        if !mutant!(AnnounceUnfenced) {
            fence(Ordering::Release);
        }
        at
    }

    /// Takes back the announcement of a write that is reported.
    fn withdraw(&self, at: usize) {
        // Release, both: the report comes before.
        self.places[at].from.store(FREE, Ordering::Release);
        self.raised.fetch_sub(1, Ordering::Release);
    }
}

/// A write in the guest's name that is announced: made while this lives, reported when it is dropped.
///
/// A thread has one at a time, and calls nothing of the library meanwhile that it can do without. One for each vCPU and sixteen more are announced without
/// waiting; only who has none waits.
#[must_use = "the write is reported when this is dropped: store it before"]
#[derive(Debug)]
pub struct Writing<'m, H: Host, O: Observer = ()> {
    mmu: &'m Mmu<H, O>,
    gpa: Gpa,
    len: u64,
    /// Nested paging derives nothing from guest tables.
    place: Option<usize>,
}

impl<H: Host, O: Observer> Writing<'_, H, O> {
    /// Reports the write, which is in memory. The same as dropping this.
    #[inline]
    pub fn report(self) {}
}

impl<H: Host, O: Observer> Drop for Writing<'_, H, O> {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        if mutant!(WithdrawBeforeReport) {
            self.mmu.writes.withdraw(place);
            return self.mmu.guest_wrote(self.gpa, self.len);
        }
        if !mutant!(DropUnreported) {
            self.mmu.guest_wrote(self.gpa, self.len);
        }
        self.mmu.writes.withdraw(place);
    }
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Announces that `len` bytes at `gpa` will be written in the guest's name: an emulated instruction, a device. They are stored while the returned value
    /// lives, and reported when it is dropped, whether or not they were stored.
    ///
    /// Meanwhile other processors of the guest may see the write, and rely on it: loads of roots, INVLPG and faults are exact nevertheless. A write
    /// that no running processor can see needs no announcement, [`Mmu::guest_wrote`] is enough. No lock of the embedder is held that [`Host::relax`] or a
    /// kicked processor needs.
    ///
    /// [`Host::relax`]: crate::host::Processors::relax
    #[inline]
    pub fn begin_write(&self, gpa: Gpa, len: u64) -> Writing<'_, H, O> {
        let relax = |round| self.host.relax(round);
        let is_shadow = self.config.engine == Engine::Shadow;
        Writing {
            mmu: self,
            gpa,
            len,
            place: is_shadow.then(|| self.writes.announce(gpa, len, relax)),
        }
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Derives what writes in flight may have changed, as their reports will: what the caller promises is then no older than what it has seen. The flush for
    /// other processors is the caller's debt.
    #[inline]
    pub(crate) fn meet_writes(&self, debt: &mut Debt<'_, 'm, H, O>) {
        if self.mmu.writes.are_in_flight() {
            self.meet_each(debt);
        }
    }

    #[cold]
    fn meet_each(&self, debt: &mut Debt<'_, 'm, H, O>) {
        for place in &self.mmu.writes.places {
            if let Some((gpa, len)) = place.announced() {
                self.derive_written(gpa, len, debt);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod a_write_in_flight {
    extern crate std;

    use super::Writing;
    use crate::addr::{Gfn, Gva, Level};
    use crate::audit::Strictness;
    use crate::paging::Cr3;
    use crate::sync::Ordering;
    use crate::testhost::{AD, Guest, PWU, TestHost, World};
    use crate::walk::Access;
    use crate::{Engine, Event, FaultOutcome, ForeignWrites, TlbFlush};

    const OLD: u64 = 600 << 12 | PWU | AD;
    const NEW: u64 = 601 << 12 | PWU | AD;

    /// A guest whose first five pages are mapped by one table, and used.
    fn guest() -> (World, Guest, Gfn) {
        let world = World::new(Engine::Shadow, |config| {
            config.foreign_writes = ForeignWrites::ReportedFirst;
            config.prefetch = 0;
        });
        let mut guest = Guest::new(World::ROOT);
        let mut table = World::ROOT;
        for gva in [0, 0x1000, 0x2000, 0x3000, 0x4000] {
            table = guest.map(world.mmu.host(), gva, (Gfn::new(600), Level::L1), PWU | AD);
        }
        world.set_root();
        for gva in [0, 0x1000, 0x2000, 0x3000, 0x4000] {
            assert_eq!(world.touch(gva, Access::READ), FaultOutcome::Resume);
        }
        (world, guest, table)
    }

    /// Announces a write of an entry, and makes it.
    fn write(world: &World, table: Gfn, slot: usize, value: u64) -> Writing<'_, TestHost> {
        let gpa = table.address().wrapping_add(8 * slot as u64);
        let writing = world.mmu.begin_write(gpa, 8);
        let word = world.mmu.host().word(table, slot);
        word.store(value, Ordering::SeqCst);
        writing
    }

    /// Tells whether the shadow of an address is what it was before the write.
    fn is_old(world: &World, gva: u64) -> bool {
        let spte = world.spte(world.slot(gva, Level::L1));
        spte.is_present() && spte.pfn().get() == crate::testhost::RAM + (OLD >> 12)
    }

    #[test]
    fn is_seen_by_the_load_of_the_same_root() {
        let (world, _, table) = guest();
        let writing = write(&world, table, 0, NEW);
        assert!(is_old(&world, 0));
        world.reload();
        assert!(!is_old(&world, 0));
        writing.report();
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn is_seen_by_the_load_of_a_root_used_before() {
        let (world, _, table) = guest();
        let other = Gfn::new(300);
        let top = world.mmu.host().word(World::ROOT, 0).load(Ordering::SeqCst);
        world.mmu.host().word(other, 0).store(top, Ordering::SeqCst);
        let load = |root: Gfn| {
            let cr3 = Cr3::new(root.address().get());
            world.vcpu(0).load_cr3(cr3).expect("there is memory");
        };
        load(other);
        let writing = write(&world, table, 0, NEW);
        load(World::ROOT);
        assert!(!is_old(&world, 0));
        writing.report();
    }

    #[test]
    fn is_seen_by_invlpg() {
        let (world, _, table) = guest();
        let writing = write(&world, table, 1, NEW);
        let flush = TlbFlush::Address(Gva::new(0x1000));
        world.vcpu(0).invalidate(flush).unwrap();
        assert!(!is_old(&world, 0x1000));
        assert!(is_old(&world, 0));
        writing.report();
    }

    #[test]
    fn is_seen_by_invlpg_in_both_frames_that_it_touches() {
        let (world, mut guest, _) = guest();
        let host = world.mmu.host();
        // Tables one after the other: an entry at the end of one, another at the beginning of the next.
        let addresses = [(9_u64 << 21) - 0x1000, 9 << 21];
        let leaf = (Gfn::new(600), Level::L1);
        let [one, two] = addresses.map(|gva| guest.map(host, gva, leaf, PWU | AD));
        assert_eq!(two.get(), one.get() + 1);
        for gva in addresses {
            assert_eq!(world.touch(gva, Access::READ), FaultOutcome::Resume);
        }
        let writing = world.mmu.begin_write(one.address().wrapping_add(0xff8), 16);
        host.word(one, 511).store(NEW, Ordering::SeqCst);
        host.word(two, 0).store(NEW, Ordering::SeqCst);
        let flush = TlbFlush::Address(Gva::new(addresses[0]));
        world.vcpu(0).invalidate(flush).unwrap();
        assert!(addresses.iter().all(|gva| !is_old(&world, *gva)));
        writing.report();
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn is_seen_by_a_fault_that_the_guest_gets() {
        let (world, _, table) = guest();
        let writing = write(&world, table, 2, 0);
        let outcome = world.touch(0x2000, Access::READ);
        assert!(matches!(outcome, FaultOutcome::InjectPageFault { .. }));
        assert!(!is_old(&world, 0x2000));
        writing.report();
    }

    #[test]
    fn is_seen_by_who_reaches_the_table_by_a_new_way() {
        let (world, mut guest, table) = guest();
        let host = world.mmu.host();
        // Its entry 8 stays empty: this is asked for the table alone.
        let directory = guest.map(host, 8 << 21, (Gfn::new(0), Level::L2), 0);
        let entry = host.word(directory, 0).load(Ordering::SeqCst);
        let writing = write(&world, table, 3, NEW);
        // Made by the guest after it has seen the write; nothing was cached, and nothing has to be flushed.
        host.word(directory, 1).store(entry, Ordering::SeqCst);
        assert_eq!(world.touch(1 << 21, Access::READ), FaultOutcome::Resume);
        assert!(!is_old(&world, (1 << 21) + 0x3000));
        writing.report();
    }

    #[test]
    fn is_reported_at_its_end() {
        let (world, _, table) = guest();
        drop(write(&world, table, 4, NEW));
        assert!(!is_old(&world, 0x4000));
        assert!(!world.mmu.writes.are_in_flight());
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn that_finds_no_place_waits_for_another() {
        let (world, _, table) = guest();
        let places = world.mmu.writes.places.len();
        let mut writings: std::vec::Vec<_> =
            (0..places).map(|_| write(&world, table, 0, NEW)).collect();
        std::thread::scope(|scope| {
            let one_more = scope.spawn(|| write(&world, table, 1, NEW).report());
            std::thread::sleep(core::time::Duration::from_millis(10));
            assert!(!one_more.is_finished());
            writings.pop();
        });
        drop(writings);
        assert!(!world.mmu.writes.are_in_flight());
    }

    #[test]
    fn costs_nothing_under_nested_paging() {
        let world = World::new(Engine::Npt, |_| {});
        let writing = write(&world, World::ROOT, 0, NEW);
        assert!(!world.mmu.writes.are_in_flight());
        writing.report();
        assert_eq!(world.mmu.stats().get(Event::GuestWrite), 0);
    }
}
