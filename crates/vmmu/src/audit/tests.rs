//! Every check is seen failing: a sound structure is damaged in one way, and the audit finds just that.

use super::{AuditFinding as Found, AuditReport, Strictness};
use crate::addr::{Gfn, Level};
use crate::testhost::{AD, Guest, PWU, World};
use crate::walk::Access;
use crate::{Engine, FaultOutcome};
use alloc::vec::Vec;

/// Four small pages.
const SMALL: u64 = 0x40_0000;
/// A 2 MiB page of the guest, mapped as one.
const LARGE: u64 = 0x4000_0000;
/// A 2 MiB page of the guest over tables: mapped in small pieces by a direct page.
const SPLIT: u64 = 0x8000_0000;

/// Makes a guest with small pages, a large one, and a split one, and touches them.
fn world() -> World {
    let world = World::new(Engine::Shadow, |_| {});
    let host = world.mmu.host();
    host.allow(Level::L2);
    let mut guest = Guest::new(World::ROOT);
    for i in 0..4 {
        let page = (Gfn::new(600 + i), Level::L1);
        guest.map(host, SMALL + i * 4096, page, PWU | AD);
    }
    guest.map(host, LARGE, (Gfn::new(1024), Level::L2), PWU | AD);
    guest.map(host, SPLIT, (Gfn::new(0), Level::L2), PWU | AD);
    world.set_root();
    for gva in [SMALL, SMALL + 4096, LARGE, SPLIT + 0x20_0000 - 4096] {
        assert_eq!(world.touch(gva, Access::USER_WRITE), FaultOutcome::Resume);
    }
    world
}

/// Returns what the audit finds.
fn findings(world: &World) -> Vec<Found> {
    match world.mmu.audit(Strictness::Exact) {
        Ok(_) => Vec::new(),
        Err(failure) => failure.findings().to_vec(),
    }
}

/// Asserts that the audit has one finding, and that it is `expected`.
#[track_caller]
fn expect(world: &World, expected: impl Fn(&Found) -> bool) {
    let found = findings(world);
    assert!(found.len() == 1 && expected(&found[0]), "found {found:#?}");
}

/// Asserts that `expected` is among the findings: a damage that breaks several rules at once.
#[track_caller]
fn expect_among(world: &World, expected: impl Fn(&Found) -> bool) {
    let found = findings(world);
    assert!(found.iter().any(expected), "found {found:#?}");
}

#[test]
fn a_sound_structure_passes_and_is_counted() {
    let world = world();
    let report = world.mmu.audit(Strictness::Exact).unwrap();
    let expected = AuditReport {
        pages: 7,
        indirect: 6,
        clean: 7,
        links: 6,
        tracked: 6,
        leaves: [3, 1, 0],
        ..AuditReport::default()
    };
    assert_eq!(report, expected);
    assert_eq!(report.leaves(Level::L1), 3);
}

#[test]
fn an_entry_without_presence_bit() {
    let world = world();
    let (id, slot) = world.slot(SMALL, Level::L1);
    world
        .page(id)
        .clear_present(slot.get() / 64, 1 << (slot.get() % 64));
    expect(&world, |f| matches!(f, Found::NoPresenceBit { .. }));
}
