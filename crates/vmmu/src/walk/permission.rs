//! Which accesses which rights allow, as a table.
//!
//! [`PermissionTable`] has one row per kind of [`Access`]; a row is a bitmap of the eight combinations of [`Rights`] that fault,
//! and beside it the PKRU bits that such an access must find clear. A row is looked up with one load; the rules that the rows are
//! made of are in [`PermissionTable::new`] and nowhere else.
//!
//! Invariants:
//! 1. A table depends on a [`PagingMode`] alone.

use bitflags::bitflags;

use super::access::{Access, PageFaultCode};
use crate::paging::{GuestFormat, PagingMode, PagingRules, Pkru, ProtectionKey};

bitflags! {
    /// What the guest's entries allow, taken together along the way to a page.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rights: u8 {
        /// R/W is set in all entries.
        const WRITE = 1 << 0;
        /// U/S is set in all entries: a user page.
        const USER = 1 << 1;
        /// NX is set in none of the entries.
        const EXECUTE = 1 << 2;
    }
}

/// The combinations of rights without W, one bit each at the combination's number.
const WITHOUT_WRITE: u16 = 0b0101_0101;
/// The combinations of rights without U.
const WITHOUT_USER: u16 = 0b0011_0011;
/// The combinations of rights with U.
const WITH_USER: u16 = 0b1100_1100;
/// The combinations of rights without X.
const WITHOUT_EXECUTE: u16 = 0b0000_1111;
/// AD must be clear in PKRU for a user page's key.
const KEY_ACCESS: u16 = 1 << 8;
/// WD must be clear in PKRU for a user page's key.
const KEY_WRITE: u16 = 1 << 9;

/// For each kind of access the rights that refuse it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PermissionTable {
    rows: [u16; Access::KINDS],
    reported: PageFaultCode,
}

impl PermissionTable {
    /// Makes the table of a mode.
    pub const fn new(mode: PagingMode) -> Self {
        let mut rows = [0; Access::KINDS];
        let mut kind = 0;
        // Without paging the rows stay empty: nothing is refused.
        while kind < Access::KINDS && !matches!(mode.format(), GuestFormat::Off) {
            rows[kind] = row(mode.rules(), Access::of_kind(kind));
            kind += 1;
        }
        // I/D is reported only if fetches can be told apart: NX or SMEP is on (Intel SDM vol. 3, section 4.7; AMD APM vol. 2, section 8.4.2).
        let reported = if mode
            .rules()
            .intersects(PagingRules::NX.union(PagingRules::SMEP))
        {
            PageFaultCode::WRITE
                .union(PageFaultCode::USER)
                .union(PageFaultCode::FETCH)
        } else {
            PageFaultCode::WRITE.union(PageFaultCode::USER)
        };
        Self { rows, reported }
    }

    /// Tells whether `rights` allow `access`, protection keys apart.
    #[inline]
    pub const fn allows(&self, rights: Rights, access: Access) -> bool {
        self.rows[access.kind()] >> rights.bits() & 1 == 0
    }

    /// Tells whether `key` under `pkru` allows `access` to a page with `rights` (Intel SDM vol. 3, section 4.6.2).
    #[inline]
    pub const fn key_allows(
        &self,
        rights: Rights,
        key: ProtectionKey,
        pkru: Pkru,
        access: Access,
    ) -> bool {
        let wanted = (self.rows[access.kind()] >> 8) as u32;
        wanted == 0 || !rights.contains(Rights::USER) || pkru.rights_of(key) & wanted == 0
    }

    /// Tells whether `rights` and `key` under `pkru` allow `access`.
    #[inline]
    pub const fn grants(
        &self,
        rights: Rights,
        key: ProtectionKey,
        pkru: Pkru,
        access: Access,
    ) -> bool {
        self.allows(rights, access) && self.key_allows(rights, key, pkru, access)
    }

    /// Returns the error code with which a present page refuses `access`; the page is known to refuse it.
    ///
    /// PK is reported whenever the key refuses, also when the rights refuse as well (Intel SDM vol. 3, section 4.7).
    pub const fn refusal(
        &self,
        rights: Rights,
        key: ProtectionKey,
        pkru: Pkru,
        access: Access,
    ) -> PageFaultCode {
        let code = self.code(access).union(PageFaultCode::PRESENT);
        if self.key_allows(rights, key, pkru, access) {
            code
        } else {
            code.union(PageFaultCode::KEY)
        }
    }

    /// Returns the W, U and I bits that an error code has for `access`, whatever went wrong.
    #[inline]
    pub const fn code(&self, access: Access) -> PageFaultCode {
        access.code().intersection(self.reported)
    }
}

/// Returns the row of one kind of access: Intel SDM vol. 3, sections 4.6.1 and 4.6.2; AMD APM vol. 2, section 5.6.
const fn row(rules: PagingRules, access: Access) -> u16 {
    let user = access.is_user();
    let obeys_write = access.is_write() && (user || rules.contains(PagingRules::WP));
    let mut row = 0;
    if user {
        row |= WITHOUT_USER;
    }
    if obeys_write {
        row |= WITHOUT_WRITE;
    }
    if access.is_fetch() {
        // Without NX enabled bit 63 is reserved, so no entry that gets this far lacks X.
        row |= WITHOUT_EXECUTE;
        if !user && rules.contains(PagingRules::SMEP) {
            row |= WITH_USER;
        }
        return row;
    }
    if !user && rules.contains(PagingRules::SMAP) && !access.is_smap_suspended() {
        row |= WITH_USER;
    }
    if rules.contains(PagingRules::PKE) {
        row |= KEY_ACCESS;
        if obeys_write {
            row |= KEY_WRITE;
        }
    }
    row
}
