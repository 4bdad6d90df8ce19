//! The guest walker: what the guest's own tables say about an access.
//!
//! A [`Walker`] holds a vCPU's [`PagingState`] and the tables derived from its mode. [`Walker::walk`] reads the guest's entries
//! through [`GpteMemory`], checks them, judges the [`Access`] and stores A and D as the processor would; it answers with a
//! [`Walk`] or with the reason why not, [`WalkFailure`]. [`Decoder`] and [`PermissionTable`] judge single entries and rights
//! without a walk.
//!
//! Neighbours: the fault path walks before it shadows; sync and prefetch decode; the memory slots implement [`GpteMemory`].
//! Nothing here allocates, locks, blocks or keeps anything between two walks.
//!
//! Where processors are free to differ, the walker does what all of them may do:
//! - Entries are judged from the root down; the first one that is not present or has a reserved bit set ends the walk. Rights and
//!   protection keys are judged once, at the leaf (Intel SDM vol. 3, section 4.7).
//! - A and D are stored only when the access succeeds, A from the root down, D in the leaf of a write (AMD APM vol. 2, section
//!   5.4.2). A refused access leaves the guest's tables as they were.
//! - A bit that is set already is not written again. In read-only memory no bit can be stored, and the walk goes on without.
//!
//! Invariants:
//! 1. Each entry is read once; everything derived from it is derived from that copy. A store of A or D is a compare-exchange
//!    against the copy, and losing it is [`WalkFailure::Retry`].
//! 2. No guest value makes the walker panic or read an address that the guest's entries don't name.
//! 3. The tables are those of the state's mode: whatever changes the mode derives them anew.
//!
//! Known gaps: supervisor protection keys (CR4.PKS), shadow stacks (CR4.CET), LAM and LASS are not modelled.

mod access;
mod decoder;
pub(crate) mod format;
mod gpte;
mod memory;
mod permission;
mod record;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessKind, PageFaultCode, Privilege};
pub use decoder::{Decoder, Entry, LeafEntry, TableEntry};
pub use format::GpteWidth;
pub use gpte::{CacheBits, Gpte};
pub use memory::{CasOutcome, GpteError, GpteMemory};
pub use permission::{PermissionTable, Rights};
pub use record::{GpteRecord, Walk};

use crate::addr::{Gpa, Gva, Level};
use crate::paging::{Cr3, GuestFormat, PagingState, Pdptes, Pkru};
use decoder::Step;
use format::{Bits32, Format, Level4, Level5, Pae};
use gpte::Through;

/// A page fault that the guest's tables demand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageFault {
    /// The error code, exactly as the processor would push it.
    pub code: PageFaultCode,
    /// The level of the entry that ended the walk; the leaf's if rights did.
    pub level: Level,
}

/// Why a walk gave no translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkFailure {
    /// The guest gets #PF.
    #[error("page fault with error code {:#x} at level {}", .0.code.bits(), .0.level.get())]
    Fault(PageFault),
    /// The address is not canonical: the guest gets #GP or, for a stack access, #SS.
    #[error("address is not canonical")]
    NonCanonical,
    /// An entry lies outside guest memory; what the guest gets is up to the embedder.
    #[error("level {} entry at {gpa} is outside guest memory", .level.get())]
    MemoryMissing {
        /// The entry's address.
        gpa: Gpa,
        /// The entry's level.
        level: Level,
    },
    /// An entry changed, or its frame was being taken back, while the walk was under way: walk again.
    #[error("a guest table changed during the walk")]
    Retry,
}

/// Whether a walk stores A and D.
trait Marking {
    const STORES: bool;
}
/// A walk for an access that happens.
struct Store;
/// A walk that only asks.
struct Leave;
impl Marking for Store {
    const STORES: bool = true;
}
impl Marking for Leave {
    const STORES: bool = false;
}

/// A vCPU's paging state and the tables that follow from it.
#[derive(Clone, Debug)]
pub struct Walker {
    state: PagingState,
    decoder: Decoder,
    permissions: PermissionTable,
}

impl Walker {
    /// Makes the walker of a state.
    pub const fn new(state: PagingState) -> Self {
        let mode = state.mode();
        Self {
            state,
            decoder: Decoder::new(mode),
            permissions: PermissionTable::new(mode),
        }
    }
    /// Takes over a new state, deriving the tables anew only if the mode changed.
    pub fn set_state(&mut self, state: PagingState) {
        if self.state.mode() == state.mode() {
            self.state = state;
        } else {
            *self = Self::new(state);
        }
    }
    /// Takes over a new CR3 and the page-directory-pointer registers loaded with it, if the format has any.
    #[inline]
    pub const fn set_cr3(&mut self, cr3: Cr3, pdptes: Option<Pdptes>) {
        self.state.cr3 = cr3;
        self.state.pdptes = pdptes;
    }
    /// Takes over a new value of the protection-key register.
    #[inline]
    pub const fn set_pkru(&mut self, pkru: Pkru) {
        self.state.pkru = pkru;
    }
    /// Returns the state.
    #[inline]
    pub const fn state(&self) -> &PagingState {
        &self.state
    }
    /// Returns the reading of entries in the state's mode.
    #[inline]
    pub const fn decoder(&self) -> &Decoder {
        &self.decoder
    }
    /// Returns the judging of accesses in the state's mode.
    #[inline]
    pub const fn permissions(&self) -> &PermissionTable {
        &self.permissions
    }

    /// Translates `gva` for an access that happens, storing A and D.
    ///
    /// # Errors
    /// See [`WalkFailure`].
    #[inline]
    pub fn walk<M: GpteMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
    ) -> Result<Walk, WalkFailure> {
        let mut walk = Walk::new();
        self.walk_into(memory, gva, access, &mut walk)
            .map(|()| walk)
    }

    /// As [`Walker::walk`], into a record that also keeps the course of a walk that fails.
    ///
    /// # Errors
    /// See [`WalkFailure`].
    #[inline]
    pub fn walk_into<M: GpteMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        self.dispatch::<M, Store>(memory, gva, access, walk)
    }

    /// Translates as [`Walker::walk_into`] does without storing A and D: for looking at guest memory on the hypervisor's own behalf.
    ///
    /// # Errors
    /// See [`WalkFailure`].
    pub fn probe<M: GpteMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        self.dispatch::<M, Leave>(memory, gva, access, walk)
    }

    /// Runs the walk of the state's format.
    #[inline]
    fn dispatch<M: GpteMemory, S: Marking>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        if self.decoder.format() == GuestFormat::Level4 {
            self.descend::<Level4, M, S>(memory, gva, access, walk)
        } else {
            self.dispatch_others::<M, S>(memory, gva, access, walk)
        }
    }

    /// Runs the walk of the other formats, kept apart so that a caller does not carry all of them.
    #[inline(never)]
    fn dispatch_others<M: GpteMemory, S: Marking>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        match self.decoder.format() {
            GuestFormat::Off => {
                walk.pass_through(GuestFormat::Off.linear(gva.get()));
                Ok(())
            }
            GuestFormat::Bits32 => self.descend::<Bits32, M, S>(memory, gva, access, walk),
            GuestFormat::Pae => self.descend::<Pae, M, S>(memory, gva, access, walk),
            GuestFormat::Level4 => self.descend::<Level4, M, S>(memory, gva, access, walk),
            GuestFormat::Level5 => self.descend::<Level5, M, S>(memory, gva, access, walk),
        }
    }

    /// Reads entries from the root down to a leaf.
    fn descend<F: Format, M: GpteMemory, S: Marking>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        let linear = F::FORMAT.linear(gva.get());
        let mut table = self.state.cr3.root(F::FORMAT);
        walk.begin(F::FORMAT, linear, table);
        if !F::FORMAT.is_canonical(linear) {
            return Err(WalkFailure::NonCanonical);
        }
        let mut through = Through::NOTHING;
        for &level in F::FORMAT.levels() {
            let at = table.wrapping_add(F::FORMAT.entry_offset(level, linear));
            let gpte = match self.read::<F, M>(memory, level, at) {
                Ok(gpte) => gpte,
                Err(error) => return Err(unreachable_entry(error, level, at, walk)),
            };
            walk.gptes[level as usize - 1] = gpte;
            let gpte = if mutant!(WalkReadsTwice) {
                self.read::<F, M>(memory, level, at).unwrap_or(gpte)
            } else {
                gpte
            };
            if F::FORMAT.has_rights(level) {
                through = through.pass(gpte);
            }
            match self.decoder.step_in(F::FORMAT, level, gpte) {
                Step::Invalid => return Err(self.invalid(level, access, walk)),
                Step::Table => table = gpte.frame().address(),
                Step::Leaf => {
                    walk.reached = Some(level);
                    walk.gfn = F::FORMAT.leaf_frame(level, gpte, linear);
                    return self.arrive::<F, M, S>(memory, gpte, through, access, walk);
                }
            }
        }
        // Not reached: a valid entry of level 1 is a leaf in every format.
        Err(WalkFailure::Retry)
    }

    /// Reads the entry at `at`, or takes a page-directory pointer from its register.
    #[inline(always)]
    fn read<F: Format, M: GpteMemory>(
        &self,
        memory: &M,
        level: Level,
        at: Gpa,
    ) -> Result<Gpte, GpteError> {
        if !F::FORMAT.has_rights(level)
            && let Some(pdptes) = self.state.pdptes
        {
            return Ok(Gpte::new(pdptes.get()[(at.get() >> 3 & 3) as usize]));
        }
        let gpte = memory.read(at, F::FORMAT.width())?;
        Ok(match F::FORMAT.width() {
            GpteWidth::Bytes4 => Gpte::new(gpte.raw() & 0xffff_ffff),
            GpteWidth::Bytes8 => gpte,
        })
    }

    /// Judges the access at the leaf and stores A and D.
    #[inline(always)]
    fn arrive<F: Format, M: GpteMemory, S: Marking>(
        &self,
        memory: &M,
        leaf: Gpte,
        through: Through,
        access: Access,
        walk: &mut Walk,
    ) -> Result<(), WalkFailure> {
        walk.rights = through.rights();
        if !self
            .permissions
            .grants(walk.rights, leaf.protection_key(), self.state.pkru, access)
        {
            return Err(self.refused(leaf, access, walk));
        }
        if S::STORES && !(through.all_accessed() && (leaf.has(Gpte::DIRTY) || !access.is_write())) {
            return mark::<F, M>(memory, access, walk);
        }
        Ok(())
    }

    /// Tells how the page refuses the access.
    #[cold]
    fn refused(&self, leaf: Gpte, access: Access, walk: &Walk) -> WalkFailure {
        let code =
            self.permissions
                .refusal(walk.rights, leaf.protection_key(), self.state.pkru, access);
        WalkFailure::Fault(PageFault {
            code,
            level: walk.leaf_level(),
        })
    }

    /// Tells why the entry of `level` ends the walk.
    #[cold]
    fn invalid(&self, level: Level, access: Access, walk: &mut Walk) -> WalkFailure {
        walk.reached = Some(level);
        let code = self.permissions.code(access);
        let code = if walk.gptes[level as usize - 1].has(Gpte::PRESENT) {
            code | PageFaultCode::PRESENT | PageFaultCode::RESERVED
        } else {
            code
        };
        WalkFailure::Fault(PageFault { code, level })
    }
}

/// Stores the A bits that are missing on the way, and D in the leaf of a write.
#[cold]
fn mark<F: Format, M: GpteMemory>(
    memory: &M,
    access: Access,
    walk: &mut Walk,
) -> Result<(), WalkFailure> {
    let linear = walk.gva.get();
    let mut table = walk.root;
    for &level in F::FORMAT.levels() {
        let gpte = walk.gptes[level as usize - 1];
        let is_leaf = Some(level) == walk.reached;
        let wanted = if is_leaf && access.is_write() {
            Gpte::ACCESSED.with(Gpte::DIRTY)
        } else {
            Gpte::ACCESSED
        };
        if F::FORMAT.has_rights(level) && !gpte.has(wanted) {
            let at = table.wrapping_add(F::FORMAT.entry_offset(level, linear));
            let new = gpte.with(wanted);
            walk.first_use |= is_leaf && !gpte.has(Gpte::ACCESSED);
            match memory.compare_exchange(at, F::FORMAT.width(), gpte, new) {
                Ok(CasOutcome::Done) => walk.gptes[level as usize - 1] = new,
                Ok(CasOutcome::ReadOnly) => walk.undirtied |= is_leaf && access.is_write(),
                Ok(CasOutcome::Lost) => return Err(WalkFailure::Retry),
                Err(error) => return Err(unreachable_entry(error, level, at, walk)),
            }
        }
        if is_leaf {
            break;
        }
        table = gpte.frame().address();
    }
    Ok(())
}

/// Turns a failed reach for the entry of `level` into the walk's failure.
#[cold]
fn unreachable_entry(error: GpteError, level: Level, gpa: Gpa, walk: &mut Walk) -> WalkFailure {
    walk.reached = level.above();
    match error {
        GpteError::Missing => WalkFailure::MemoryMissing { gpa, level },
        GpteError::Busy => WalkFailure::Retry,
    }
}
