//! What an access wants, what a translation grants, and whether the one allows the other.
//!
//! Key types: [`Access`], [`Rights`], [`Permits`]. The check is made at use, with the registers of that
//! moment, also for rights that came from a cache: a processor caches what the tables say, not
//! what it once decided (Intel SDM vol. 3, 4.6 and 4.10.2.2).
//!
//! Invariants:
//! 1. [`Rights`] are the AND over the levels of a walk; nothing adds a right.

use bitflags::bitflags;

use crate::fault::PfCode;
use crate::regs::{Cr0, Cr4, Efer, Registers};

/// What is done at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A data read.
    Read,
    /// A data write, or a read-modify-write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// On whose behalf it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2, EFLAGS.AC = 0.
    Supervisor,
    /// CPL 0 to 2, EFLAGS.AC = 1: SMAP does not apply.
    SupervisorAc,
    /// A system data structure (descriptor tables, TSS) whatever the CPL: AC does not count.
    Implicit,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What is done.
    pub kind: Kind,
    /// On whose behalf.
    pub privilege: Privilege,
}

impl Access {
    /// Makes an access.
    #[must_use]
    pub const fn new(kind: Kind, privilege: Privilege) -> Self {
        Self { kind, privilege }
    }

    /// A supervisor's data read.
    pub const READ: Self = Self::new(Kind::Read, Privilege::Supervisor);
    /// A supervisor's data write.
    pub const WRITE: Self = Self::new(Kind::Write, Privilege::Supervisor);
    /// A supervisor's instruction fetch.
    pub const EXECUTE: Self = Self::new(Kind::Execute, Privilege::Supervisor);
    /// A user's data read.
    pub const USER_READ: Self = Self::new(Kind::Read, Privilege::User);
    /// A user's data write.
    pub const USER_WRITE: Self = Self::new(Kind::Write, Privilege::User);
    /// A user's instruction fetch.
    pub const USER_EXECUTE: Self = Self::new(Kind::Execute, Privilege::User);
}

bitflags! {
    /// What the entries of a walk allow together.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Rights: u8 {
        /// Data reads (only EPT can deny them by themselves).
        const READ = 1 << 0;
        /// Data writes.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXECUTE = 1 << 2;
        /// Use at CPL 3; without it a supervisor's page.
        const USER = 1 << 3;
    }
}

impl Rights {
    /// Says whether nested tables that grant these rights allow `kind`. Every access is a user
    /// access there (APM vol. 2, 15.25.5); EPT entries are always user entries.
    #[must_use]
    #[inline]
    pub fn allow_nested(self, kind: Kind) -> bool {
        let need = match kind {
            Kind::Read => Self::READ | Self::USER,
            Kind::Write => Self::WRITE | Self::USER,
            Kind::Execute => Self::EXECUTE | Self::USER,
        };
        self.contains(need)
    }
}

/// Accesses that a translation lets through, as bits: what a faster cache in front of a processor needs to know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Permits(u16);

impl Permits {
    const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Execute];
    const PRIVILEGES: [Privilege; 4] = [
        Privilege::User,
        Privilege::Supervisor,
        Privilege::SupervisorAc,
        Privilege::Implicit,
    ];

    const fn bit(access: Access) -> u16 {
        1 << (access.kind as u16 + 3 * access.privilege as u16)
    }

    pub(crate) fn filter(mut passes: impl FnMut(Access) -> bool) -> Self {
        let mut permits = Self::default();
        for kind in Self::KINDS {
            for privilege in Self::PRIVILEGES {
                let access = Access::new(kind, privilege);
                if passes(access) {
                    permits.0 |= Self::bit(access);
                }
            }
        }
        permits
    }

    /// Says whether `access` goes through.
    #[inline]
    #[must_use]
    pub const fn contains(self, access: Access) -> bool {
        self.0 & Self::bit(access) != 0
    }

    /// Returns one bit per access: kind (read, write, execute) + 3 * privilege (user, supervisor, supervisor with AC, implicit).
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// Checks an access to a page with these rights and protection key.
///
/// Returns the error code of the page fault if it is refused (Intel SDM vol. 3, 4.6.1, 4.6.2 and
/// 4.7; APM vol. 2, 5.6 and 8.4.2).
#[inline]
pub(crate) fn check(
    access: Access,
    rights: Rights,
    key: u8,
    regs: &Registers,
) -> Result<(), PfCode> {
    let user_page = rights.contains(Rights::USER);
    let user = access.privilege == Privilege::User;
    let write_ok = rights.contains(Rights::WRITE) || (!user && !regs.cr0.contains(Cr0::WP));
    let mode_ok = if user {
        user_page
    } else {
        let smap_held = regs.cr4.contains(Cr4::SMAP) && access.privilege != Privilege::SupervisorAc;
        match access.kind {
            Kind::Execute => !(user_page && regs.cr4.contains(Cr4::SMEP)),
            Kind::Read | Kind::Write => !(user_page && smap_held),
        }
    };
    let kind_ok = match access.kind {
        Kind::Read => rights.contains(Rights::READ),
        Kind::Write => write_ok,
        Kind::Execute => rights.contains(Rights::EXECUTE),
    };
    let key_ok = !user_page || key_allows(access, key, regs);
    if mode_ok && kind_ok && key_ok {
        return Ok(());
    }
    let mut code = request_code(access, regs) | PfCode::PRESENT;
    code.set(PfCode::PROTECTION_KEY, !key_ok);
    Err(code)
}

/// Says whether PKRU lets a data access to a user page pass (Intel SDM vol. 3, 4.6.2).
#[inline]
fn key_allows(access: Access, key: u8, regs: &Registers) -> bool {
    let on = regs.cr4.contains(Cr4::PKE) && regs.efer.contains(Efer::LME);
    if !on || access.kind == Kind::Execute {
        return true;
    }
    let user = access.privilege == Privilege::User;
    let held_write = access.kind == Kind::Write && (user || regs.cr0.contains(Cr0::WP));
    !(regs.pkru.access_disabled(key) || (held_write && regs.pkru.write_disabled(key)))
}

/// Returns the error-code bits that say what was attempted, whatever the cause of the fault.
pub(crate) fn request_code(access: Access, regs: &Registers) -> PfCode {
    let mut code = PfCode::empty();
    code.set(PfCode::WRITE, access.kind == Kind::Write);
    code.set(PfCode::USER, access.privilege == Privilege::User);
    let nx = regs.cr4.contains(Cr4::PAE) && regs.efer.contains(Efer::NXE);
    let fetch_told = nx || regs.cr4.contains(Cr4::SMEP);
    code.set(PfCode::FETCH, access.kind == Kind::Execute && fetch_told);
    code
}
