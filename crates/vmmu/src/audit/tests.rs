//! Every check is seen failing: a sound structure is damaged in one way, and the audit finds just that.

use super::{AuditFinding as Found, AuditReport, Strictness};
use crate::addr::{Gfn, Index, Level, Pfn};
use crate::debt::Debt;
use crate::frames::Stripe;
use crate::host::VcpuId;
use crate::page::{Flags, PageId, Record, SpteRef};
use crate::spte::Spte;
use crate::sync::{Locks, Ordering};
use crate::testhost::{AD, Guest, PWU, RAM, World};
use crate::walk::{Access, AccessKind};
use crate::{AddressSpace, Engine, FaultOutcome, SlotFlags};
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

/// Damages a sound structure; `expected` has to be all that the audit finds.
#[track_caller]
fn only(damage: impl FnOnce(&World), expected: impl Fn(&Found) -> bool) {
    let world = world();
    damage(&world);
    expect(&world, expected);
}

/// Damages a sound structure; `expected` has to be among what the audit finds, where one damage breaks several rules.
#[track_caller]
fn among(damage: impl FnOnce(&World), expected: impl Fn(&Found) -> bool) {
    let world = world();
    damage(&world);
    expect_among(&world, expected);
}

fn edge((id, slot): (PageId, Index)) -> SpteRef {
    SpteRef::new(id, slot)
}

/// Runs `work` under the gfn lock of `gfn`.
fn under_lock(world: &World, gfn: u64, work: impl FnOnce(&mut Stripe)) {
    let locks = Locks::default();
    work(&mut world.mmu.frames.lock(&locks, Gfn::new(gfn)));
}

#[test]
fn entries_and_their_records() {
    only(
        |w| {
            let (id, slot) = w.slot(SMALL, Level::L1);
            let bit = 1 << (slot.get() % 64);
            w.page(id).clear_present(slot.get() / 64, bit);
        },
        |f| matches!(f, Found::NoPresenceBit { .. }),
    );
    among(
        |w| w.poke(w.slot(SMALL + 0x3000, Level::L1), Spte::new(RAM << 12 | 1)),
        |f| matches!(f, Found::NoRecord { .. }),
    );
    among(
        |w| {
            let (id, slot) = w.slot(SPLIT + 0x1f_f000, Level::L1);
            w.page(id).set_record(slot, Record::Leaf(Gfn::new(17)));
        },
        |f| matches!(f, Found::LeafPosition { gfn, .. } if gfn.get() == 17),
    );
    only(
        |w| {
            let at = w.slot(LARGE, Level::L2);
            w.poke(at, w.spte(at).without(Spte::LARGE));
        },
        |f| matches!(f, Found::LeafShape { .. }),
    );
}

#[test]
fn reverse_maps() {
    only(
        |w| {
            let at = edge(w.slot(SMALL, Level::L1));
            under_lock(w, 600, |stripe| {
                assert!(stripe.drop_leaf(Gfn::new(600), Level::L1, at));
            });
        },
        |f| matches!(f, Found::LeafUnlisted { gfn, .. } if gfn.get() == 600),
    );
    only(
        |w| w.poke(w.slot(SMALL, Level::L1), Spte::new(0)),
        |f| matches!(f, Found::LeafDangling { gfn, .. } if gfn.get() == 600),
    );
    among(
        |w| {
            let at = edge(w.slot(SMALL, Level::L1));
            under_lock(w, 601, |stripe| {
                let (region, nodes) = stripe.region(Gfn::new(607)).unwrap();
                region.add_small(nodes, Gfn::new(607), at).unwrap();
            });
        },
        |f| matches!(f, Found::LeafRepeated { times: 2, .. }),
    );
}

#[test]
fn links_and_parents() {
    let level_1 = |w: &World| w.page(w.slot(SMALL, Level::L1).0).gfn();
    only(
        |w| {
            let (child, _) = w.slot(SMALL, Level::L1);
            let at = edge(w.slot(SMALL, Level::L2));
            under_lock(w, level_1(w).get(), |stripe| {
                assert!(stripe.drop_parent(w.page(child), at));
            });
        },
        |f| matches!(f, Found::LinkUnlisted { .. }),
    );
    only(
        |w| w.poke(w.slot(SMALL, Level::L2), Spte::new(0)),
        |f| matches!(f, Found::LinkDangling { .. }),
    );
    among(
        |w| {
            let (other, _) = w.slot(LARGE, Level::L2);
            let at = edge(w.slot(SMALL, Level::L2));
            under_lock(w, w.page(other).gfn().get(), |stripe| {
                stripe.add_parent(w.page(other), at).unwrap();
            });
        },
        |f| matches!(f, Found::LinkRepeated { times: 2, .. }),
    );
    among(
        |w| {
            let (other, _) = w.slot(LARGE, Level::L2);
            let (id, slot) = w.slot(SMALL, Level::L2);
            w.page(id).set_record(slot, Record::Link(other));
        },
        |f| matches!(f, Found::ChildMismatch { .. }),
    );
    only(
        |w| {
            let at = w.slot(SMALL, Level::L2);
            w.poke(at, Spte::new(w.spte(at).raw() ^ 1 << 12));
        },
        |f| matches!(f, Found::LinkBits { .. }),
    );
}

#[test]
fn the_dead() {
    let kill = |w: &World| {
        let (id, _) = w.slot(SMALL, Level::L1);
        w.page(id).set_flags(Flags::empty());
    };
    among(kill, |f| matches!(f, Found::ChildDead { .. }));
    among(kill, |f| matches!(f, Found::DeadHashed { .. }));
    among(kill, |f| matches!(f, Found::DeadPresent { .. }));
    among(kill, |f| matches!(f, Found::GraceCount { counted: 1, .. }));
}

#[test]
fn the_hash() {
    let page = |w: &World| w.slot(SMALL, Level::L1).0;
    among(
        |w| {
            let id = page(w);
            under_lock(w, w.page(id).gfn().get(), |stripe| {
                stripe.unhash(&w.mmu.pool, id, w.page(id));
            });
        },
        |f| matches!(f, Found::Unhashed { .. }),
    );
    let hash_again = |w: &World| {
        let id = page(w);
        under_lock(w, w.page(id).gfn().get(), |stripe| {
            stripe.hash(id, w.page(id)).unwrap();
        });
    };
    among(hash_again, |f| matches!(f, Found::Twins { .. }));
    among(hash_again, |f| matches!(f, Found::ChainEndless { .. }));
}

#[test]
fn host_frames() {
    let remove_slot = |w: &World| {
        let (slot, _) = w.mmu.slots.get(w.ram).unwrap();
        let locks = Locks::default();
        w.mmu.slots.update(&locks, &slot, None).unwrap();
    };
    among(remove_slot, |f| matches!(f, Found::OutsideSlots { .. }));
    let back = |backing| move |w: &World| w.mmu.host().back(Gfn::new(600), backing);
    only(
        back(Some((Pfn::new(RAM + 1), true))),
        |f| matches!(f, Found::WrongFrame { gfn, .. } if gfn.get() == 600),
    );
    only(
        back(None),
        |f| matches!(f, Found::Unbacked { gfn, .. } if gfn.get() == 600),
    );
    only(
        |w| w.mmu.host().allow(Level::L1),
        |f| {
            matches!(
                f,
                Found::Unbacked {
                    level: Level::L2,
                    ..
                }
            )
        },
    );
    only(
        back(Some((Pfn::new(RAM + 600), false))),
        |f| matches!(f, Found::WriteForbidden { gfn, .. } if gfn.get() == 600),
    );
}

#[test]
fn rights() {
    among(
        |w| {
            under_lock(w, 600, |stripe| {
                let (region, _) = stripe.region(Gfn::new(600)).unwrap();
                region.set_tracked(Gfn::new(600), true);
            });
        },
        |f| matches!(f, Found::WriteTracked { .. }),
    );
    among(
        |w| {
            let locks = Locks::default();
            let (slot, space) = w.mmu.slots.get(w.ram).unwrap();
            let frames = &w.mmu.frames;
            frames.provide_dirty(&locks, Gfn::new(600), space).unwrap();
            let log = Some(SlotFlags::LOG_DIRTY);
            w.mmu.slots.update(&locks, &slot, log).unwrap();
        },
        |f| matches!(f, Found::WriteUnlogged { .. }),
    );
    only(
        |w| {
            let at = w.slot(SMALL, Level::L1);
            w.poke(at, w.spte(at).with(Spte::KERNEL_WRITE));
        },
        |f| matches!(f, Found::RightsExceed { .. }),
    );
    only(
        |w| {
            let (model, _) = w.slot(SMALL, Level::L1);
            let gfn = Gfn::new(1030);
            let call = w.mmu.call();
            let mut debt = Debt::new(&call);
            let made = call.find_or_create(gfn, w.page(model).role(), &[], &mut debt);
            w.page(made.unwrap())
                .set_flags(Flags::ALIVE | Flags::COUNTED);
            under_lock(w, 1030, |stripe| {
                stripe.region(gfn).unwrap().0.set_tracked(gfn, true);
            });
        },
        |f| matches!(f, Found::LargeOverTable { gfn, .. } if gfn.get() == 1024),
    );
}

#[test]
fn entries_of_clean_pages() {
    let world = world();
    let table = world.page(world.slot(SMALL, Level::L1).0).gfn();
    let index = Level::L1.index(SMALL).get();
    for (gpte, why) in [
        (601 << 12 | PWU | AD, "another frame"),
        (600 << 12 | 5 | AD, "not writable"),
        (600 << 12 | PWU | 0x20, "not dirty yet"),
        (600 << 12 | PWU | 0x40, "not accessed yet"),
        (600 << 12 | 3 | AD, "not the user's"),
        (600 << 12 | PWU | AD | 1 << 63, "not executable"),
        (0, "not present"),
    ] {
        let word = world.mmu.host().word(table, index);
        word.store(gpte, Ordering::SeqCst);
        assert!(world.mmu.audit(Strictness::Structure).is_ok(), "{why}");
        expect(&world, |f| matches!(f, Found::Stale { .. }));
    }
}

#[test]
fn counts() {
    let page = |w: &World| w.slot(SMALL, Level::L1).0;
    only(
        |w| {
            let gfn = w.page(page(w)).gfn();
            under_lock(w, gfn.get(), |s| s.region(gfn).unwrap().0.live += 1);
        },
        |f| {
            matches!(
                f,
                Found::LiveCount {
                    recorded: 7,
                    counted: 6,
                    ..
                }
            )
        },
    );
    only(
        |w| {
            let gfn = w.page(page(w)).gfn();
            under_lock(w, gfn.get(), |s| {
                s.region(gfn).unwrap().0.set_tracked(gfn, false);
            });
        },
        |f| matches!(f, Found::TrackingBit { counted: 1, .. }),
    );
    only(
        |w| w.mmu.gate.create(),
        |f| {
            matches!(
                f,
                Found::GateCount {
                    recorded: 7,
                    counted: 6
                }
            )
        },
    );
    only(
        |w| {
            let page = w.page(page(w));
            page.set_flags((page.flags() | Flags::LISTED) - Flags::CLEAN);
        },
        |f| {
            matches!(
                f,
                Found::UnsyncList {
                    times: 0,
                    flag: true,
                    ..
                }
            )
        },
    );
    among(
        |w| {
            let page = w.page(page(w));
            page.set_flags(page.flags() - Flags::COUNTED);
        },
        |f| matches!(f, Found::FlagsContradict { .. }),
    );
    only(
        |w| {
            w.page(page(w)).references.fetch_add(1, Ordering::SeqCst);
        },
        |f| {
            matches!(
                f,
                Found::References {
                    recorded: 1,
                    counted: 0,
                    ..
                }
            )
        },
    );
    only(
        |w| {
            w.mmu.pool.take(&Locks::default()).unwrap();
        },
        |f| {
            matches!(
                f,
                Found::PoolCount {
                    recorded: 8,
                    counted: 7
                }
            )
        },
    );
}

#[test]
fn quiescence() {
    only(
        |w| {
            w.mmu.flush_pending.fetch_add(1, Ordering::SeqCst);
        },
        |f| matches!(f, Found::FlushOwed(1)),
    );
    let world = world();
    let _busy = world.vcpu(1).shared.local.claim().unwrap();
    expect(&world, |f| matches!(f, Found::VcpuBusy(VcpuId(1))));
}

#[test]
fn nested_tables() {
    let write = |w: &World, gfn: u64| {
        let gpa = Gfn::new(gfn).address();
        let done = w.vcpu(0).handle_nested_fault(gpa, AccessKind::Write);
        assert_eq!(done, Ok(FaultOutcome::Resume));
    };
    let world = World::new(Engine::Npt, |_| {});
    write(&world, 600);
    let report = world.mmu.audit(Strictness::Exact).unwrap();
    assert_eq!(
        (report.pages, report.links, report.leaves(Level::L1)),
        (4, 3, 1)
    );
    let find = |gfn: u64, level: Level| {
        let mut id = world.mmu.direct.get(AddressSpace::Normal).unwrap();
        while world.page(id).role().level() > level {
            let index = world.page(id).role().level().index(gfn << 12);
            let Record::Link(child) = world.page(id).record(index) else {
                panic!("no table for frame {gfn}");
            };
            id = child;
        }
        (id, level.index(gfn << 12))
    };
    let leaf = find(600, Level::L1);
    let sound = world.spte(leaf);
    world.poke(leaf, Spte::new(sound.raw() ^ 1 << 12));
    expect(&world, |f| matches!(f, Found::WrongFrame { .. }));
    world.poke(leaf, sound);
    world
        .page(leaf.0)
        .set_record(leaf.1, Record::Leaf(Gfn::new(601)));
    expect_among(&world, |f| matches!(f, Found::LeafPosition { .. }));
    world
        .page(leaf.0)
        .set_record(leaf.1, Record::Leaf(Gfn::new(600)));
    world.poke(find(600, Level::L2), Spte::new(0));
    expect(&world, |f| {
        matches!(f, Found::NestedParents { parents: 0, .. })
    });
}
