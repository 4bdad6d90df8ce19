//! The permission rules, sentence by sentence (Intel SDM vol. 3, sections 4.6.1 and 4.6.2; AMD APM vol. 2, section 5.6).

use super::guest::{ALL, Memory, ROOT, bits32, cpu, fault, level4, walk};
use crate::paging::{
    Cr0, Cr4, Efer, GuestFormat, PagingMode, PagingRules, PagingState, Pkru, ProtectionKey, Rflags,
};
use crate::walk::{Access, AccessKind, PageFaultCode, PermissionTable, Privilege, Rights};

/// What a sentence asks of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    Nothing,
    Write,
    Execute,
    Refused,
}

/// The page that a sentence is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Supervisor,
    User,
}

/// A sentence of the manual: with these rules on and those off, this access to that page needs this.
type Sentence = (PagingRules, PagingRules, Access, Page, Needs);

const NONE: PagingRules = PagingRules::empty();
const NX: PagingRules = PagingRules::NX;
const WP: PagingRules = PagingRules::WP;
const SMEP: PagingRules = PagingRules::SMEP;
const SMAP: PagingRules = PagingRules::SMAP;
const WP_SMAP: PagingRules = WP.union(SMAP);
const NX_SMEP: PagingRules = NX.union(SMEP);

const AC: Privilege = Privilege::new(0, Rflags::AC);
const AC_READ: Access = Access::new(AccessKind::Read, AC);
const AC_WRITE: Access = Access::new(AccessKind::Write, AC);

/// Section 4.6.1 in its order.
const SENTENCES: [Sentence; 37] = [
    // Supervisor-mode data reads from supervisor-mode addresses: any.
    (NONE, NONE, Access::READ, Page::Supervisor, Needs::Nothing),
    (NONE, NONE, AC_READ, Page::Supervisor, Needs::Nothing),
    // ... from user-mode addresses: any if SMAP = 0; if SMAP = 1, any if AC = 1 and the access is explicit, else none.
    (NONE, SMAP, Access::READ, Page::User, Needs::Nothing),
    (NONE, SMAP, AC_READ, Page::User, Needs::Nothing),
    (SMAP, NONE, AC_READ, Page::User, Needs::Nothing),
    (SMAP, NONE, Access::READ, Page::User, Needs::Refused),
    // Supervisor-mode data writes to supervisor-mode addresses: any if WP = 0, else where R/W is 1.
    (NONE, WP, Access::WRITE, Page::Supervisor, Needs::Nothing),
    (NONE, WP, AC_WRITE, Page::Supervisor, Needs::Nothing),
    (WP, NONE, Access::WRITE, Page::Supervisor, Needs::Write),
    (WP, NONE, AC_WRITE, Page::Supervisor, Needs::Write),
    // ... to user-mode addresses, WP = 0: any if SMAP = 0 or if AC = 1 and the access is explicit, else none.
    (NONE, WP_SMAP, Access::WRITE, Page::User, Needs::Nothing),
    (NONE, WP_SMAP, AC_WRITE, Page::User, Needs::Nothing),
    (SMAP, WP, AC_WRITE, Page::User, Needs::Nothing),
    (SMAP, WP, Access::WRITE, Page::User, Needs::Refused),
    // ... WP = 1: the same, and R/W must be 1.
    (WP, SMAP, Access::WRITE, Page::User, Needs::Write),
    (WP, SMAP, AC_WRITE, Page::User, Needs::Write),
    (WP_SMAP, NONE, AC_WRITE, Page::User, Needs::Write),
    (WP_SMAP, NONE, Access::WRITE, Page::User, Needs::Refused),
    // Supervisor-mode fetches from supervisor-mode addresses: any without NXE, else where XD is 0.
    (NONE, NX, Access::FETCH, Page::Supervisor, Needs::Nothing),
    (NX, NONE, Access::FETCH, Page::Supervisor, Needs::Execute),
    // ... from user-mode addresses: none if SMEP = 1, else as above.
    (NONE, NX_SMEP, Access::FETCH, Page::User, Needs::Nothing),
    (NX, SMEP, Access::FETCH, Page::User, Needs::Execute),
    (SMEP, NX, Access::FETCH, Page::User, Needs::Refused),
    (NX_SMEP, NONE, Access::FETCH, Page::User, Needs::Refused),
    // User-mode data reads: any user-mode address, no supervisor-mode address.
    (NONE, NONE, Access::USER_READ, Page::User, Needs::Nothing),
    (
        NONE,
        NONE,
        Access::USER_READ,
        Page::Supervisor,
        Needs::Refused,
    ),
    // User-mode data writes: user-mode addresses where R/W is 1, whatever WP is.
    (NONE, WP, Access::USER_WRITE, Page::User, Needs::Write),
    (WP, NONE, Access::USER_WRITE, Page::User, Needs::Write),
    (
        NONE,
        NONE,
        Access::USER_WRITE,
        Page::Supervisor,
        Needs::Refused,
    ),
    // User-mode fetches: user-mode addresses, any without NXE, else where XD is 0; SMEP has no say.
    (
        NONE,
        NX_SMEP,
        Access::USER_FETCH,
        Page::User,
        Needs::Nothing,
    ),
    (SMEP, NX, Access::USER_FETCH, Page::User, Needs::Nothing),
    (NX, SMEP, Access::USER_FETCH, Page::User, Needs::Execute),
    (
        NX_SMEP,
        NONE,
        Access::USER_FETCH,
        Page::User,
        Needs::Execute,
    ),
    (
        NONE,
        NONE,
        Access::USER_FETCH,
        Page::Supervisor,
        Needs::Refused,
    ),
    // Implicit supervisor-mode accesses have AC ignored.
    (
        SMAP,
        NONE,
        Access::implicit(AccessKind::Read),
        Page::User,
        Needs::Refused,
    ),
    (
        SMAP,
        WP,
        Access::implicit(AccessKind::Write),
        Page::User,
        Needs::Refused,
    ),
    (
        WP_SMAP,
        NONE,
        Access::implicit(AccessKind::Write),
        Page::User,
        Needs::Refused,
    ),
];

/// Every access that the constructors make.
const ACCESSES: [Access; 8] = [
    Access::READ,
    Access::WRITE,
    Access::FETCH,
    AC_READ,
    AC_WRITE,
    Access::USER_READ,
    Access::USER_WRITE,
    Access::USER_FETCH,
];

fn every_rules() -> impl Iterator<Item = PagingRules> {
    (0..=PagingRules::all().bits()).map(PagingRules::from_bits_truncate)
}

fn every_rights() -> impl Iterator<Item = Rights> {
    (0..=Rights::all().bits()).map(Rights::from_bits_truncate)
}

fn table(rules: PagingRules) -> PermissionTable {
    PermissionTable::new(PagingMode::new(GuestFormat::Level4, rules, cpu()))
}

#[test]
fn the_table_says_what_the_sentences_say() {
    for rules in every_rules() {
        let table = table(rules);
        for access in ACCESSES {
            // Without NXE an entry with bit 63 set is reserved, so no page lacks X.
            for rights in every_rights()
                .filter(|rights| rules.contains(NX) || rights.contains(Rights::EXECUTE))
            {
                let page = if rights.contains(Rights::USER) {
                    Page::User
                } else {
                    Page::Supervisor
                };
                let applies = |&&(on, off, whose, about, _): &&Sentence| {
                    rules.contains(on) && !rules.intersects(off) && whose == access && about == page
                };
                let mut needs = SENTENCES.iter().filter(applies).map(|sentence| sentence.4);
                let need = needs
                    .next()
                    .unwrap_or_else(|| panic!("no sentence for {rules:?} {access:?} {page:?}"));
                assert!(
                    needs.all(|other| other == need),
                    "sentences disagree on {rules:?} {access:?} {page:?}"
                );
                let allowed = match need {
                    Needs::Nothing => true,
                    Needs::Write => rights.contains(Rights::WRITE),
                    Needs::Execute => rights.contains(Rights::EXECUTE),
                    Needs::Refused => false,
                };
                assert_eq!(
                    table.allows(rights, access),
                    allowed,
                    "{rules:?} {access:?} {rights:?}"
                );
            }
        }
    }
}

#[test]
fn protection_keys_stop_data_accesses_to_user_pages_only() {
    // Section 4.6.2: AD stops every data access, WD stops user writes and, if WP = 1, supervisor writes.
    let key = ProtectionKey::truncate(5);
    for (pkru, wp, access, allowed) in [
        (0b01, NONE, Access::READ, false),
        (0b01, NONE, Access::USER_WRITE, false),
        (0b01, NONE, Access::FETCH, true),
        (0b01, NONE, Access::USER_FETCH, true),
        (0b10, NONE, Access::USER_READ, true),
        (0b10, NONE, Access::USER_WRITE, false),
        (0b10, NONE, Access::WRITE, true),
        (0b10, WP, Access::WRITE, false),
        (0b10, WP, Access::READ, true),
        (0b00, WP, Access::USER_WRITE, true),
    ] {
        let pkru = Pkru::new(pkru << 10);
        let keys = table(wp | PagingRules::PKE);
        let user = Rights::all();
        assert_eq!(
            keys.key_allows(user, key, pkru, access),
            allowed,
            "{pkru:?} {wp:?} {access:?}"
        );
        assert!(keys.key_allows(user - Rights::USER, key, pkru, access));
        assert!(keys.key_allows(user, ProtectionKey::truncate(4), pkru, access));
        assert!(
            table(wp).key_allows(user, key, pkru, access),
            "PKE is clear"
        );
    }
}

/// Maps address 0 through `leaf`, by tables with every right.
fn mapped(leaf: u64) -> Memory {
    let memory = Memory::default();
    memory.put(ROOT, 0x2000 | ALL);
    memory.put(0x2000, 0x3000 | ALL);
    memory.put(0x3000, 0x4000 | ALL);
    memory.put(0x4000, leaf);
    memory
}

#[test]
fn a_refused_access_has_p_and_its_own_bits_in_the_code() {
    let read_only = mapped(0x5000 | ALL & !2);
    assert_eq!(
        fault(level4(), &read_only, 0, Access::USER_WRITE),
        (
            PageFaultCode::PRESENT | PageFaultCode::WRITE | PageFaultCode::USER,
            1
        )
    );
    assert_eq!(
        fault(level4(), &read_only, 0, Access::WRITE).0,
        PageFaultCode::PRESENT | PageFaultCode::WRITE
    );
    let supervisor = mapped(0x5000 | ALL & !4);
    assert_eq!(
        fault(level4(), &supervisor, 0, Access::USER_READ).0,
        PageFaultCode::PRESENT | PageFaultCode::USER
    );
    let smap = PagingState {
        cr4: level4().cr4 | Cr4::SMAP,
        ..level4()
    };
    let user = mapped(0x5000 | ALL);
    assert_eq!(
        fault(smap, &user, 0, Access::READ).0,
        PageFaultCode::PRESENT
    );
    assert!(walk(smap, &user, 0, AC_READ).is_ok());
}

#[test]
fn fetches_are_told_apart_only_under_nx_or_smep() {
    // Section 4.7, I/D: "the access was an instruction fetch and either CR4.SMEP = 1, or CR4.PAE = 1 and EFER.NXE = 1".
    let fetch = PageFaultCode::USER | PageFaultCode::FETCH;
    let memory = Memory::default();
    assert_eq!(fault(level4(), &memory, 0, Access::USER_FETCH).0, fetch);
    let no_nx = PagingState {
        efer: level4().efer - Efer::NXE,
        ..level4()
    };
    assert_eq!(
        fault(no_nx, &memory, 0, Access::USER_FETCH).0,
        PageFaultCode::USER
    );
    let smep = PagingState {
        cr4: no_nx.cr4 | Cr4::SMEP,
        ..no_nx
    };
    assert_eq!(fault(smep, &memory, 0, Access::USER_FETCH).0, fetch);
    let bits32_nxe = PagingState {
        efer: Efer::NXE,
        ..bits32()
    };
    assert_eq!(
        fault(bits32_nxe, &memory, 0, Access::USER_FETCH).0,
        PageFaultCode::USER
    );
    let bits32_smep = PagingState {
        cr4: bits32().cr4 | Cr4::SMEP,
        ..bits32()
    };
    assert_eq!(fault(bits32_smep, &memory, 0, Access::USER_FETCH).0, fetch);
}

#[test]
fn pk_is_reported_beside_other_refusals_but_never_for_a_missing_or_reserved_entry() {
    let keys = PagingState {
        cr4: level4().cr4 | Cr4::PKE,
        pkru: Pkru::new(0b01 << 6),
        ..level4()
    };
    let key3 = 3 << 59;
    let write = PageFaultCode::WRITE | PageFaultCode::USER;
    let both = PageFaultCode::PRESENT | PageFaultCode::KEY | write;
    assert_eq!(
        fault(keys, &mapped(0x5000 | ALL | key3), 0, Access::USER_WRITE).0,
        both
    );
    assert_eq!(
        fault(
            keys,
            &mapped(0x5000 | ALL & !2 | key3),
            0,
            Access::USER_WRITE
        )
        .0,
        both
    );
    assert_eq!(
        fault(
            keys,
            &mapped(0x5000 | ALL & !4 | key3),
            0,
            Access::USER_WRITE
        )
        .0,
        PageFaultCode::PRESENT | write
    );
    assert_eq!(
        fault(keys, &mapped(ALL & !1 | key3), 0, Access::USER_WRITE).0,
        write
    );
    let reserved = PageFaultCode::PRESENT | PageFaultCode::RESERVED | write;
    assert_eq!(
        fault(keys, &mapped(1 << 45 | ALL | key3), 0, Access::USER_WRITE).0,
        reserved
    );
    assert_eq!(
        walk(keys, &mapped(0x5000 | ALL | key3), 0, Access::USER_FETCH)
            .map(|walk| walk.gfn().get()),
        Ok(5)
    );
}

#[test]
fn cr0_wp_decides_over_supervisor_writes() {
    let memory = mapped(0x5000 | ALL & !2);
    let no_wp = PagingState {
        cr0: level4().cr0 - Cr0::WP,
        ..level4()
    };
    assert!(walk(no_wp, &memory, 0, Access::WRITE).is_ok());
    assert_eq!(
        fault(no_wp, &memory, 0, Access::USER_WRITE).0,
        PageFaultCode::PRESENT | PageFaultCode::WRITE | PageFaultCode::USER
    );
}

#[test]
fn an_access_is_read_from_a_fault_as_the_manual_tells() {
    let write = PageFaultCode::PRESENT | PageFaultCode::WRITE;
    assert_eq!(
        Access::from_page_fault(write, Privilege::KERNEL),
        Access::WRITE
    );
    assert_eq!(Access::from_page_fault(write, AC), AC_WRITE);
    // At CPL 3 an access without U/S is implicit, and AC is about alignment.
    assert_eq!(
        Access::from_page_fault(write, Privilege::new(3, Rflags::AC)),
        Access::WRITE
    );
    assert_eq!(
        Access::from_page_fault(write | PageFaultCode::USER, Privilege::new(3, Rflags::AC)),
        Access::USER_WRITE
    );
    assert_eq!(
        Access::from_page_fault(PageFaultCode::FETCH, AC),
        Access::FETCH
    );
    assert_eq!(
        Access::new(AccessKind::Read, Privilege::USER),
        Access::USER_READ
    );
    assert_eq!(
        Access::new(AccessKind::Write, Privilege::new(1, Rflags::AC)),
        AC_WRITE
    );
    assert_eq!(Access::new(AccessKind::Fetch, AC), Access::FETCH);
}
