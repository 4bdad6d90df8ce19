//! A role: everything besides the gfn that decides a shadow page's content.
//!
//! Invariants:
//! 1. A role carries no state (rule R4): "dead" belongs to the page.
//! 2. Two shadow pages with equal gfn and role have equal content; so one of them suffices.
//! 3. A direct page is never found by a look-up for an indirect one, nor the other way round (scenario B2).

use crate::addr::Level;
use crate::paging::{PagingMode, PagingRules};
use crate::slots::AddressSpace;
use crate::walk::Rights;

/// What decides a shadow page's content besides its gfn, packed.
///
/// | bits | content |
/// |---|---|
/// | 0-2 | level of the table |
/// | 3 | direct: maps guest-physical memory linearly from its gfn on |
/// | 4-6 | rights inherited on the way to the table |
/// | 7 | address space |
/// | 8 | the root of PAE-format tables |
/// | 9-10 | quadrant: which part of a 32-bit guest table it stands for |
/// | 11 | direct, under CR0.WP = 0: what it splits was not dirty, so that nothing in it may be writable, not even for the kernel alone |
/// | 16-18 | guest format |
/// | 19-26 | paging rules: NX, CR0.WP, SMEP, SMAP, ... |
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Role(u32);

impl Role {
    const DIRECT: u32 = 1 << 3;
    const PAE_ROOT: u32 = 1 << 8;
    const CLEAN: u32 = 1 << 11;

    /// Makes the role of a page that stands for a guest table.
    pub(crate) fn indirect(
        mode: PagingMode,
        space: AddressSpace,
        level: Level,
        inherited: Rights,
    ) -> Self {
        Self(
            Self::mode_bits(mode)
                | (if mutant!(RoleWithoutSpace) {
                    0
                } else {
                    space as u32
                }) << 7
                | u32::from(inherited.bits()) << 4
                | u32::from(level.get()),
        )
    }

    /// Makes the role of a page that maps guest-physical memory linearly, with the rights of what it splits.
    pub(crate) fn direct(
        mode: PagingMode,
        space: AddressSpace,
        level: Level,
        rights: Rights,
    ) -> Self {
        Self(Self::indirect(mode, space, level, rights).0 | Self::DIRECT)
    }

    /// Makes the role of the four-entry root under which a guest without paging runs.
    pub(crate) fn pae_root(mode: PagingMode, space: AddressSpace) -> Self {
        Self(Self::direct(mode, space, Level::L3, Rights::all()).0 | Self::PAE_ROOT)
    }

    fn mode_bits(mode: PagingMode) -> u32 {
        if mutant!(RoleWithoutRules) {
            return (mode.format() as u32) << 16 | u32::from(PagingRules::NX.bits()) << 19;
        }
        (mode.format() as u32) << 16 | u32::from(mode.rules().bits()) << 19
    }

    /// Returns the role of the page below, for an entry that leads to a guest table with `inherited` rights.
    #[inline]
    pub(crate) fn child(self, level: Level, inherited: Rights, direct: bool) -> Self {
        let kept = self.0 & !0x7f & !Self::PAE_ROOT & !Self::CLEAN;
        let direct = if direct && !mutant!(RoleWithoutDirect) {
            Self::DIRECT
        } else {
            0
        };
        let inherited = if mutant!(RoleWithoutRights) {
            Rights::all()
        } else {
            inherited
        };
        Self(kept | direct | (inherited.bits() as u32) << 4 | level.get() as u32)
    }

    /// Returns the role of the page that splits a leaf, `rights` being what a shadow of it may allow.
    ///
    /// Under CR0.WP = 0 the kernel writes to what is read-only, and gets an entry for that once the leaf is dirty. Rights do not
    /// tell such a leaf from one that is read-only in the shadow because it is not dirty yet.
    #[inline]
    pub(crate) fn split(self, level: Level, rights: Rights, is_dirty: bool) -> Self {
        let role = self.child(level, rights, true);
        if is_dirty || self.rules().contains(PagingRules::WP) || mutant!(RoleWithoutDirty) {
            role
        } else {
            Self(role.0 | Self::CLEAN)
        }
    }

    /// Returns whether what a direct page splits was dirty, as far as that matters.
    pub(crate) const fn splits_dirty(self) -> bool {
        self.0 & Self::CLEAN == 0
    }

    #[inline]
    pub(crate) const fn level(self) -> Level {
        // A table look-up: the match that it stands for compiles to a chain of branches, in the hottest paths.
        const LEVELS: [Level; 8] = [
            Level::L5,
            Level::L1,
            Level::L2,
            Level::L3,
            Level::L4,
            Level::L5,
            Level::L5,
            Level::L5,
        ];
        LEVELS[(self.0 & 7) as usize]
    }
    #[inline]
    pub(crate) const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }
    #[inline]
    pub(crate) const fn is_pae_root(self) -> bool {
        self.0 & Self::PAE_ROOT != 0
    }
    #[inline]
    pub(crate) const fn rights(self) -> Rights {
        Rights::from_bits_truncate((self.0 >> 4) as u8 & 7)
    }
    /// Returns the paging rules that the page was made under.
    #[inline]
    pub(crate) const fn rules(self) -> PagingRules {
        PagingRules::from_bits_truncate((self.0 >> 19) as u8)
    }
    #[inline]
    pub(crate) const fn space(self) -> AddressSpace {
        if self.0 >> 7 & 1 == 0 {
            AddressSpace::Normal
        } else {
            AddressSpace::SystemManagement
        }
    }
    #[inline]
    pub(crate) const fn raw(self) -> u32 {
        self.0
    }
    #[inline]
    pub(crate) const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
}

impl core::fmt::Debug for Role {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{}{:?}",
            if self.is_direct() { "direct " } else { "" },
            self.level()
        )?;
        write!(f, " {:?} mode {:#x}", self.rights(), self.0 >> 16)
    }
}
