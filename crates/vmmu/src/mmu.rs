//! The MMU of one VM, and the context of one call into it.
//!
//! Key types: [`Mmu`] (shared by all of a VM's threads), [`Call`] (guard, locks and counters of one public call).
//!
//! Lock order, owned here and checked in debug builds by [`crate::sync::Locks`]:
//! 1. the table lock of one page;
//! 2. the gfn lock of one stripe of guest frames;
//! 3. one leaf lock: unsync list, free pages, the retired, slot edits.
//!
//! Invariants:
//! 1. Nothing is allocated, flushed or waited for under a lock.
//! 2. Every public call holds a [`ReadGuard`] while it may hold page numbers.

use crate::addr::Gfn;
use crate::addr::{Gpa, Index};
use crate::clean::UnsyncList;
use crate::config::{Config, Engine};
use crate::direct::DirectRoots;
use crate::error::Error;
use crate::frames::{Frames, Missing, Provided};
use crate::gate::Gate;
use crate::host::{Host, VcpuId};
use crate::invalidate::Shards;
use crate::page::{Page, PageId};
use crate::paging::{GuestFormat, PagingMode, PagingRules};
use crate::pool::Pool;
use crate::retire::{Grace, ReadGuard};
use crate::role::Role;
use crate::slots::{AddressSpace, SlotConfig, SlotHint, SlotId, SlotTable, SlotView};
use crate::spte::Spte;
use crate::stats::{Counters, Event, LOCK_EVENTS, Observer, Stats};
use crate::sync::{AtomicU32, AtomicU64, Locks, OnceBox, Ordering};
use crate::vcpu::{Vcpu, VcpuShared};
use crate::walk::{Decoder, Gpte, GpteError, GpteWidth};
use crate::writing::Writes;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The memory-management unit of one virtual machine.
///
/// `Send + Sync`, every method takes `&self`; see the crate's documentation for the picture.
#[derive(Debug)]
pub struct Mmu<H: Host, O: Observer = ()> {
    pub(crate) host: H,
    pub(crate) observer: O,
    pub(crate) config: Config,
    pub(crate) slots: SlotTable,
    pub(crate) frames: Frames,
    pub(crate) pool: Pool,
    pub(crate) grace: Grace,
    pub(crate) gate: Gate<H::Gate>,
    pub(crate) shards: Shards,
    pub(crate) unsync: UnsyncList,
    /// Writes of the embedder that are announced and not yet reported.
    pub(crate) writes: Writes,
    /// Moves on with every unsync; a root is as clean as the epoch it was loaded in.
    pub(crate) epoch: AtomicU64,
    /// Flushes owed by anybody: raised before the first SPTE is removed or narrowed, lowered after the flush.
    pub(crate) flush_pending: AtomicU32,
    /// Pages made so far.
    pub(crate) births: AtomicU64,
    /// Where reclaim looks next.
    pub(crate) reclaim_hand: AtomicU32,
    pub(crate) direct: DirectRoots,
    pub(crate) vcpus: Box<[VcpuShared]>,
    pub(crate) counters: Counters,
    decoders: Box<[OnceBox<[Decoder; 1]>]>,
}

/// Formats times rules: one decoder each, made when the first page needs it.
const DECODERS: usize = 8 << 8;

impl<H: Host> Mmu<H> {
    /// Makes the MMU of a VM without memory slots.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::OutOfMemory`].
    pub fn new(host: H, config: Config) -> Result<Self, Error> {
        Self::with_observer(host, config, ())
    }
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Makes the MMU of a VM, with somebody who is told of every event.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::OutOfMemory`].
    pub fn with_observer(host: H, config: Config, observer: O) -> Result<Self, Error> {
        config.check()?;
        let mut vcpus = Vec::new();
        vcpus.try_reserve_exact(usize::from(config.vcpus))?;
        vcpus.resize_with(usize::from(config.vcpus), || VcpuShared::new(config.cpu));
        let mut decoders = Vec::new();
        decoders.try_reserve_exact(DECODERS)?;
        decoders.resize_with(DECODERS, OnceBox::new);
        let gate = Gate::new(host.gate());
        Ok(Self {
            host,
            observer,
            slots: SlotTable::new(),
            frames: Frames::new(config.stripes as usize)?,
            pool: Pool::new(config.max_pages)?,
            grace: Grace::new(config.vcpus)?,
            gate,
            shards: Shards::new(),
            unsync: UnsyncList::new(config.unsync_limit),
            writes: Writes::new(config.vcpus)?,
            epoch: AtomicU64::new(1),
            flush_pending: AtomicU32::new(0),
            births: AtomicU64::new(1),
            reclaim_hand: AtomicU32::new(0),
            direct: DirectRoots::new(),
            vcpus: vcpus.into_boxed_slice(),
            counters: Counters::new(),
            decoders: decoders.into_boxed_slice(),
            config,
        })
    }

    /// Returns the embedder.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns vCPU `id`.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    pub fn vcpu(&self, id: VcpuId) -> Result<Vcpu<'_, H, O>, Error> {
        let shared = self
            .vcpus
            .get(usize::from(id.0))
            .ok_or(Error::NoSuchVcpu(id))?;
        Ok(Vcpu {
            mmu: self,
            shared,
            id,
        })
    }

    /// Adds a memory slot, while guests run.
    ///
    /// # Errors
    /// [`Error::SlotRange`], [`Error::SlotOverlap`], [`Error::TooManySlots`], [`Error::OutOfMemory`]; nothing has changed then.
    pub fn add_slot(&self, config: &SlotConfig) -> Result<SlotId, Error> {
        let call = self.call();
        call.prepare_log(config.space, config.base, config.frames, config.flags)?;
        self.slots.add(&call.locks, config)
    }

    /// Returns a snapshot of all counters and of what the bookkeeping takes.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.counters.add_to(&mut stats);
        for vcpu in &self.vcpus {
            vcpu.counters.add_to(&mut stats);
        }
        let locks = Locks::default();
        stats.pages = u64::from(self.pool.in_use());
        stats.page_bytes = self.pool.bytes();
        stats.frame_bytes = self.frames.bytes(&locks);
        stats
    }

    /// Begins a call that is not a vCPU's.
    pub(crate) fn call(&self) -> Call<'_, H, O> {
        Call {
            mmu: self,
            locks: Locks::default(),
            guard: Some(self.grace.enter_other()),
            counters: &self.counters,
            hint: None,
        }
    }

    /// Returns the decoder for guest entries of a page with `role`; [`Mmu::provide_decoder`] has made it.
    pub(crate) fn decoder(&self, role: Role) -> &Decoder {
        let at = Self::decoder_at(role);
        &self.decoders[at].get_or_init(|| Box::new([self.new_decoder(at)]))[0]
    }

    /// Makes the decoder for pages with `role`, if there is none yet. No lock is held.
    pub(crate) fn provide_decoder(&self, role: Role) -> Result<(), Error> {
        let at = Self::decoder_at(role);
        if self.decoders[at].get().is_none() {
            let mut one = Vec::new();
            one.try_reserve_exact(1)?;
            one.push(self.new_decoder(at));
            let one = one.into_boxed_slice().try_into();
            // Two threads may race here; the loser's is dropped.
            let _ = self.decoders[at].set(one.map_err(|_| Error::OutOfMemory)?);
        }
        Ok(())
    }

    fn decoder_at(role: Role) -> usize {
        (role.raw() >> 16) as usize % DECODERS
    }

    fn new_decoder(&self, at: usize) -> Decoder {
        let format = [
            GuestFormat::Off,
            GuestFormat::Bits32,
            GuestFormat::Pae,
            GuestFormat::Level4,
            GuestFormat::Level5,
        ]
        .into_iter()
        .find(|f| *f as usize == at & 7)
        .unwrap_or(GuestFormat::Level4);
        let rules = PagingRules::from_bits_truncate((at >> 3) as u8);
        Decoder::new(PagingMode::new(format, rules, self.config.cpu))
    }
}

impl<H: Host, O: Observer> Drop for Mmu<H, O> {
    fn drop(&mut self) {
        // Nobody else has the MMU any more: no guest runs on it.
        let locks = Locks::default();
        for id in self.pool.ids(&locks) {
            if let Some(table) = self.pool.try_get(id).and_then(Page::take_table) {
                self.host.free_table(table);
            }
        }
    }
}

/// What the bound on bookkeeping has to leave, in bytes, for a guess to have memory: more than anything but nodes takes.
const ROOM_FOR_GUESS: i64 = 1024;

/// One public call: what it may hold and what it did.
#[derive(Debug)]
pub(crate) struct Call<'m, H: Host, O: Observer> {
    pub(crate) mmu: &'m Mmu<H, O>,
    pub(crate) locks: Locks,
    pub(crate) guard: Option<ReadGuard<'m>>,
    pub(crate) counters: &'m Counters,
    /// The vCPU's own; then the counters have no other writer either.
    pub(crate) hint: Option<&'m SlotHint>,
}

impl<H: Host, O: Observer> Drop for Call<'_, H, O> {
    #[inline]
    fn drop(&mut self) {
        self.guard = None;
        if self.locks.took_any() {
            for (event, n) in LOCK_EVENTS.iter().zip(self.locks.take_counts()) {
                self.add(*event, u64::from(n));
            }
        }
        if self.mmu.grace.is_due() {
            self.reap(4);
        }
    }
}

impl<H: Host, O: Observer> Call<'_, H, O> {
    /// Counts `n` events.
    #[inline]
    pub(crate) fn add(&self, event: Event, n: u64) {
        if self.hint.is_some() {
            self.counters.add_alone(event, n);
        } else {
            self.counters.add_shared(event, n);
        }
    }

    /// Counts an event and tells the observer.
    #[inline]
    pub(crate) fn count(&self, event: Event) {
        self.add(event, 1);
        self.mmu.observer.observe(event, None);
    }

    /// Tells the observer of an event about `gfn`, which [`Call::add`] counts.
    #[inline]
    pub(crate) fn tell(&self, event: Event, gfn: Gfn) {
        self.mmu.observer.observe(event, Some(gfn));
    }

    /// Counts an event about `gfn` and tells the observer.
    #[inline]
    pub(crate) fn count_at(&self, event: Event, gfn: Gfn) {
        self.add(event, 1);
        self.mmu.observer.observe(event, Some(gfn));
    }

    #[inline]
    pub(crate) fn page(&self, id: PageId) -> &Page {
        self.mmu.pool.get(id)
    }

    #[inline]
    pub(crate) fn load(&self, page: &Page, slot: Index) -> Spte {
        Spte::new(self.mmu.host.load(page.table(), slot))
    }

    /// Allocates what an operation lacked, or makes room for it within the bound on bookkeeping. No lock is held.
    pub(crate) fn provide(&self, missing: Missing) -> Result<(), Error> {
        let (frames, spare) = (&self.mmu.frames, self.mmu.pool.spare());
        match frames.provide(&self.locks, missing, spare)? {
            Provided::Memory if frames.is_within_bound(spare, 0) || mutant!(BoundIgnored) => Ok(()),
            Provided::Memory => self.shed(),
            Provided::Bound => {
                self.recycle(missing.gfn());
                Ok(())
            }
        }
    }

    /// Allocates what a guess lacked, if that costs no other entry; tells whether it did.
    pub(crate) fn provide_guess(&self, missing: Missing) -> bool {
        let (frames, spare) = (&self.mmu.frames, self.mmu.pool.spare());
        frames.is_within_bound(spare, ROOM_FOR_GUESS)
            && frames.provide(&self.locks, missing, spare) == Ok(Provided::Memory)
    }

    /// Returns pages whose grace period is over to the pool and their tables to the embedder, at most `most`; tells how many.
    pub(crate) fn reap(&self, most: usize) -> usize {
        let mut freed = 0;
        while freed < most
            && let Some(id) = self.mmu.grace.pop(&self.locks, &self.mmu.pool)
        {
            self.give_back(id);
            freed += 1;
        }
        freed
    }

    /// Returns a page that nobody can reach to the pool, and its table to the embedder.
    pub(crate) fn give_back(&self, id: PageId) {
        self.locks.assert_none();
        let table = self.page(id).take_table();
        self.mmu.pool.put(&self.locks, id);
        if let Some(table) = table {
            self.mmu.host.free_table(table);
        }
    }

    /// Finds the slot of `gfn`.
    #[inline(always)]
    pub(crate) fn slot(&self, space: AddressSpace, gfn: Gfn) -> Option<SlotView> {
        match self.hint {
            Some(hint) => self.mmu.slots.find_near(hint, space, gfn),
            None => self.mmu.slots.find(space, gfn),
        }
    }

    /// Reads a guest entry through the slots.
    #[inline(always)]
    pub(crate) fn read_gpte(
        &self,
        role: Role,
        at: Gpa,
        width: GpteWidth,
    ) -> Result<Gpte, GpteError> {
        let gfn = Gfn::containing(at);
        let slot = self.slot(role.space(), gfn).ok_or(GpteError::Missing)?;
        crate::memory::load(&self.mmu.host, slot.backed(gfn), at, width)
    }

    /// Returns where the guest entry of a slot of an indirect page lies.
    #[inline]
    pub(crate) fn gpte_at(page: &Page, slot: Index) -> Gpa {
        page.gfn().address().wrapping_add(slot.get() as u64 * 8)
    }

    pub(crate) fn is_direct_engine(&self) -> bool {
        self.mmu.config.engine != Engine::Shadow
    }

    pub(crate) fn flush_is_pending(&self) -> bool {
        // Acquire: pairs with the AcqRel in `Debt::owe`; the SPTE seen empty was emptied after the raise.
        self.mmu.flush_pending.load(Ordering::Acquire) != 0
    }
}
