//! What caches of translations may and may not show (SDM section 4.10).

mod common;

use common::{A, D, G, P, ROOT, Tables, U, W, four_level, kernel, long, user};
use vmmu_spec::{
    Access, Controls, Cr3, Cr4, Efer, ErrorCode, Kind, Linear, Observation, Physical, Time, Width,
    Window, WriteLog, allowed, is_allowed,
};

const T2: u64 = 0x2000;
const T3: u64 = 0x3000;
const T4: u64 = 0x4000;
const OTHER: u64 = 0x5000;
const TABLE: u64 = P | W | U | A;
const PAGE: u64 = P | W | U | A | D;

fn log(entries: &[(u64, u64)]) -> WriteLog<Tables> {
    WriteLog::new(Tables::new(entries))
}

/// Linear address 0 is mapped to 0x7000.
fn mapped() -> WriteLog<Tables> {
    log(&[
        (ROOT, T2 | TABLE),
        (T2, T3 | TABLE),
        (T3, T4 | TABLE),
        (T4, 0x7000 | PAGE),
    ])
}

fn set(log: &mut WriteLog<Tables>, at: u64, value: u64) -> Time {
    log.write(Physical::new(at), Width::Eight, value)
}

/// What a read by the user at linear address 0 may show: physical addresses, or error codes.
fn shown(log: &WriteLog<Tables>, from: Time) -> Vec<Result<u64, u32>> {
    shown_in(
        &four_level(),
        log,
        user(Kind::Read),
        Window::since(from, log.now()),
    )
}

fn shown_in(
    controls: &Controls,
    log: &WriteLog<Tables>,
    access: Access,
    window: Window,
) -> Vec<Result<u64, u32>> {
    let (root, linear) = (Cr3::new(ROOT), Linear::new(0));
    let mut shown = Vec::new();
    for outcome in allowed(controls, root, linear, access, log, window) {
        let observed = outcome.observation().unwrap();
        assert!(is_allowed(
            controls, root, linear, access, log, window, observed
        ));
        let result = match observed {
            Observation::Access(physical) => Ok(physical.get()),
            Observation::PageFault(code) => Err(code.bits()),
            Observation::NonCanonical => panic!("address 0 is canonical"),
        };
        if !shown.contains(&result) {
            shown.push(result);
        }
    }
    shown
}

const NOT_PRESENT: Result<u64, u32> = Err(ErrorCode::USER.bits());

#[test]
fn without_a_write_only_the_translation_is_allowed() {
    assert_eq!(shown(&mapped(), Time::START), [Ok(0x7000)]);
}

#[test]
fn an_old_translation_may_be_used_until_the_flush_and_not_after() {
    let mut log = mapped();
    let after = set(&mut log, T4, 0x8000 | PAGE);
    assert_eq!(shown(&log, Time::START), [Ok(0x8000), Ok(0x7000)]);
    assert_eq!(shown(&log, after), [Ok(0x8000)]);
}

/// SDM section 4.10.2.3: no caching without P, so making an entry present needs no flush.
#[test]
fn that_an_entry_was_not_present_is_not_remembered() {
    let mut log = mapped();
    let removed = set(&mut log, T4, 0);
    assert_eq!(shown(&log, Time::START), [NOT_PRESENT, Ok(0x7000)]);
    assert_eq!(shown(&log, removed), [NOT_PRESENT]);
    set(&mut log, T4, 0x8000 | PAGE);
    assert_eq!(shown(&log, removed), [Ok(0x8000)]);
}

/// SDM section 4.10.2.3: no caching unless A is 1, so an entry never used needs no flush.
#[test]
fn an_entry_without_the_accessed_bit_is_not_remembered() {
    let mut log = mapped();
    let other = set(&mut log, T4, 0x9000 | PAGE & !A);
    set(&mut log, T4, 0x8000 | PAGE);
    assert_eq!(shown(&log, other), [Ok(0x8000)]);
}

/// The same for an upper entry: below it everything is read at the access.
#[test]
fn below_an_entry_without_the_accessed_bit_nothing_is_remembered() {
    let mut log = mapped();
    set(&mut log, T3, T4 | TABLE & !A);
    let fresh = log.now();
    set(&mut log, T4, 0x8000 | PAGE);
    assert_eq!(shown(&log, fresh), [Ok(0x8000)]);
}

/// Scenario T1: a table's old entries are no excuse once a parent is linked to it anew.
#[test]
fn a_table_that_has_just_been_linked_shows_its_current_entries() {
    let mut log = mapped();
    set(&mut log, OTHER, 0xa000 | PAGE);
    let flush = set(&mut log, T3, 0);
    set(&mut log, OTHER, 0xb000 | PAGE);
    set(&mut log, T3, OTHER | TABLE);
    assert_eq!(shown(&log, flush), [Ok(0xb000)]);
    // Changed after the link, without a flush: both.
    set(&mut log, OTHER, 0xc000 | PAGE);
    assert_eq!(shown(&log, flush), [Ok(0xc000), Ok(0xb000)]);
}

/// SDM section 4.10.3.2: a cached PDE names the old table, and that table is read as it is now.
#[test]
fn a_cached_upper_entry_leads_to_the_current_content_of_the_old_table() {
    let mut log = mapped();
    set(&mut log, OTHER, 0xa000 | PAGE);
    set(&mut log, T3, OTHER | TABLE);
    set(&mut log, T4, 0x8000 | PAGE);
    let all = shown(&log, Time::START);
    assert_eq!(all, [Ok(0xa000), Ok(0x8000), Ok(0x7000)]);
    // The old table's entry is not present: the fault is real.
    set(&mut log, T4, 0);
    assert!(shown(&log, Time::START).contains(&NOT_PRESENT));
}

/// SDM section 4.10.4.3: a fault for rights may be spurious, and rights may outlive their entry.
#[test]
fn old_rights_may_be_used_either_way() {
    let mut log = mapped();
    set(&mut log, T4, 0x7000 | P | U | A);
    let window = Window::since(Time::START, log.now());
    let write = user(Kind::Write);
    let denied = Err((ErrorCode::PRESENT | ErrorCode::WRITE | ErrorCode::USER).bits());
    assert_eq!(
        shown_in(&four_level(), &log, write, window),
        [denied, Ok(0x7000)]
    );
    let flush = log.now();
    set(&mut log, T4, 0x7000 | PAGE);
    let window = Window::since(flush, log.now());
    assert_eq!(
        shown_in(&four_level(), &log, write, window),
        [Ok(0x7000), denied]
    );
}

/// SDM section 4.10.2.2: cached rights are judged by the control state at the access.
#[test]
fn cached_rights_are_judged_by_the_current_controls() {
    let mut log = mapped();
    set(&mut log, T4, 0);
    let window = Window::since(Time::START, log.now());
    let smap = long(Cr4::SMAP, Efer::NXE);
    let shown = shown_in(&smap, &log, kernel(Kind::Read), window);
    assert_eq!(shown, [Err(0), Err(ErrorCode::PRESENT.bits())]);
}

#[test]
fn an_access_during_which_another_processor_writes_may_see_either() {
    let mut log = mapped();
    let begin = log.now();
    let end = set(&mut log, T4, 0);
    set(&mut log, T4, 0x8000 | PAGE);
    let window = Window::during(begin, begin, end);
    let shown = shown_in(&four_level(), &log, user(Kind::Read), window);
    assert_eq!(shown, [NOT_PRESENT, Ok(0x7000)]);
}

/// SDM section 4.10.2.4: a CR3 load spares global translations, and nothing else.
#[test]
fn only_global_translations_of_a_space_that_was_left_remain() {
    let pge = long(Cr4::PGE, Efer::NXE);
    let mut log = mapped();
    let local = Window::left(Time::START, log.now());
    assert_eq!(shown_in(&pge, &log, user(Kind::Read), local), []);
    let left = set(&mut log, T4, 0x8000 | PAGE | G);
    set(&mut log, T4, 0x9000 | PAGE | G);
    let window = Window::left(Time::START, left);
    assert_eq!(shown_in(&pge, &log, user(Kind::Read), window), [Ok(0x8000)]);
    assert_eq!(shown_in(&four_level(), &log, user(Kind::Read), window), []);
}

/// SDM section 4.10.3.1: PAE and 32-bit modes obey the same rules; a PDPTE in memory has no A.
#[test]
fn legacy_modes_obey_the_same_rules() {
    let pae = common::legacy(Cr4::PAE);
    let mut log = log(&[(ROOT, T2 | P), (T2, T3 | TABLE), (T3, 0x7000 | PAGE)]);
    set(&mut log, ROOT, OTHER | P);
    let window = Window::since(Time::START, log.now());
    let shown = shown_in(&pae, &log, user(Kind::Read), window);
    assert_eq!(shown, [NOT_PRESENT, Ok(0x7000)]);
}
