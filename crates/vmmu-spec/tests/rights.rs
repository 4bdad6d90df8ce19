//! Access rights (SDM section 4.6, APM section 5.6) and error codes (SDM section 4.7), row by row.

mod common;

use common::{
    A, D, G, NX, P, PS, ROOT, Tables, U, W, code, four_level, kernel, legacy, long, physical, user,
    usual, walk,
};
use vmmu_spec::{
    Access, Cause, Controls, Cr0, Cr4, Denial, Efer, Kind, Outcome, Pkru, Privilege, translate,
};

const T2: u64 = 0x2000;
const T3: u64 = 0x3000;
const T4: u64 = 0x4000;
const FULL: u64 = P | W | U;
const WP: Cr0 = Cr0::WP;
const NO_WP: Cr0 = Cr0::empty();

/// Four levels that map linear address 0 by a PTE with the given flags.
fn page(flags: u64) -> Tables {
    Tables::new(&[
        (ROOT, T2 | FULL),
        (T2, T3 | FULL),
        (T3, T4 | FULL),
        (T4, 0x7000 | flags),
    ])
}

fn controls(wp: Cr0, cr4: Cr4, efer: Efer) -> Controls {
    let efer = efer | Efer::LME | Efer::LMA;
    Controls::new(usual(), Cr0::PE | Cr0::PG | wp, cr4 | Cr4::PAE, efer).unwrap()
}

/// Which of read, write and fetch are permitted, as `rwx` with dashes.
fn permitted(controls: &Controls, tables: &Tables, privilege: Privilege) -> String {
    let letter = |kind, letter| {
        let outcome = walk(controls, 0, Access::new(kind, privilege), tables);
        if outcome.translation().is_some() {
            letter
        } else {
            '-'
        }
    };
    [
        letter(Kind::Read, 'r'),
        letter(Kind::Write, 'w'),
        letter(Kind::Fetch, 'x'),
    ]
    .iter()
    .collect()
}

const NONE: Cr4 = Cr4::empty();
const SMEP: Cr4 = Cr4::SMEP;
const SMAP: Cr4 = Cr4::SMAP;

/// (flags of the PTE, CR0.WP, CR4) -> rights of user, supervisor, supervisor with AC, implicit.
type Row = (u64, Cr0, Cr4, [&'static str; 4]);

/// SDM section 4.6.1, each sentence of it, with EFER.NXE = 1.
const ROWS: &[Row] = &[
    // Supervisor-mode addresses: no user access; SMEP and SMAP don't matter.
    (P | W, WP, NONE, ["---", "rwx", "rwx", "rwx"]),
    (P | W, WP, SMEP.union(SMAP), ["---", "rwx", "rwx", "rwx"]),
    (P, WP, NONE, ["---", "r-x", "r-x", "r-x"]),
    (P, NO_WP, NONE, ["---", "rwx", "rwx", "rwx"]),
    (P | W | NX, WP, SMEP, ["---", "rw-", "rw-", "rw-"]),
    (P | NX, NO_WP, NONE, ["---", "rw-", "rw-", "rw-"]),
    // User-mode addresses without SMEP and SMAP.
    (P | W | U, WP, NONE, ["rwx", "rwx", "rwx", "rwx"]),
    (P | U, WP, NONE, ["r-x", "r-x", "r-x", "r-x"]),
    // CR0.WP = 0 frees the supervisor alone.
    (P | U, NO_WP, NONE, ["r-x", "rwx", "rwx", "rwx"]),
    (P | U | NX, NO_WP, NONE, ["r--", "rw-", "rw-", "rw-"]),
    (P | W | U | NX, WP, NONE, ["rw-", "rw-", "rw-", "rw-"]),
    // SMEP: no supervisor fetch from user-mode addresses; data is untouched, AC has no say.
    (P | W | U, WP, SMEP, ["rwx", "rw-", "rw-", "rw-"]),
    (P | U, NO_WP, SMEP, ["r-x", "rw-", "rw-", "rw-"]),
    // SMAP: no supervisor data access, unless explicit with AC = 1; fetches are untouched.
    (P | W | U, WP, SMAP, ["rwx", "--x", "rwx", "--x"]),
    (P | U, WP, SMAP, ["r-x", "--x", "r-x", "--x"]),
    // SMAP binds with CR0.WP = 0 too.
    (P | U, NO_WP, SMAP, ["r-x", "--x", "rwx", "--x"]),
    (
        P | W | U,
        WP,
        SMEP.union(SMAP),
        ["rwx", "---", "rw-", "---"],
    ),
    (
        P | U | NX,
        NO_WP,
        SMEP.union(SMAP),
        ["r--", "---", "rw-", "---"],
    ),
];

const PRIVILEGES: [Privilege; 4] = [
    Privilege::User,
    Privilege::Supervisor,
    Privilege::SupervisorAc,
    Privilege::Implicit,
];

#[test]
fn rights_are_those_of_section_4_6_1() {
    for (flags, wp, cr4, expected) in ROWS {
        let controls = controls(*wp, *cr4, Efer::NXE);
        for (privilege, rights) in PRIVILEGES.into_iter().zip(expected) {
            let got = permitted(&controls, &page(*flags), privilege);
            assert_eq!(got, *rights, "{flags:x} {wp:?} {cr4:?} {privilege:?}");
        }
    }
}

/// The same rows in 32-bit paging (no XD) and PAE paging (PDPTE without rights).
#[test]
fn rights_are_the_same_in_legacy_modes() {
    for (flags, wp, cr4, expected) in ROWS {
        let pde = T3 | FULL;
        let pae = Tables::new(&[(ROOT, T2 | P), (T2, pde), (T3, 0x7000 | flags)]);
        let bits32 = Tables::new(&[(ROOT, pde), (T3, 0x7000 | flags & 0xfff)]);
        let cr0 = Cr0::PE | Cr0::PG | *wp;
        let pae_controls = Controls::new(usual(), cr0, *cr4 | Cr4::PAE, Efer::NXE).unwrap();
        let bits32_controls = Controls::new(usual(), cr0, *cr4, Efer::NXE).unwrap();
        for (privilege, rights) in PRIVILEGES.into_iter().zip(expected) {
            let got = permitted(&pae_controls, &pae, privilege);
            assert_eq!(got, *rights, "PAE {flags:x} {wp:?} {cr4:?} {privilege:?}");
            if flags & NX == 0 {
                let got = permitted(&bits32_controls, &bits32, privilege);
                assert_eq!(
                    got, *rights,
                    "32-bit {flags:x} {wp:?} {cr4:?} {privilege:?}"
                );
            }
        }
    }
}

/// SDM section 4.6.1: R/W and U/S count in every entry, XD in any.
#[test]
fn one_entry_suffices_to_take_a_right_away() {
    let full = page(FULL);
    for at in [ROOT, T2, T3, T4] {
        for (clear, set, rights) in [(W, 0, "r-x"), (U, 0, "---"), (0, NX, "rw-")] {
            let mut tables = full.clone();
            let entry = tables.0.get_mut(&at).unwrap();
            *entry = *entry & !clear | set;
            let got = permitted(&four_level(), &tables, Privilege::User);
            assert_eq!(
                got, rights,
                "entry at {at:x} without {clear:x} with {set:x}"
            );
        }
    }
}

/// (PTE flags, CR0.WP, PKRU rights of key 5: AD = 1, WD = 2) -> rights of user, supervisor.
const KEY_ROWS: &[(u64, Cr0, u32, [&str; 2])] = &[
    (FULL, WP, 0, ["rwx", "rwx"]),
    // AD: no data access by anyone; fetches are free.
    (FULL, WP, 1, ["--x", "--x"]),
    (FULL, NO_WP, 1, ["--x", "--x"]),
    (FULL, WP, 3, ["--x", "--x"]),
    // WD: no write by the user, nor by the supervisor under CR0.WP.
    (FULL, WP, 2, ["r-x", "r-x"]),
    (FULL, NO_WP, 2, ["r-x", "rwx"]),
    // Supervisor-mode addresses have no key.
    (P | W, WP, 3, ["---", "rwx"]),
];

/// SDM section 4.6.2.
#[test]
fn protection_keys_govern_data_accesses_to_user_pages() {
    for (flags, wp, disable, expected) in KEY_ROWS {
        let tables = page(flags | 5 << 59);
        let controls = controls(*wp, Cr4::PKE, Efer::NXE).with_pkru(Pkru::new(disable << 10));
        for (privilege, rights) in [Privilege::User, Privilege::Supervisor]
            .iter()
            .zip(expected)
        {
            let got = permitted(&controls, &tables, *privilege);
            assert_eq!(got, *rights, "{flags:x} {wp:?} {disable} {privilege:?}");
        }
    }
}

#[test]
fn protection_keys_need_cr4_pke_long_mode_and_the_matching_key() {
    let pkru = Pkru::new(3 << 10);
    let off = controls(WP, NONE, Efer::NXE).with_pkru(pkru);
    assert_eq!(
        permitted(&off, &page(FULL | 5 << 59), Privilege::User),
        "rwx"
    );
    let on = controls(WP, Cr4::PKE, Efer::NXE).with_pkru(pkru);
    assert_eq!(
        permitted(&on, &page(FULL | 4 << 59), Privilege::User),
        "rwx"
    );
    let tables = Tables::new(&[(ROOT, T2 | FULL), (T2, 0x7000 | FULL)]);
    let bits32 = legacy(Cr4::PKE).with_pkru(Pkru::new(u32::MAX));
    assert_eq!(permitted(&bits32, &tables, Privilege::User), "rwx");
}

/// SDM section 4.6.2: the key is in the entry that maps the page, at whatever level; those above have none.
#[test]
fn the_key_is_that_of_the_entry_that_maps_the_page() {
    let pkru = Pkru::new(3 << 10);
    let on = controls(WP, Cr4::PKE, Efer::NXE).with_pkru(pkru);
    let key = 5 << 59;
    let large = Tables::new(&[(ROOT, T2 | FULL), (T2, 0x4000_0000 | FULL | PS | key)]);
    assert_eq!(permitted(&on, &large, Privilege::User), "--x");
    let mut upper = page(FULL);
    for at in [ROOT, T2, T3] {
        *upper.0.get_mut(&at).unwrap() |= key;
    }
    assert_eq!(permitted(&on, &upper, Privilege::User), "rwx");
}

#[test]
fn the_set_of_permitted_accesses_agrees_with_each_translation() {
    for (flags, wp, cr4, _) in ROWS {
        let controls = controls(*wp, *cr4 | Cr4::PKE, Efer::NXE).with_pkru(Pkru::new(0b1011 << 8));
        for key in 3..7 {
            let tables = page(flags | key << 59);
            let mut rights = None;
            for access in Access::ALL {
                if let Outcome::Translation(translation) = walk(&controls, 0, access, &tables) {
                    rights = Some(translation.mapping().rights);
                }
            }
            let Some(rights) = rights else { continue };
            for access in Access::ALL {
                let alone = walk(&controls, 0, access, &tables).translation().is_some();
                assert_eq!(
                    rights.permitted(&controls).contains(access),
                    alone,
                    "{access:?}"
                );
            }
        }
    }
}

const EP: u32 = 1;
const EW: u32 = 2;
const EU: u32 = 4;
const ER: u32 = 8;
const EI: u32 = 16;
const EK: u32 = 32;

/// SDM section 4.7: (PTE, access, error code) under NXE, WP, SMEP, SMAP and PKE with key 5 disabled.
#[test]
fn error_codes_are_those_of_section_4_7() {
    let all = Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
    let controls = controls(WP, all, Efer::NXE).with_pkru(Pkru::new(3 << 10));
    let (read, write, fetch) = (Kind::Read, Kind::Write, Kind::Fetch);
    let key = 5 << 59;
    let rows = [
        // Not present: P is 0 and nothing of the entry counts.
        (0, user(read), EU),
        (0, user(write), EW | EU),
        (0, kernel(write), EW),
        (0, user(fetch), EU | EI),
        (!P, kernel(fetch), EI),
        // Reserved bits: P and RSVD, never PK.
        (P | 1 << 45 | U | key, user(write), EP | ER | EW | EU),
        (P | 1 << 45, kernel(fetch), EP | ER | EI),
        // Rights.
        (P | W, user(read), EP | EU),
        (P | U, user(write), EP | EU | EW),
        (P, kernel(write), EP | EW),
        (P | NX, kernel(fetch), EP | EI),
        (P | U | NX, user(fetch), EP | EU | EI),
        // SMEP and SMAP have no bits of their own.
        (P | U, kernel(fetch), EP | EI),
        (P | U, kernel(read), EP),
        (P | U | W, kernel(write), EP | EW),
        // PK is set whenever the key disallows the access, also when something else does.
        (P | U | W | key, user(read), EP | EU | EK),
        (P | U | key, user(write), EP | EU | EW | EK),
        (P | U | key, kernel(read), EP | EK),
        // ... but not for fetches, nor for supervisor-mode addresses.
        (P | U | NX | key, user(fetch), EP | EU | EI),
        (P | W | key, user(write), EP | EU | EW),
    ];
    for (pte, access, expected) in rows {
        let mut tables = page(0);
        tables.0.insert(T4, pte);
        let outcome = walk(&controls, 0, access, &tables);
        assert_eq!(
            code(&outcome),
            Some(expected),
            "{pte:x} {access:?} {outcome:?}"
        );
    }
}

/// SDM section 4.7: an implicit access is a supervisor-mode access at CPL 3 too.
#[test]
fn implicit_accesses_report_supervisor_mode() {
    let access = Access::new(Kind::Read, Privilege::Implicit);
    assert_eq!(code(&walk(&four_level(), 0, access, &page(0))), Some(0));
}

/// SDM section 4.7: I/D needs CR4.SMEP, or CR4.PAE with EFER.NXE.
#[test]
fn fetches_are_reported_under_smep_or_under_pae_with_nxe() {
    let empty = Tables::default();
    let fetch = kernel(Kind::Fetch);
    let bits32 = |cr4, efer| common::paged(usual(), cr4, efer);
    let rows = [
        (bits32(NONE, Efer::empty()), 0),
        (bits32(NONE, Efer::NXE), 0),
        (bits32(SMEP, Efer::empty()), EI),
        (bits32(Cr4::PAE, Efer::empty()), 0),
        (bits32(Cr4::PAE, Efer::NXE), EI),
        (long(NONE, Efer::empty()), 0),
        (long(SMEP, Efer::empty()), EI),
        (long(NONE, Efer::NXE), EI),
    ];
    for (controls, expected) in rows {
        assert_eq!(
            code(&walk(&controls, 0, fetch, &empty)),
            Some(expected),
            "{controls:?}"
        );
    }
}

#[test]
fn a_denial_names_every_reason() {
    let controls = controls(WP, SMEP | SMAP, Efer::NXE);
    let outcome = walk(&controls, 0, kernel(Kind::Write), &page(P | U));
    let fault = outcome.page_fault().unwrap();
    assert_eq!(
        fault.cause(),
        Cause::Denied(Denial::READ_ONLY | Denial::SMAP)
    );
}

/// SDM section 4.8: A in every entry used, D where the page is mapped and on writes only; top down.
#[test]
fn accessed_and_dirty_bits_are_set_where_they_are_clear() {
    let updates = |outcome: &Outcome| -> Vec<_> {
        let translation = outcome.translation().unwrap();
        translation
            .updates()
            .map(|u| (u.slot.at.get(), u.set))
            .collect()
    };
    // D of an entry that references a table is ignored, so it is not set.
    let write = walk(&four_level(), 0, user(Kind::Write), &page(FULL));
    assert_eq!(updates(&write), [(ROOT, A), (T2, A), (T3, A), (T4, A | D)]);
    let read = walk(&four_level(), 0, user(Kind::Read), &page(FULL | A));
    assert_eq!(updates(&read), [(ROOT, A), (T2, A), (T3, A)]);
    let again = walk(&four_level(), 0, user(Kind::Write), &page(FULL | A));
    assert_eq!(updates(&again).last(), Some(&(T4, D)));
    // A supervisor write under WP = 0 to a read-only page makes it dirty too.
    let free = controls(NO_WP, NONE, Efer::NXE);
    let outcome = walk(&free, 0, kernel(Kind::Write), &page(P | U | A | G));
    assert_eq!(updates(&outcome).last(), Some(&(T4, D)));
    let large = Tables::new(&[(ROOT, T2 | FULL | A), (T2, 0x4000_0000 | FULL | PS)]);
    let outcome = walk(&four_level(), 0, user(Kind::Write), &large);
    assert_eq!(updates(&outcome), [(T2, A | D)]);
    let off = Controls::new(usual(), Cr0::PE, NONE, Efer::empty()).unwrap();
    assert_eq!(updates(&walk(&off, 0, user(Kind::Write), &page(FULL))), []);
}

/// SDM sections 4.8 and 6.15: a fault may leave A in the entries used, never D, and nothing in the entry that stopped it.
#[test]
fn a_fault_permits_accessed_bits_in_the_valid_entries() {
    let permitted = |outcome: &Outcome| -> Vec<_> {
        let fault = outcome.page_fault().unwrap();
        fault
            .permitted_updates()
            .map(|u| (u.slot.at.get(), u.set))
            .collect()
    };
    let absent = walk(&four_level(), 0, user(Kind::Write), &page(0));
    assert_eq!(permitted(&absent), [(ROOT, A), (T2, A), (T3, A)]);
    let reserved = walk(&four_level(), 0, user(Kind::Write), &page(P | 1 << 45));
    assert_eq!(permitted(&reserved), [(ROOT, A), (T2, A), (T3, A)]);
    let denied = walk(&four_level(), 0, user(Kind::Write), &page(P | U));
    assert_eq!(permitted(&denied), [(ROOT, A), (T2, A), (T3, A), (T4, A)]);
}

/// SDM section 4.5: CR3 holds no rights, and its low bits are PWT, PCD or a PCID.
#[test]
fn the_low_bits_of_cr3_are_not_an_address() {
    let root = vmmu_spec::Cr3::new(ROOT | 0xfff);
    let linear = vmmu_spec::Linear::new(0);
    let outcome = translate(&four_level(), root, linear, user(Kind::Read), &page(FULL));
    assert_eq!(physical(&outcome), Some(0x7000));
}
