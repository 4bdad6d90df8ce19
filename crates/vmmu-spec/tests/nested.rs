//! Nested tables in both formats, and two dimensions together.

mod common;

use common::{A, D, NX, P, PS, ROOT, Tables, U, W, four_level, kernel, legacy, long, user, usual};
use vmmu_spec::{
    Access, Controls, Cr0, Cr3, Cr4, Efer, EptAccess, EptControls, EptFeatures, EptOutcome,
    EptQualification as Q, Eptp, GuestPhysical, Kind, Linear, NestedAccess, NestedControls,
    NestedErrorCode as N, NestedOutcome, Outcome, PageSize, PhysBits, TwoDimensional,
    TwoDimensionalOutcome, translate_ept, translate_nested, translate_two_dimensional,
};

const T2: u64 = 0x2000;
const T3: u64 = 0x3000;
const T4: u64 = 0x4000;
const FULL: u64 = P | W | U;

fn host(cr4: Cr4) -> NestedControls {
    NestedControls::new(long(cr4, Efer::NXE)).unwrap()
}

/// Maps the first 2 MiB page by page to `HPA = GPA + OFFSET`, except the frames given.
const OFFSET: u64 = 0x100_0000;

fn nested(special: &[(u64, u64)]) -> Tables {
    let mut tables = Tables::new(&[(ROOT, T2 | FULL), (T2, T3 | FULL), (T3, T4 | FULL)]);
    for frame in 0..512 {
        tables.0.insert(T4 + 8 * frame, frame << 12 | OFFSET | FULL);
    }
    for (gpa, pte) in special {
        tables.0.insert(T4 + 8 * (gpa >> 12), *pte);
    }
    tables
}

fn fault(tables: &Tables, access: NestedAccess) -> N {
    let gpa = GuestPhysical::new(0x7123);
    let smap = host(Cr4::SMAP | Cr4::SMEP);
    match translate_nested(&smap, Cr3::new(ROOT), gpa, access, tables) {
        NestedOutcome::Fault(fault) => {
            assert_eq!(fault.address(), gpa);
            fault.code()
        }
        other => panic!("{other:?}"),
    }
}

/// APM section 15.25.6.
#[test]
fn nested_faults_are_user_faults_that_say_whose_access_it_was() {
    let page = 0x107_0000 | P;
    let (read, write, fetch) = (
        NestedAccess::Final(Kind::Read),
        NestedAccess::Final(Kind::Write),
        NestedAccess::Final(Kind::Fetch),
    );
    let table = NestedAccess::GuestTable;
    let rows = [
        (0, read, N::USER | N::FINAL),
        (0, write, N::USER | N::WRITE | N::FINAL),
        (0, fetch, N::USER | N::FETCH | N::FINAL),
        (0, table, N::USER | N::WRITE | N::TABLE),
        // A read-only page holds no guest table, read though it may be.
        (page | U, table, N::PRESENT | N::USER | N::WRITE | N::TABLE),
        (page | U, write, N::PRESENT | N::USER | N::WRITE | N::FINAL),
        (page | W, read, N::PRESENT | N::USER | N::FINAL),
        (
            page | U | NX,
            fetch,
            N::PRESENT | N::USER | N::FETCH | N::FINAL,
        ),
        (
            page | 1 << 45,
            read,
            N::PRESENT | N::RESERVED | N::USER | N::FINAL,
        ),
    ];
    for (pte, access, expected) in rows {
        let code = fault(&nested(&[(0x7000, pte)]), access);
        assert_eq!(code, expected, "{pte:x} {access:?}");
    }
}

/// Invariant 1 of the module: the host's protection keys, like its SMEP and SMAP, are for its own accesses.
#[test]
fn protection_keys_of_the_host_do_not_matter() {
    let pkru = vmmu_spec::Pkru::new(u32::MAX);
    let keys = NestedControls::new(long(Cr4::PKE, Efer::NXE).with_pkru(pkru)).unwrap();
    let (gpa, write) = (GuestPhysical::new(0x7123), NestedAccess::Final(Kind::Write));
    let outcome = translate_nested(&keys, Cr3::new(ROOT), gpa, write, &nested(&[]));
    assert!(
        matches!(outcome, NestedOutcome::Translation(_)),
        "{outcome:?}"
    );
}

#[test]
fn an_address_beyond_the_tables_is_out_of_range() {
    let beyond = GuestPhysical::new(1 << 48);
    let read = NestedAccess::Final(Kind::Read);
    let tables = nested(&[]);
    let outcome = translate_nested(&host(Cr4::empty()), Cr3::new(ROOT), beyond, read, &tables);
    assert_eq!(outcome, NestedOutcome::OutOfRange(beyond));
    // Bit 47 is no sign here.
    let high = GuestPhysical::new(1 << 47);
    let outcome = translate_nested(&host(Cr4::empty()), Cr3::new(ROOT), high, read, &tables);
    assert!(matches!(outcome, NestedOutcome::Fault(_)), "{outcome:?}");
    assert!(NestedControls::new(legacy(Cr4::PAE)).is_err());
}

const GUEST_ROOT: u64 = 0x1_0000;
const G2: u64 = 0x1_1000;
const G3: u64 = 0x1_2000;
const G4: u64 = 0x1_3000;

/// A guest that maps linear address 0x5000 to guest-physical 0x7000, under `nested(special)`.
fn two(guest_pte: u64, special: &[(u64, u64)]) -> Tables {
    let mut tables = nested(special);
    let entries = [
        (GUEST_ROOT, G2 | FULL),
        (G2, G3 | FULL),
        (G3, G4 | FULL),
        (G4 + 8 * 5, guest_pte),
    ];
    for (gpa, value) in entries {
        tables.0.insert(gpa + OFFSET, value);
    }
    tables
}

fn through_both(guest: &Controls, tables: &Tables, access: Access) -> TwoDimensionalOutcome {
    let host = host(Cr4::empty());
    let both = TwoDimensional {
        guest,
        guest_root: Cr3::new(GUEST_ROOT),
        host: &host,
        host_root: Cr3::new(ROOT),
    };
    translate_two_dimensional(&both, Linear::new(0x5123), access, tables)
}

/// APM section 15.25.5: nested A in all entries used, D where a guest table was walked.
#[test]
fn two_dimensions_compose_and_dirty_the_pages_of_guest_tables() {
    let outcome = through_both(&four_level(), &two(0x7000 | FULL, &[]), user(Kind::Read));
    let TwoDimensionalOutcome::Translation(composed) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(composed.physical().get(), 0x7123 + OFFSET);
    assert_eq!(composed.guest.mapping().physical.get(), 0x7123);
    let places = composed
        .tables
        .iter()
        .map(|t| t.mapping().physical.get() - OFFSET);
    assert_eq!(places.collect::<Vec<_>>(), [GUEST_ROOT, G2, G3, G4 + 40]);
    let leaf_bits = |t: &vmmu_spec::NestedTranslation| t.updates().last().unwrap().set;
    assert!(composed.tables.iter().all(|t| leaf_bits(t) == A | D));
    assert_eq!(leaf_bits(&composed.last), A);
    assert_eq!(composed.guest.updates().count(), 4);
}

/// APM section 15.25.6.
#[test]
fn the_first_fault_on_the_way_wins() {
    let absent = |gpa| [(gpa, 0u64)];
    let code = |outcome| match outcome {
        TwoDimensionalOutcome::Nested(NestedOutcome::Fault(fault)) => {
            (fault.address().get(), fault.code())
        }
        other => panic!("{other:?}"),
    };
    let table = N::USER | N::WRITE | N::TABLE;
    let write = user(Kind::Write);
    let at_table = through_both(&four_level(), &two(0, &absent(G3)), write);
    assert_eq!(code(at_table), (G3, table));
    // The guest's own fault comes before a nested one on the final address.
    let guest = through_both(&four_level(), &two(0x7000 | P | U, &absent(0x7000)), write);
    let TwoDimensionalOutcome::Guest(Outcome::PageFault(fault)) = guest else {
        panic!("{guest:?}");
    };
    assert_eq!(fault.code().bits(), 0b111);
    let last = through_both(&four_level(), &two(0x7000 | FULL, &absent(0x7000)), write);
    assert_eq!(code(last), (0x7123, N::USER | N::WRITE | N::FINAL));
    // A supervisor access of the guest is a user access at the nested level.
    let last = through_both(
        &four_level(),
        &two(0x7000 | P, &absent(0x7000)),
        kernel(Kind::Fetch),
    );
    assert_eq!(code(last), (0x7123, N::USER | N::FETCH | N::FINAL));
}

#[test]
fn a_guest_without_paging_is_translated_by_the_nested_tables_alone() {
    let guest = Controls::new(usual(), Cr0::PE, Cr4::empty(), Efer::empty()).unwrap();
    let outcome = through_both(&guest, &nested(&[]), kernel(Kind::Write));
    let TwoDimensionalOutcome::Translation(composed) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(composed.physical().get(), 0x5123 + OFFSET);
    assert!(composed.tables.is_empty());
}

const R: u64 = 1;
const X: u64 = 4;
const RWX: u64 = R | W | X;
/// Write-back, bits 5:3 of an entry that maps a page.
const WB: u64 = 6 << 3;

fn ept(features: EptFeatures, leaf: u64, access: EptAccess) -> EptOutcome {
    let entries = [(ROOT, T2 | RWX), (T2, T3 | RWX), (T3, T4 | RWX), (T4, leaf)];
    ept_walk(features, &Tables::new(&entries), access)
}

fn ept_walk(features: EptFeatures, tables: &Tables, access: EptAccess) -> EptOutcome {
    let controls = EptControls::new(PhysBits::new(40).unwrap(), features);
    translate_ept(
        &controls,
        Eptp::new(ROOT | 0x1e),
        GuestPhysical::new(0x123),
        access,
        tables,
    )
}

/// SDM section 28.3.3.1.
#[test]
fn ept_misconfigurations_are_those_of_the_manual() {
    let read = EptAccess::Final(Kind::Read);
    let none = EptFeatures::empty();
    let bad = |features, leaf| matches!(ept(features, leaf, read), EptOutcome::Misconfiguration(_));
    for rights in 0..8 {
        let expected = matches!(rights, 2 | 6 | 4);
        assert_eq!(bad(none, 0x7000 | WB | rights), expected, "rights {rights}");
    }
    assert!(!bad(EptFeatures::EXECUTE_ONLY, 0x7000 | WB | X));
    for memory_type in 0..8 {
        let expected = matches!(memory_type, 2 | 3 | 7);
        assert_eq!(
            bad(none, 0x7000 | RWX | memory_type << 3),
            expected,
            "type {memory_type}"
        );
    }
    for bit in 6..64 {
        let expected = (40..=51).contains(&bit);
        assert_eq!(bad(none, RWX | WB | 1 << bit), expected, "bit {bit}");
    }
    assert!(
        !bad(none, 1 << 45),
        "not present: nothing else is looked at"
    );
}

/// SDM tables 28-1 to 28-5: entries above the lowest.
#[test]
fn ept_upper_entries_reserve_bits_7_to_3_and_the_bits_below_a_large_page() {
    let read = EptAccess::Final(Kind::Read);
    let gigabyte = EptFeatures::GIGABYTE_PAGES;
    let walk = |features, entries: &[(u64, u64)]| {
        let mut tables = Tables::new(&[
            (ROOT, T2 | RWX),
            (T2, T3 | RWX),
            (T3, T4 | RWX),
            (T4, RWX | WB),
        ]);
        tables.0.extend(entries.iter().copied());
        ept_walk(features, &tables, read)
    };
    let bad = |outcome| matches!(outcome, EptOutcome::Misconfiguration(_));
    for bit in 3..=7 {
        assert!(
            bad(walk(gigabyte, &[(ROOT, T2 | RWX | 1 << bit)])),
            "PML4E bit {bit}"
        );
        assert!(
            bad(walk(EptFeatures::empty(), &[(T2, T3 | RWX | 1 << bit)])),
            "PDPTE bit {bit}"
        );
    }
    for bit in 3..=6 {
        assert!(
            bad(walk(gigabyte, &[(T3, T4 | RWX | 1 << bit)])),
            "PDE bit {bit}"
        );
    }
    for bit in 12..30 {
        let entry = 0x4000_0000 | RWX | WB | PS | 1 << bit;
        assert!(bad(walk(gigabyte, &[(T2, entry)])), "1 GiB bit {bit}");
        assert_eq!(
            bad(walk(gigabyte, &[(T3, entry)])),
            bit < 21,
            "2 MiB bit {bit}"
        );
    }
    let EptOutcome::Translation(large) = walk(gigabyte, &[(T2, 0x4000_0000 | RWX | WB | PS)])
    else {
        panic!("a valid 1 GiB page");
    };
    assert_eq!(
        (large.size, large.physical.get()),
        (PageSize::OneGiB, 0x4000_0123)
    );
}

/// SDM table 27-7 and section 28.3.3.2.
#[test]
fn ept_violations_report_the_access_and_the_rights() {
    let none = EptFeatures::empty();
    let flags = EptFeatures::ACCESSED_DIRTY;
    let page = 0x7000 | WB;
    let (read, write, fetch) = (
        EptAccess::Final(Kind::Read),
        EptAccess::Final(Kind::Write),
        EptAccess::Final(Kind::Fetch),
    );
    let last = Q::LINEAR | Q::FINAL;
    let rows = [
        (none, 0, read, Q::READ | last),
        (none, page | R, write, Q::WRITE | Q::READABLE | last),
        (
            none,
            page | R | W,
            fetch,
            Q::FETCH | Q::READABLE | Q::WRITABLE | last,
        ),
        (
            EptFeatures::EXECUTE_ONLY,
            page | X,
            read,
            Q::READ | Q::EXECUTABLE | last,
        ),
        (none, 0, EptAccess::GuestTableRead, Q::READ | Q::LINEAR),
        (
            none,
            page | R,
            EptAccess::GuestTableWrite,
            Q::WRITE | Q::READABLE | Q::LINEAR,
        ),
        // With A and D flags on, a walk of a guest table is a read and a write.
        (
            flags,
            page | R,
            EptAccess::GuestTableRead,
            Q::READ | Q::WRITE | Q::READABLE | Q::LINEAR,
        ),
    ];
    for (features, leaf, access, expected) in rows {
        let outcome = ept(features, leaf, access);
        assert_eq!(
            outcome,
            EptOutcome::Violation(expected),
            "{leaf:x} {access:?}"
        );
    }
    let fine = ept(none, page | R, EptAccess::GuestTableRead);
    assert!(matches!(fine, EptOutcome::Translation(_)), "{fine:?}");
}

/// SDM section 28.3.5.
#[test]
fn ept_accessed_and_dirty_flags_are_set_if_enabled() {
    let (accessed, dirty) = (1 << 8, 1 << 9);
    let bits = |features, access| match ept(features, 0x7000 | RWX | WB, access) {
        EptOutcome::Translation(t) => t.updates().map(|u| u.set).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let read = EptAccess::Final(Kind::Read);
    assert!(bits(EptFeatures::empty(), read).is_empty());
    let flags = EptFeatures::ACCESSED_DIRTY;
    assert_eq!(bits(flags, read), [accessed; 4]);
    let written = [accessed, accessed, accessed, accessed | dirty];
    assert_eq!(bits(flags, EptAccess::Final(Kind::Write)), written);
    assert_eq!(bits(flags, EptAccess::GuestTableRead), written);
}
