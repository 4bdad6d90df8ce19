//! An access that asks for a translation, and the error code that refuses it.
//!
//! [`Access`] packs what the permission rules ask of an access into four bits, in the order of #PF's error code,
//! [`PageFaultCode`]. It comes from an exit's error code ([`Access::from_page_fault`]) or from what an emulated instruction does
//! ([`Access::new`]).
//!
//! Invariants:
//! 1. An access is never both a write and a fetch, and a user access or a fetch never has SMAP suspended; so equal rules mean
//!    equal accesses.

use bitflags::bitflags;

use crate::paging::Rflags;

bitflags! {
    /// The error code of a page fault (AMD APM vol. 2, section 8.4.2; Intel SDM vol. 3, section 4.7).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PageFaultCode: u32 {
        /// P: the page was present and refused the access, or had a reserved bit set.
        const PRESENT = 1 << 0;
        /// W/R: a write.
        const WRITE = 1 << 1;
        /// U/S: a user-mode access.
        const USER = 1 << 2;
        /// RSVD: a reserved bit was set in a present entry.
        const RESERVED = 1 << 3;
        /// I/D: a fetch, reported if NX or SMEP is on.
        const FETCH = 1 << 4;
        /// PK: the page's protection key refused the access.
        const KEY = 1 << 5;
        /// SS: a shadow-stack access.
        const SHADOW_STACK = 1 << 6;
        const _ = !0;
    }
}

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessKind {
    /// Reads data.
    Read,
    /// Writes data, or reads it with the intent to write.
    Write,
    /// Fetches an instruction.
    Fetch,
}

/// Who executes: the current privilege level and EFLAGS.AC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Privilege {
    cpl: u8,
    rflags: Rflags,
}

impl Privilege {
    /// The most privileged level with AC clear.
    pub const KERNEL: Self = Self {
        cpl: 0,
        rflags: Rflags::empty(),
    };
    /// The least privileged level.
    pub const USER: Self = Self {
        cpl: 3,
        rflags: Rflags::empty(),
    };

    /// Makes a privilege from the low two bits of `cpl` and from `rflags`.
    #[inline]
    pub const fn new(cpl: u8, rflags: Rflags) -> Self {
        Self {
            cpl: cpl & 3,
            rflags,
        }
    }
    /// Tells whether accesses of an instruction are user-mode accesses: CPL is 3 (Intel SDM vol. 3, section 4.6).
    #[inline]
    pub const fn is_user(self) -> bool {
        self.cpl == 3
    }
    /// Tells whether explicit supervisor accesses pass SMAP (Intel SDM vol. 3, section 4.6.1): CPL below 3 and AC set.
    #[inline]
    const fn suspends_smap(self) -> bool {
        self.cpl < 3 && self.rflags.contains(Rflags::AC)
    }
}

/// An access as the permission rules see it.
///
/// The bits are those of the error code shifted right by one, with the place of RSVD taken over:
///
/// | bit | meaning | in the error code |
/// |---|---|---|
/// | 0 | write | W/R |
/// | 1 | user-mode access | U/S |
/// | 2 | SMAP is suspended: an explicit supervisor access with EFLAGS.AC set | no |
/// | 3 | fetch | I/D |
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Access(u8);

impl Access {
    /// A supervisor read under SMAP.
    pub const READ: Self = Self(0);
    /// A supervisor write under SMAP.
    pub const WRITE: Self = Self(1 << 0);
    /// A supervisor fetch.
    pub const FETCH: Self = Self(1 << 3);
    /// A user read.
    pub const USER_READ: Self = Self(Self::USER);
    /// A user write.
    pub const USER_WRITE: Self = Self(Self::USER | Self::WRITE.0);
    /// A user fetch.
    pub const USER_FETCH: Self = Self(Self::USER | Self::FETCH.0);

    const USER: u8 = 1 << 1;
    const NO_SMAP: u8 = 1 << 2;
    /// How many values [`Access::kind`] can have.
    pub(super) const KINDS: usize = 16;

    /// Makes the access that an instruction executed at `privilege` performs explicitly.
    #[inline]
    pub const fn new(kind: AccessKind, privilege: Privilege) -> Self {
        let access = Self::implicit(kind);
        if privilege.is_user() {
            Self(access.0 | Self::USER)
        } else {
            access.suspend_smap(privilege)
        }
    }

    /// Makes an implicit supervisor access: to a descriptor table, to a task-state segment, in the delivery of an event. It is a
    /// supervisor access at any CPL, and SMAP holds for it whatever AC is (Intel SDM vol. 3, section 4.6.1).
    #[inline]
    pub const fn implicit(kind: AccessKind) -> Self {
        match kind {
            AccessKind::Read => Self::READ,
            AccessKind::Write => Self::WRITE,
            AccessKind::Fetch => Self::FETCH,
        }
    }

    /// Makes the access that raised a page fault with `code` while the processor was at `privilege`.
    ///
    /// A fault without U/S at CPL 3 was an implicit supervisor access. One at a lower CPL counts as explicit: the code does not
    /// tell, and an implicit access with AC set needs a kernel that keeps a descriptor table in a user page. A fetch is taken as
    /// such only if the code says so, so the tables that the processor walks must have NX or SMEP on.
    #[inline]
    pub const fn from_page_fault(code: PageFaultCode, privilege: Privilege) -> Self {
        let access = if code.contains(PageFaultCode::FETCH) {
            Self::FETCH
        } else if code.contains(PageFaultCode::WRITE) {
            Self::WRITE
        } else {
            Self::READ
        };
        if code.contains(PageFaultCode::USER) {
            Self(access.0 | Self::USER)
        } else {
            access.suspend_smap(privilege)
        }
    }

    /// Returns a supervisor access with SMAP suspended if `privilege` does so and the access is one to data.
    const fn suspend_smap(self, privilege: Privilege) -> Self {
        if privilege.suspends_smap() && !self.is_fetch() {
            Self(self.0 | Self::NO_SMAP)
        } else {
            self
        }
    }

    /// Tells whether the access is a write.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & Self::WRITE.0 != 0
    }
    /// Tells whether the access is a user-mode access.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 & Self::USER != 0
    }
    /// Tells whether the access is a fetch.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        self.0 & Self::FETCH.0 != 0
    }
    /// Tells whether SMAP is suspended for the access.
    #[inline]
    pub const fn is_smap_suspended(self) -> bool {
        self.0 & Self::NO_SMAP != 0
    }
    /// Returns what the access does.
    #[inline]
    pub const fn access_kind(self) -> AccessKind {
        if self.is_fetch() {
            AccessKind::Fetch
        } else if self.is_write() {
            AccessKind::Write
        } else {
            AccessKind::Read
        }
    }

    /// Returns the access's bits of an error code, I/D included whether or not the mode reports it.
    #[inline]
    pub(super) const fn code(self) -> PageFaultCode {
        PageFaultCode::from_bits_truncate(((self.0 & !Self::NO_SMAP) as u32) << 1)
    }
    /// Returns the row of the access in a permission table.
    #[inline]
    pub(super) const fn kind(self) -> usize {
        (self.0 & 15) as usize
    }
    /// Returns the access of a row, some of which no constructor makes.
    pub(super) const fn of_kind(kind: usize) -> Self {
        Self(kind as u8 & 15)
    }
}

impl core::fmt::Debug for Access {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.is_user() {
            "user "
        } else {
            "supervisor "
        })?;
        f.write_str(match self.access_kind() {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Fetch => "fetch",
        })?;
        f.write_str(if self.is_smap_suspended() {
            " with AC"
        } else {
            ""
        })
    }
}
