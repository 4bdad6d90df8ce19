//! Which accesses a completed translation permits (SDM section 4.6, APM section 5.6).
//!
//! Key types: [`Rights`], accumulated along a walk; [`Denial`], the reasons against an access.
//!
//! Invariants
//! 1. Rights only narrow: R/W and U/S are the AND, XD the OR of all entries used (SDM section 4.6.1);
//!    the protection key is that of the entry that maps the page.
//! 2. Rights hold what the tables say, not what the control registers make of it: a TLB may keep them
//!    and [`Rights::denial`] judges them by the control state at the access (SDM section 4.10.2.2).

use bitflags::bitflags;

use crate::controls::{Cr0, Cr4};
use crate::format::EntryRights;
use crate::{Access, AccessSet, Controls, Mode, Pkru, Privilege, ProtectionKey};

bitflags! {
    /// The reasons why a translation does not permit an access; empty if it does.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Denial: u8 {
        /// User-mode access to a supervisor-mode address (APM section 5.6.2).
        const SUPERVISOR_PAGE = 1 << 0;
        /// Write to a read-only address, by the user or under CR0.WP (APM sections 5.6.3 and 5.6.4).
        const READ_ONLY = 1 << 1;
        /// Fetch from an execute-disabled address (APM section 5.6.1).
        const NO_EXECUTE = 1 << 2;
        /// Supervisor-mode fetch from a user-mode address under CR4.SMEP (APM section 5.6.5).
        const SMEP = 1 << 3;
        /// Supervisor-mode data access to a user-mode address under CR4.SMAP (APM section 5.6.6).
        const SMAP = 1 << 4;
        /// Data access that PKRU disables for the page's key (APM section 5.6.7).
        const PROTECTION_KEY = 1 << 5;
    }

    /// The rights that all entries of a walk grant together.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RightsFlags: u8 {
        /// R/W is 1 in every entry.
        const WRITABLE = 1 << 0;
        /// U/S is 1 in every entry: a user-mode address (SDM section 4.6).
        const USER = 1 << 1;
        /// XD is 0 in every entry.
        const EXECUTABLE = 1 << 2;
    }
}

/// The access rights of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    flags: RightsFlags,
    key: Option<ProtectionKey>,
}

impl Rights {
    /// What a walk starts with: nothing is denied yet.
    pub const FULL: Self = Self {
        flags: RightsFlags::all(),
        key: None,
    };

    /// Returns the combined R/W, U/S and XD flags.
    #[must_use]
    pub const fn flags(self) -> RightsFlags {
        self.flags
    }

    /// Returns the protection key; `None` in modes that have none.
    #[must_use]
    pub const fn key(self) -> Option<ProtectionKey> {
        self.key
    }

    /// Says whether the address is a user-mode address (SDM section 4.6).
    #[must_use]
    pub const fn is_user(self) -> bool {
        self.flags.contains(RightsFlags::USER)
    }

    /// Says whether every entry allows writes.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.flags.contains(RightsFlags::WRITABLE)
    }

    /// Says whether no entry forbids fetches.
    #[must_use]
    pub const fn is_executable(self) -> bool {
        self.flags.contains(RightsFlags::EXECUTABLE)
    }

    pub(crate) fn narrow(&mut self, entry: EntryRights) {
        self.flags &= flag(entry.writable, RightsFlags::WRITABLE)
            | flag(entry.user, RightsFlags::USER)
            | flag(entry.executable, RightsFlags::EXECUTABLE);
    }

    pub(crate) fn set_key(&mut self, key: Option<ProtectionKey>) {
        self.key = key;
    }

    /// Returns every reason against the access under the given control state.
    #[must_use]
    pub fn denial(self, controls: &Controls, access: Access) -> Denial {
        if controls.mode() == Mode::Off {
            // SDM section 4.1.1: without paging there are no access rights.
            return Denial::empty();
        }
        let by_mode = if access.is_user() {
            self.user_denial(access)
        } else {
            self.supervisor_denial(controls, access)
        };
        by_mode | self.key_denial(controls, access)
    }

    /// Returns the set of accesses that the translation permits under the given control state.
    #[must_use]
    pub fn permitted(self, controls: &Controls) -> AccessSet {
        Access::ALL
            .into_iter()
            .filter(|access| self.denial(controls, *access).is_empty())
            .collect()
    }

    /// SDM section 4.6.1, "for user-mode accesses"; also every access of a nested walk.
    pub(crate) fn user_denial(self, access: Access) -> Denial {
        deny(!self.is_user(), Denial::SUPERVISOR_PAGE)
            | deny(access.is_write() && !self.is_writable(), Denial::READ_ONLY)
            | deny(
                access.is_fetch() && !self.is_executable(),
                Denial::NO_EXECUTE,
            )
    }

    /// SDM section 4.6.1, "for supervisor-mode accesses".
    fn supervisor_denial(self, controls: &Controls, access: Access) -> Denial {
        let protects_writes = controls.cr0().contains(Cr0::WP);
        if access.is_fetch() {
            let smep = self.is_user() && controls.cr4().contains(Cr4::SMEP);
            return deny(!self.is_executable(), Denial::NO_EXECUTE) | deny(smep, Denial::SMEP);
        }
        let read_only = access.is_write() && !self.is_writable() && protects_writes;
        let smap = self.is_user()
            && controls.cr4().contains(Cr4::SMAP)
            && access.privilege() != Privilege::SupervisorAc;
        deny(read_only, Denial::READ_ONLY) | deny(smap, Denial::SMAP)
    }

    /// SDM section 4.6.2: keys govern data accesses to user-mode addresses, by whomever. WD binds the
    /// supervisor only under CR0.WP.
    fn key_denial(self, controls: &Controls, access: Access) -> Denial {
        let Some(key) = self.key else {
            return Denial::empty();
        };
        if !controls.cr4().contains(Cr4::PKE) || !self.is_user() || access.is_fetch() {
            return Denial::empty();
        }
        let pkru: Pkru = controls.pkru();
        let write_binds = access.is_user() || controls.cr0().contains(Cr0::WP);
        let denied = pkru.access_disabled(key)
            || (pkru.write_disabled(key) && access.is_write() && write_binds);
        deny(denied, Denial::PROTECTION_KEY)
    }
}

fn flag(set: bool, flag: RightsFlags) -> RightsFlags {
    if set { flag } else { RightsFlags::empty() }
}

fn deny(denied: bool, reason: Denial) -> Denial {
    if denied { reason } else { Denial::empty() }
}
