//! The roots of a vCPU: the one that is loaded, and those that were before.
//!
//! Key types: [`Root`], [`Roots`]. Neighbours: `vcpu` loads and enters, `tree` finds and makes the pages, `clean` brings them up to date.
//!
//! Invariants:
//! 1. The loaded root is referenced, so that its number names no other page; remembered ones are not, but carry the incarnation of their page.
//! 2. A root is referenced before its life is tested, under a guard: a page that dies later sees the reference.
//! 3. Until a load has succeeded no older root is entered in its place.

use crate::addr::{Gfn, Level};
use crate::debt::Debt;
use crate::error::Error;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::{Flags, Page, PageId};
use crate::paging::{Efer, GuestFormat, PagingState};
use crate::role::Role;
use crate::shadow::Again;
use crate::slots::AddressSpace;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;
use crate::vcpu::{Vcpu, VcpuLocal};

/// How many roots a vCPU remembers besides the loaded one.
const PREVIOUS: usize = if crate::sync::SMALL { 1 } else { 7 };

/// A root that is or was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    id: PageId,
    incarnation: u32,
    gfn: Gfn,
    role: Role,
}

/// The roots of a vCPU.
#[derive(Debug)]
pub(crate) struct Roots {
    /// The role of the root that the vCPU's state asks for.
    role: Role,
    root: Option<Root>,
    /// The root is the one that the state asks for, as clean as the last flush promised: loading it did not fail half way.
    loaded: bool,
    previous: [Option<Root>; PREVIOUS],
    next_previous: usize,
    /// Where the last remembered root was found: guests switch to and fro, or round and round.
    hint: usize,
}

impl Roots {
    pub(crate) fn new(state: &PagingState, space: AddressSpace) -> Self {
        Self {
            role: root_role(state, space),
            root: None,
            loaded: false,
            previous: [None; PREVIOUS],
            next_previous: 0,
            hint: 0,
        }
    }

    /// Asks for the root of another state.
    pub(crate) fn ask_for(&mut self, state: &PagingState, space: AddressSpace) {
        self.role = root_role(state, space);
    }

    /// Returns the role of the root that the state asks for.
    #[inline]
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Returns the root that is referenced, dead or alive.
    #[inline]
    pub(crate) fn referenced(&self) -> Option<PageId> {
        self.root.map(|root| root.id)
    }

    /// Returns the loaded root, dead or alive, if its load has succeeded.
    #[inline]
    pub(crate) fn loaded(&self) -> Option<PageId> {
        if self.loaded { self.referenced() } else { None }
    }

    /// Finds a remembered root, and notes its place.
    #[inline]
    fn find_previous(&mut self, fits: impl Fn(&Root) -> bool) -> Option<Root> {
        for _ in 0..PREVIOUS {
            if let Some(root) = &self.previous[self.hint]
                && fits(root)
            {
                return Some(*root);
            }
            self.hint += 1;
            if self.hint == PREVIOUS {
                self.hint = 0;
            }
        }
        None
    }

    /// Forgets that the root is loaded: it died.
    pub(crate) fn unload(&mut self) {
        self.loaded = false;
    }

    /// Makes a root that is referenced already the loaded one, and remembers the one before; returns that, whose reference is to be given up.
    fn replace(&mut self, root: Root) -> Option<PageId> {
        let old = self.root.replace(root)?;
        self.previous[self.next_previous] = Some(old);
        self.next_previous = (self.next_previous + 1) % PREVIOUS;
        Some(old.id)
    }
}

/// Returns the role of the root that a state asks for.
fn root_role(state: &PagingState, space: AddressSpace) -> Role {
    let mode = state.mode();
    match state.format() {
        GuestFormat::Off if state.efer.contains(Efer::LMA) => {
            Role::direct(mode, space, Level::L4, crate::walk::Rights::all())
        }
        GuestFormat::Off => Role::pae_root(mode, space),
        GuestFormat::Level5 => Role::indirect(mode, space, Level::L5, crate::walk::Rights::all()),
        _ => Role::indirect(mode, space, Level::L4, crate::walk::Rights::all()),
    }
}

/// Tells whether a page is alive and still a root's: an incarnation has one gfn and one role.
#[inline]
fn is_current(page: &Page, root: &Root) -> bool {
    page.is_alive() && page.incarnation.load(Ordering::Relaxed) == root.incarnation
}

/// Returns gfn and role of the root that the vCPU's state asks for.
#[inline]
fn wanted(local: &VcpuLocal) -> (Gfn, Role) {
    let role = local.roots.role;
    if role.is_direct() {
        return (Gfn::new(0), role);
    }
    let cr3 = local.walker.state().cr3;
    let gfn = Gfn::containing(cr3.root(local.walker.decoder().format()));
    (gfn, role)
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Tells whether a root that a vCPU remembers is alive and still what it was.
    #[inline]
    fn is_current(&self, root: &Root) -> bool {
        is_current(self.pool.get(root.id), root)
    }

    /// Takes a vCPU's reference off a root.
    #[inline]
    fn unload(&self, root: PageId) {
        let page = self.pool.get(root);
        if page.references.fetch_sub(1, Ordering::AcqRel) == 1 && !page.is_alive() {
            self.grace.look_again();
        }
    }

    /// Tells whether an indirect root is alive and as clean as a load of it promises, with nothing to do.
    #[inline]
    fn is_clean(&self, page: &Page) -> bool {
        // The same loads as in `clean_root`, with the same partners.
        let epoch = self.epoch.load(Ordering::Acquire);
        page.clean_at.load(Ordering::Acquire) == epoch
            && (!self.writes.are_in_flight() || mutant!(ReloadMeetsNobody))
            && page.flags().contains(Flags::ALIVE | Flags::CLEAN)
    }
}

impl<H: Host, O: Observer> Vcpu<'_, H, O> {
    /// Tells whether every entry below the loaded root is what the guest's tables say, but for writes that nobody has reported: no page is listed, and
    /// the root, which may be off the list because nothing links it, is clean itself.
    #[inline]
    pub(crate) fn is_way_clean(&self, local: &VcpuLocal) -> bool {
        let is_clean = |root| self.mmu.pool.get(root).flags().contains(Flags::CLEAN);
        self.mmu.unsync.is_empty() && local.roots.loaded().is_some_and(is_clean)
    }

    /// Loads a root that is at hand, if it is as clean as it has to be; tells whether it is. What [`Call::load_root`] finds out in general.
    #[inline]
    pub(crate) fn reload_root(&self, local: &mut VcpuLocal) -> bool {
        let (gfn, role) = wanted(local);
        let mmu = self.mmu;
        if role.is_direct() || !local.roots.loaded {
            return false;
        }
        let fits = |root: &Root| root.gfn == gfn && root.role == role;
        let is_done = match &local.roots.root {
            // Needs no guard: the loaded root is referenced. Nor a look at the slots: whoever removes one zaps the pages of its tables.
            Some(root) if fits(root) => mmu.is_clean(mmu.pool.get(root.id)),
            _ => self.switch_root(&mut local.roots, fits),
        };
        if is_done {
            self.shared.counters.add_alone(Event::RootCached, 1);
            mmu.observer.observe(Event::RootCached, None);
        }
        is_done
    }

    /// Switches to a remembered root that is clean; tells whether there is one.
    fn switch_root(&self, roots: &mut Roots, fits: impl Fn(&Root) -> bool) -> bool {
        let mmu = self.mmu;
        let Some(root) = roots.find_previous(fits) else {
            return false;
        };
        let _guard = (!mutant!(SwitchUnguarded)).then(|| mmu.grace.enter_vcpu(self.id.0));
        let page = mmu.pool.get(root.id);
        if !mmu.is_clean(page) {
            return false;
        }
        // The reference before the look at its life: a page that dies later sees it.
        page.references.fetch_add(1, Ordering::AcqRel);
        if !is_current(page, &root) {
            mmu.unload(root.id);
            return false;
        }
        // The two change places.
        let old = roots.root.replace(root);
        roots.previous[roots.hint] = old;
        if let Some(old) = old {
            mmu.unload(old.id);
        }
        true
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Returns the vCPU's root if it is loaded and alive.
    pub(crate) fn usable_root(&self, local: &VcpuLocal) -> Option<PageId> {
        let root = local.roots.loaded()?;
        self.page(root).is_alive().then_some(root)
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

    /// Loads the root that the state asks for, as clean as the guest may expect after a flush.
    pub(crate) fn load_root(&self, local: &mut VcpuLocal) -> Result<(), Again> {
        let (gfn, role) = wanted(local);
        let is_loaded = |root: &Root| {
            let fits = root.gfn == gfn && root.role == role && !role.is_direct();
            fits && local.roots.loaded && self.page(root.id).is_alive()
        };
        let loaded = local.roots.root.as_ref().filter(|root| is_loaded(root));
        let loaded = loaded.map(|root| root.id);
        // Until this has succeeded the old root is not entered again, whatever error ends it.
        local.roots.loaded = false;
        let id = match loaded {
            Some(id) => {
                self.count(Event::RootCached);
                id
            }
            None => self.find_root(local, gfn, role)?,
        };
        if !role.is_direct() {
            let mut debt = Debt::new(self);
            self.clean_root(id, &mut debt);
            debt.pay();
            if !self.page(id).flags().contains(Flags::CLEAN) {
                return Err(Again::Raced);
            }
        }
        local.roots.loaded = true;
        Ok(())
    }

    fn find_root(&self, local: &mut VcpuLocal, gfn: Gfn, role: Role) -> Result<PageId, Again> {
        if !role.is_direct() && self.slot(local.space, gfn).is_none() {
            // No record is made for a frame that the guest invents: records are never given back.
            let gpa = gfn.address();
            return Err(Error::TableMissing { gpa }.into());
        }
        let mut debt = Debt::new(self);
        let found = self.choose_root(local, gfn, role, &mut debt);
        debt.pay();
        Ok(found?.id)
    }

    fn choose_root(
        &self,
        local: &mut VcpuLocal,
        gfn: Gfn,
        role: Role,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<Root, Again> {
        let fits = |r: &Root| r.gfn == gfn && r.role == role && self.mmu.is_current(r);
        if let Some(root) = local.roots.root.filter(fits) {
            self.count(Event::RootCached);
            return Ok(root);
        }
        let mut previous = local.roots.previous.iter_mut();
        let cached = previous.find(|r| r.as_ref().is_some_and(fits));
        let root = match cached.and_then(Option::take) {
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
            self.mmu.unload(root.id);
            return Err(Again::Raced);
        }
        if let Some(old) = local.roots.replace(root) {
            self.mmu.unload(old);
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
