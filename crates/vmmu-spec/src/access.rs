//! The access that asks for a translation.
//!
//! Key types: [`Access`] = [`Kind`] x [`Privilege`], and [`AccessSet`], a set of them.
//!
//! Invariants
//! 1. There are [`Access::ALL`].len() == 12 different accesses, and an [`AccessSet`] holds any of them.

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A data read.
    Read,
    /// A data write, or the write half of a read-modify-write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// On whose behalf an access is made (SDM section 4.6: user-mode and supervisor-mode accesses).
///
/// EFLAGS.AC matters to explicit supervisor-mode data accesses only, so the other cases leave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL = 3, and not one of the implicit accesses below.
    User,
    /// CPL < 3 and EFLAGS.AC = 0.
    Supervisor,
    /// CPL < 3 and EFLAGS.AC = 1, which suspends SMAP.
    SupervisorAc,
    /// An access to a system structure (GDT, LDT, IDT, TSS; SDM section 4.6.1): a supervisor-mode access
    /// whatever the CPL, and never exempt from SMAP.
    Implicit,
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    kind: Kind,
    privilege: Privilege,
}

impl Access {
    /// Every access there is.
    pub const ALL: [Self; 12] = {
        const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Fetch];
        const PRIVILEGES: [Privilege; 4] = [
            Privilege::User,
            Privilege::Supervisor,
            Privilege::SupervisorAc,
            Privilege::Implicit,
        ];
        let mut all = [Self::new(Kind::Read, Privilege::User); 12];
        let mut i = 0;
        while i < all.len() {
            all[i] = Self::new(KINDS[i % 3], PRIVILEGES[i / 3]);
            i += 1;
        }
        all
    };

    /// Makes an access.
    #[must_use]
    pub const fn new(kind: Kind, privilege: Privilege) -> Self {
        Self { kind, privilege }
    }

    /// Returns what it does.
    #[must_use]
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// Returns on whose behalf it is made.
    #[must_use]
    pub const fn privilege(self) -> Privilege {
        self.privilege
    }

    /// Says whether this is a data write.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self.kind, Kind::Write)
    }

    /// Says whether this is an instruction fetch.
    #[must_use]
    pub const fn is_fetch(self) -> bool {
        matches!(self.kind, Kind::Fetch)
    }

    /// Says whether this is a user-mode access (SDM section 4.6).
    #[must_use]
    pub const fn is_user(self) -> bool {
        matches!(self.privilege, Privilege::User)
    }

    const fn bit(self) -> u16 {
        1 << (self.kind as u16 + 3 * self.privilege as u16)
    }
}

/// A set of accesses, such as those that a translation permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessSet(u16);

impl AccessSet {
    /// The set without members.
    pub const EMPTY: Self = Self(0);

    /// Adds an access.
    pub const fn insert(&mut self, access: Access) {
        self.0 |= access.bit();
    }

    /// Says whether the access is a member.
    #[must_use]
    pub const fn contains(self, access: Access) -> bool {
        self.0 & access.bit() != 0
    }

    /// Says whether every member of `self` is a member of `other`.
    #[must_use]
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Iterates over the members.
    pub fn iter(self) -> impl Iterator<Item = Access> {
        Access::ALL
            .into_iter()
            .filter(move |access| self.contains(*access))
    }
}

impl FromIterator<Access> for AccessSet {
    fn from_iter<I: IntoIterator<Item = Access>>(accesses: I) -> Self {
        let mut set = Self::EMPTY;
        for access in accesses {
            set.insert(access);
        }
        set
    }
}

#[cfg(test)]
mod sets {
    use super::{Access, AccessSet};

    #[test]
    fn each_access_has_a_bit_of_its_own() {
        let mut set = AccessSet::EMPTY;
        for access in Access::ALL {
            assert!(!set.contains(access), "{access:?} listed twice");
            set.insert(access);
        }
        assert_eq!(set.iter().count(), 12);
    }
}
