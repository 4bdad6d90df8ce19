//! One vCPU: its paging state, its root, and the protocol of entering and leaving the guest.
//!
//! Key types: [`Vcpu`] (a handle), [`VcpuLocal`] (what the thread that claimed the vCPU works with), [`VcpuShared`] (what others see).
//!
//! | mode | meaning | who changes it |
//! |---|---|---|
//! | OUTSIDE | no guest runs; the TLB is flushed before one does, if requested | the vCPU |
//! | IN_GUEST | the guest may run, its TLB in use | the vCPU, by `enter`; back by `exited` |
//!
//! Entry: store IN_GUEST, full barrier, read the requests and whether the root is dead; if there is anything, store OUTSIDE and serve it there.
//! Requester: store the request, full barrier, read the exit count, then the mode; a CPU outside counts as flushed, one inside is kicked until
//! its exit count changes: waited for is a change, never a state.
//!
//! Invariants:
//! 1. No wait depends on a lock; serving happens outside.
//! 2. The loaded root is referenced; cached roots are not, but carry the incarnation of their page.
//! 3. `exits` is raised after the mode is stored.

use crate::addr::{Gfn, Gva, Level};
use crate::debt::Debt;
use crate::error::Error;
use crate::host::{Host, VcpuId};
use crate::mmu::{Call, Mmu};
use crate::outcome::{Entry, FaultOutcome, Unprotected};
use crate::page::{Flags, PageId};
use crate::paging::{CpuModel, Cr3, Efer, GuestFormat, PagingState};
use crate::role::Role;
use crate::shadow::{Again, Near};
use crate::slots::{AddressSpace, SlotHint};
use crate::stats::{Counters, Event, Observer};
use crate::sync::{AtomicU32, AtomicU64, Claim, Claimed, Locks, Ordering, fence};
use crate::walk::{Access, AccessKind, Privilege, Rights, Walk, WalkFailure, Walker};

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = 1;
/// How many roots a vCPU remembers besides the loaded one.
const PREVIOUS: usize = if cfg!(loom) { 1 } else { 7 };

/// How often a fault at the page limit looks for a page whose grace period is over before it gives up.
const PATIENCE: u32 = 1 << 20;

/// What others see of a vCPU.
#[derive(Debug)]
pub(crate) struct VcpuShared {
    pub(crate) local: Claim<VcpuLocal>,
    mode: AtomicU32,
    exits: AtomicU64,
    /// Flushes requested since the last entry.
    requests: AtomicU32,
    pub(crate) counters: Counters,
    hint: SlotHint,
}

/// A root that was used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    id: PageId,
    incarnation: u32,
    gfn: Gfn,
    role: Role,
}

/// What the claimant of a vCPU works with.
#[derive(Debug)]
pub(crate) struct VcpuLocal {
    pub(crate) walker: Walker,
    pub(crate) space: AddressSpace,
    /// The role of the root that the state asks for.
    root_role: Role,
    root: Option<Root>,
    /// The root is the one that the state asks for, as clean as the last flush promised: loading it did not fail half way.
    loaded: bool,
    previous: [Option<Root>; PREVIOUS],
    next_previous: usize,
    /// The own TLB has to be flushed at the next entry.
    flush: bool,
    /// Where the last fault was installed.
    pub(crate) near: Option<Near>,
    /// The last instruction that was retried after unprotecting.
    retried: Option<(u64, Gva)>,
}

impl VcpuShared {
    pub(crate) fn new(cpu: CpuModel) -> Self {
        let state = PagingState::reset(cpu);
        let local = VcpuLocal {
            walker: Walker::new(state),
            space: AddressSpace::Normal,
            root_role: root_role(&state, AddressSpace::Normal),
            root: None,
            loaded: false,
            previous: [None; PREVIOUS],
            next_previous: 0,
            flush: true,
            near: None,
            retried: None,
        };
        Self {
            local: Claim::new(local),
            mode: AtomicU32::new(OUTSIDE),
            exits: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            counters: Counters::new(),
            hint: SlotHint::new(),
        }
    }

    /// Counts as inside the guest from now on, in tests that play the processor themselves.
    #[cfg(all(test, loom))]
    pub(crate) fn pretend_in_guest(&self) {
        self.mode.store(IN_GUEST, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

impl VcpuLocal {
    /// Returns the role of a page of `level` on a way below the root, for a guest table with `inherited` rights.
    #[inline]
    pub(crate) fn role_at(&self, level: Level, inherited: Rights) -> Role {
        self.root_role.child(level, inherited, false)
    }

    /// Returns the root that this vCPU references, dead or alive.
    pub(crate) fn referenced(&self) -> Option<PageId> {
        self.root.map(|root| root.id)
    }
}

/// Returns the role of the root that a state asks for.
fn root_role(state: &PagingState, space: AddressSpace) -> Role {
    let mode = state.mode();
    match state.format() {
        GuestFormat::Off if state.efer.contains(Efer::LMA) => {
            Role::direct(mode, space, Level::L4, Rights::all())
        }
        GuestFormat::Off => Role::pae_root(mode, space),
        GuestFormat::Level5 => Role::indirect(mode, space, Level::L5, Rights::all()),
        _ => Role::indirect(mode, space, Level::L4, Rights::all()),
    }
}

/// A vCPU of an [`Mmu`].
///
/// Calls for one vCPU come from one thread at a time; a second one is refused with [`Error::VcpuBusy`] and never waits. All are made outside the guest:
/// after [`Vcpu::exited`], before [`Vcpu::enter`].
#[derive(Debug)]
pub struct Vcpu<'m, H: Host, O: Observer = ()> {
    pub(crate) mmu: &'m Mmu<H, O>,
    pub(crate) shared: &'m VcpuShared,
    pub(crate) id: VcpuId,
}

impl<H: Host, O: Observer> Clone for Vcpu<'_, H, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H: Host, O: Observer> Copy for Vcpu<'_, H, O> {}

/// What an invalidation by the guest covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TlbFlush {
    /// INVLPG of one address.
    Address(Gva),
    /// Everything: MOV to CR3, a change of CR4.PGE, INVPCID types 1 to 3.
    All,
}

impl<'m, H: Host, O: Observer> Vcpu<'m, H, O> {
    /// Returns the vCPU's number.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    fn claim(&self) -> Result<Claimed<'m, VcpuLocal>, Error> {
        self.shared.local.claim().ok_or(Error::VcpuBusy(self.id))
    }

    /// Begins a call; the caller has claimed the vCPU, so that guard slot and counters are its own.
    fn call(&self) -> Call<'m, H, O> {
        Call {
            mmu: self.mmu,
            locks: Locks::default(),
            guard: Some(self.mmu.grace.enter_vcpu(self.id.0)),
            counters: &self.shared.counters,
            hint: Some(&self.shared.hint),
        }
    }

    /// Runs `work` until it is done: once, nearly always.
    #[inline]
    fn with_pages<T>(
        &self,
        mut work: impl FnMut(&Call<'m, H, O>) -> Result<T, Again>,
    ) -> Result<T, Error> {
        let call = self.call();
        match work(&call) {
            Ok(value) => Ok(value),
            Err(again) => {
                let next = self.after(call, again, &mut 0)?;
                self.work_on(next, work)
            }
        }
    }

    /// Runs `work` again and again.
    #[cold]
    fn work_on<T>(
        &self,
        mut call: Call<'m, H, O>,
        mut work: impl FnMut(&Call<'m, H, O>) -> Result<T, Again>,
    ) -> Result<T, Error> {
        let mut round = 0;
        loop {
            match work(&call) {
                Ok(value) => return Ok(value),
                Err(again) => call = self.after(call, again, &mut round)?,
            }
        }
    }

    /// Does what `again` asks for, and returns the call to go on with. For pages the guard is left, so that grace periods can end.
    #[cold]
    fn after(
        &self,
        call: Call<'m, H, O>,
        again: Again,
        round: &mut u32,
    ) -> Result<Call<'m, H, O>, Error> {
        match again {
            Again::Error(error) => return Err(error),
            Again::Missing(missing) => call.provide(missing)?,
            Again::Flush => call.flush_all(),
            Again::Raced => {}
            Again::NeedPages => {
                drop(call);
                self.wait_for_pages(round)?;
                return Ok(self.call());
            }
        }
        Ok(call)
    }

    /// Gives grace periods a chance to end. No guard is held.
    fn wait_for_pages(&self, round: &mut u32) -> Result<(), Error> {
        let outside = Call {
            mmu: self.mmu,
            locks: Locks::default(),
            guard: None,
            counters: &self.shared.counters,
            hint: Some(&self.shared.hint),
        };
        if outside.reap(8) == 0 {
            self.mmu.host.relax(*round);
            *round = round.saturating_add(1);
        }
        if *round > PATIENCE {
            return Err(Error::PageLimit {
                limit: self.mmu.pool.limit(),
            });
        }
        Ok(())
    }

    /// Tells what decides the guest's translation: after MOV to CR0 or CR4, a write to EFER or PKRU, or anything that changes several.
    ///
    /// Roots and translations made for another mode are not used again before they are checked.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if the engine has no tables for the format yet: the vCPU is as before. [`Error::TableMissing`] if CR3 names
    /// what no slot has. [`Error::OutOfTables`] and others as for a fault. The state is set even so, and the root is loaded by the next call that
    /// needs it.
    pub fn set_paging(&self, state: &PagingState, space: AddressSpace) -> Result<(), Error> {
        let mut local = self.claim()?;
        let format = state.format();
        let is_shadow = self.mmu.config.engine == crate::Engine::Shadow;
        if is_shadow && matches!(format, GuestFormat::Bits32 | GuestFormat::Pae) {
            return Err(Error::UnsupportedFormat { format });
        }
        local.walker.set_state(*state);
        local.space = space;
        local.root_role = root_role(state, space);
        local.flush = true;
        if is_shadow {
            self.with_pages(|call| call.load_root(&mut local))
        } else {
            Ok(())
        }
    }

    /// Serves MOV to CR3 (without PCID): what the guest changed before is seen after. Bits above MAXPHYADDR have been refused by the embedder.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`].
    pub fn load_cr3(&self, cr3: Cr3) -> Result<(), Error> {
        let mut local = self.claim()?;
        local.walker.set_cr3(cr3, None);
        local.flush |= !mutant!(Cr3KeepsTlb);
        if self.mmu.config.engine == crate::Engine::Shadow && !self.reload_root(&local) {
            self.with_pages(|call| call.load_root(&mut local))
        } else {
            Ok(())
        }
    }

    /// Loads the root that is loaded already, if it is as clean as it has to be; tells whether it is. What [`Call::load_root`] finds out
    /// in general; needs no guard, because the loaded root is referenced.
    #[inline]
    fn reload_root(&self, local: &VcpuLocal) -> bool {
        let (gfn, role) = Call::<H, O>::wanted_root(local);
        let fits = |root: &Root| root.gfn == gfn && root.role == role && self.mmu.is_current(root);
        let Some(root) = local.root.filter(fits) else {
            return false;
        };
        let page = self.mmu.pool.get(root.id);
        // The same loads as in `clean_root`, with the same partners.
        let epoch = self.mmu.epoch.load(Ordering::Acquire);
        let slots = &self.mmu.slots;
        let is_clean = local.loaded
            && !role.is_direct()
            && page.clean_at.load(Ordering::Acquire) == epoch
            && page.flags().contains(Flags::CLEAN)
            && slots
                .find_near(&self.shared.hint, local.space, gfn)
                .is_some();
        if is_clean {
            self.shared.counters.add_alone(Event::RootCached, 1);
            self.mmu.observer.observe(Event::RootCached, None);
        }
        is_clean
    }

    /// Serves the guest's own flushes. Needed in the shadow engine only: under nested paging the processor does them.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`].
    pub fn invalidate(&self, what: TlbFlush) -> Result<(), Error> {
        let mut local = self.claim()?;
        local.flush |= !mutant!(InvlpgKeepsTlb);
        if self.mmu.config.engine != crate::Engine::Shadow {
            return Ok(());
        }
        match what {
            TlbFlush::All => self.with_pages(|call| call.load_root(&mut local)),
            TlbFlush::Address(gva) => {
                let call = self.call();
                call.count(Event::Invlpg);
                let mut debt = Debt::new(&call);
                let root = call.usable_root(&local);
                let slot = root
                    .filter(|_| !mutant!(InvlpgOnlyFlushes))
                    .and_then(|root| call.derive_way(root, gva, &mut debt));
                debt.pay();
                if let Some((id, index)) = slot {
                    call.fill_one(local.walker.decoder(), id, index);
                }
                Ok(())
            }
        }
    }

    /// Serves a #PF exit of the shadow engine: `access` says what the guest tried.
    ///
    /// # Errors
    /// [`Error::OutOfTables`], [`Error::OutOfMemory`], [`Error::HostMemory`], [`Error::PageLimit`]: nothing is lost, the guest may be entered
    /// again when there is memory. [`Error::VcpuBusy`], [`Error::WrongEngine`].
    pub fn handle_fault(&self, gva: Gva, access: Access) -> Result<FaultOutcome, Error> {
        let engine = self.mmu.config.engine;
        if engine != crate::Engine::Shadow {
            return Err(Error::WrongEngine { engine });
        }
        let mut local = self.claim()?;
        self.shared.counters.add_alone(Event::FaultTaken, 1);
        self.with_pages(|call| call.shadow_fault(&mut local, gva, access))
    }

    /// Serves an exit of the direct engine: the guest-physical address, and what was tried there.
    ///
    /// # Errors
    /// As [`Vcpu::handle_fault`].
    pub fn handle_nested_fault(
        &self,
        gpa: crate::addr::Gpa,
        access: AccessKind,
    ) -> Result<FaultOutcome, Error> {
        let engine = self.mmu.config.engine;
        if engine == crate::Engine::Shadow {
            return Err(Error::WrongEngine { engine });
        }
        let local = self.claim()?;
        self.shared.counters.add_alone(Event::FaultTaken, 1);
        self.with_pages(|call| call.direct_fault(local.space, gpa, access))
    }

    /// Translates an address as the guest would, without touching A and D bits: for fetching an instruction that has to be decoded.
    ///
    /// # Errors
    /// [`Error::VcpuBusy`], [`Error::HostMemory`]; the inner result is the walk's own.
    pub fn translate(
        &self,
        gva: Gva,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Result<Result<Walk, WalkFailure>, Error> {
        let local = self.claim()?;
        let call = self.call();
        let memory = crate::memory::SlottedMemory::new(&call, local.space);
        let mut walk = Walk::new();
        let walked = local
            .walker
            .probe(&memory, gva, Access::new(kind, privilege), &mut walk);
        // A table that was not resident is by the time the caller tries again.
        memory.page_in()?;
        Ok(walked.map(|()| walk))
    }

    /// Unprotects the guest table that a write hit, where the write cannot be emulated: its pages are zapped. `rip` tells an instruction that
    /// writes a table of its own translation (scenario L3).
    ///
    /// # Errors
    /// [`Error::VcpuBusy`].
    pub fn unprotect(
        &self,
        gpa: crate::addr::Gpa,
        rip: u64,
        gva: Gva,
    ) -> Result<Unprotected, Error> {
        let mut local = self.claim()?;
        let call = self.call();
        let mut debt = Debt::new(&call);
        let again = local.retried.replace((rip, gva)) == Some((rip, gva));
        call.count(Event::Unprotect);
        if again && let Some(root) = call.usable_root(&local) {
            let _ = call.clean_listed(root, &mut debt, None);
        }
        let zapped = call.zap_gfn(Gfn::containing(gpa), &mut debt);
        debt.pay();
        Ok(match (again, zapped) {
            (true, _) => Unprotected::Again,
            (false, 0) => Unprotected::NotProtected,
            (false, _) => Unprotected::Retry,
        })
    }

    /// Begins to enter the guest: serves what was requested meanwhile, and says with which root to run.
    ///
    /// From its return to [`Vcpu::exited`] the vCPU counts as inside the guest, and may be kicked.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`], when a new root is needed.
    pub fn enter(&self) -> Result<Entry, Error> {
        let mut local = self.claim()?;
        loop {
            let root = match self.mmu.root_at_hand(&local) {
                Some(root) => root,
                None => self.with_pages(|call| call.root_to_enter(&mut local))?,
            };
            let page = self.mmu.pool.get(root);
            self.shared.mode.store(IN_GUEST, Ordering::Relaxed);
            // Full barrier: pairs with the one in `flush_all`. Without it a request could be missed here while its requester still
            // sees OUTSIDE.
            fence(Ordering::SeqCst);
            let dead = !page.is_alive();
            if self.shared.requests.load(Ordering::Acquire) == 0 && !dead {
                return Ok(Entry {
                    root: page.table().address(),
                    flush: core::mem::take(&mut local.flush),
                });
            }
            self.leave();
            if self.shared.requests.swap(0, Ordering::AcqRel) != 0 && !mutant!(RequestUnserved) {
                local.flush = true;
            }
        }
    }

    /// Ends the guest's run: to be called first after every exit.
    pub fn exited(&self) {
        self.leave();
    }

    fn leave(&self) {
        // Release: what the guest did through its TLB comes before.
        self.shared.mode.store(OUTSIDE, Ordering::Release);
        // After the mode: a requester that read the new count must not find the old mode and wait for the next exit.
        let exits = self.shared.exits.load(Ordering::Relaxed);
        self.shared
            .exits
            .store(exits.wrapping_add(1), Ordering::Release);
    }

    /// Returns the paging state as last set.
    ///
    /// # Errors
    /// [`Error::VcpuBusy`].
    pub fn paging(&self) -> Result<PagingState, Error> {
        Ok(*self.claim()?.walker.state())
    }
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Tells whether a root that a vCPU remembers is alive and still what it was.
    #[inline]
    fn is_current(&self, root: &Root) -> bool {
        let page = self.pool.get(root.id);
        page.is_for(root.gfn, root.role)
            && page.incarnation.load(Ordering::Relaxed) == root.incarnation
    }

    /// Returns the root to enter with if it is at hand. Needs no guard: a loaded root is referenced, a direct one lives as long as the VM.
    #[inline]
    fn root_at_hand(&self, local: &VcpuLocal) -> Option<PageId> {
        if self.config.engine != crate::Engine::Shadow {
            return self.direct.get(local.space);
        }
        local
            .root
            .filter(|r| local.loaded && self.is_current(r))
            .map(|r| r.id)
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Flushes the TLBs of all CPUs; returns when none holds an older translation. No lock is held.
    pub(crate) fn flush_all(&self) {
        self.locks.assert_none();
        self.count(Event::Flush);
        for vcpu in &self.mmu.vcpus {
            if !mutant!(NoRequest) {
                vcpu.requests.store(1, Ordering::Release);
            }
        }
        // Full barrier: pairs with the one in `enter`.
        fence(Ordering::SeqCst);
        for (i, vcpu) in self.mmu.vcpus.iter().enumerate() {
            // The count before the mode: if the CPU leaves in between, the mode says so.
            let exits = vcpu.exits.load(Ordering::Acquire);
            if vcpu.mode.load(Ordering::Acquire) == OUTSIDE {
                continue;
            }
            self.count(Event::Kick);
            let mut round = 0;
            while if mutant!(WaitForMode) {
                vcpu.mode.load(Ordering::Acquire) != OUTSIDE
            } else {
                vcpu.exits.load(Ordering::Acquire) == exits
            } {
                if round % 1024 == 0 {
                    self.mmu.host.kick(VcpuId(i as u16));
                }
                if mutant!(KickWithoutWait) {
                    break;
                }
                self.mmu.host.relax(round);
                round = round.wrapping_add(1);
                #[cfg(loom)]
                loom::thread::yield_now();
            }
        }
    }

    /// Returns the vCPU's root if it is loaded and alive.
    pub(crate) fn usable_root(&self, local: &VcpuLocal) -> Option<PageId> {
        local
            .root
            .filter(|r| local.loaded && self.mmu.is_current(r))
            .map(|r| r.id)
    }

    /// Returns the root, choosing one anew if it died.
    pub(crate) fn live_root(
        &self,
        local: &mut VcpuLocal,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<PageId, Again> {
        if let Some(root) = self.usable_root(local) {
            return Ok(root);
        }
        debt.pay();
        self.load_root(local)?;
        self.usable_root(local).ok_or(Again::Raced)
    }

    pub(crate) fn root_to_enter(&self, local: &mut VcpuLocal) -> Result<PageId, Again> {
        if self.is_direct_engine() {
            return self.direct_root(local.space);
        }
        if let Some(root) = self.usable_root(local) {
            return Ok(root);
        }
        self.load_root(local)?;
        self.usable_root(local).ok_or(Again::Raced)
    }

    /// Returns gfn and role of the root that the vCPU's state asks for.
    fn wanted_root(local: &VcpuLocal) -> (Gfn, Role) {
        let role = local.root_role;
        if role.is_direct() {
            return (Gfn::new(0), role);
        }
        let cr3 = local.walker.state().cr3;
        let gfn = Gfn::containing(cr3.root(local.walker.decoder().format()));
        (gfn, role)
    }

    /// Loads the root that the state asks for, as clean as the guest may expect after a flush.
    pub(crate) fn load_root(&self, local: &mut VcpuLocal) -> Result<(), Again> {
        let (gfn, role) = Self::wanted_root(local);
        // Until this has succeeded the old root is not entered again, whatever error ends it.
        local.loaded = false;
        if !role.is_direct() && self.slot(local.space, gfn).is_none() {
            // No record is made for a frame that the guest invents: records are never given back.
            let gpa = gfn.address();
            return Err(Error::TableMissing { gpa }.into());
        }
        let mut debt = Debt::new(self);
        let found = self.choose_root(local, gfn, role, &mut debt);
        debt.pay();
        let root = found?;
        if !role.is_direct() {
            let mut debt = Debt::new(self);
            self.clean_root(root.id, &mut debt);
            debt.pay();
            if !self.page(root.id).flags().contains(Flags::CLEAN) {
                return Err(Again::Raced);
            }
        }
        local.loaded = true;
        Ok(())
    }

    fn choose_root(
        &self,
        local: &mut VcpuLocal,
        gfn: Gfn,
        role: Role,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<Root, Again> {
        let fits = |r: &Root| r.gfn == gfn && r.role == role && self.mmu.is_current(r);
        if let Some(root) = local.root.filter(fits) {
            self.count(Event::RootCached);
            return Ok(root);
        }
        let cached = local
            .previous
            .iter()
            .position(|r| r.as_ref().is_some_and(fits));
        let root = match cached.and_then(|at| local.previous[at].take()) {
            Some(root) => {
                self.count(Event::RootCached);
                root
            }
            None => {
                let id = self.find_or_create(gfn, role, &[], debt)?;
                self.count(Event::RootLoaded);
                Root {
                    id,
                    incarnation: self.page(id).incarnation.load(Ordering::Relaxed),
                    gfn,
                    role,
                }
            }
        };
        // The reference before the look at its life: a page that dies later sees it.
        self.page(root.id).references.fetch_add(1, Ordering::AcqRel);
        if !self.mmu.is_current(&root) {
            self.page(root.id).references.fetch_sub(1, Ordering::AcqRel);
            return Err(Again::Raced);
        }
        if let Some(old) = local.root.replace(root) {
            self.page(old.id).references.fetch_sub(1, Ordering::AcqRel);
            local.previous[local.next_previous] = Some(old);
            local.next_previous = (local.next_previous + 1) % PREVIOUS;
        }
        Ok(root)
    }
}

#[cfg(all(test, not(loom)))]
mod a_root_that_cannot_be_loaded_is_not_entered {
    use crate::addr::Gfn;
    use crate::paging::Cr3;
    use crate::sync::Ordering;
    use crate::testhost::World;
    use crate::{Engine, Error};

    #[test]
    fn and_the_old_one_is_not_entered_in_its_place() {
        let world = World::new(Engine::Shadow, |_| {});
        world.set_root();
        let old = world.vcpu(0).enter().unwrap().root;
        world.vcpu(0).exited();
        world.mmu.host().credit.store(0, Ordering::SeqCst);
        let other = Cr3::new(Gfn::new(300).address().get());
        assert_eq!(world.vcpu(0).load_cr3(other), Err(Error::OutOfTables));
        assert_eq!(world.vcpu(0).enter(), Err(Error::OutOfTables));
        world.mmu.host().credit.store(1, Ordering::SeqCst);
        assert_ne!(world.vcpu(0).enter().unwrap().root, old);
    }

    #[test]
    fn and_costs_no_memory_where_no_slot_is() {
        let world = World::new(Engine::Shadow, |_| {});
        world.set_root();
        let before = world.mmu.stats();
        for i in 1..100 {
            let gpa = Gfn::new(i << 20).address();
            let missing = Err(Error::TableMissing { gpa });
            assert_eq!(world.vcpu(0).load_cr3(Cr3::new(gpa.get())), missing);
        }
        assert_eq!(world.mmu.stats().frame_bytes, before.frame_bytes);
        assert!(world.vcpu(0).enter().is_err());
        world.reload();
        assert!(world.vcpu(0).enter().is_ok());
    }
}

#[cfg(all(test, not(loom)))]
mod a_fault_of_the_other_engine {
    use crate::addr::{Gpa, Gva};
    use crate::audit::Strictness;
    use crate::testhost::World;
    use crate::walk::{Access, AccessKind};
    use crate::{Engine, Error};

    #[test]
    fn is_refused() {
        for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
            let world = World::new(engine, |_| {});
            let vcpu = world.vcpu(0);
            let refused = if engine == Engine::Shadow {
                vcpu.handle_nested_fault(Gpa::new(0), AccessKind::Read)
            } else {
                vcpu.handle_fault(Gva::new(0), Access::READ)
            };
            assert_eq!(refused, Err(Error::WrongEngine { engine }));
            let report = world.mmu.audit(Strictness::Exact).unwrap();
            assert_eq!(report.pages, 0);
        }
    }
}
