//! What the bookkeeping takes, measured: of a guest as they are, and of the worst.

use crate::addr::{Gfn, Level};
use crate::audit::Strictness;
use crate::testhost::{AD, Guest, PWU, World};
use crate::walk::Access;
use crate::{Engine, Event, FaultOutcome, Stats};

/// What a shadow page may take beside its table.
const PER_PAGE: u64 = 3 << 10;
/// What a guest frame may take that is or was mapped.
const PER_FRAME: u64 = 8;

/// Makes a guest as a kernel looks: its memory mapped large from frame 512 on, but for the last 2 MiB, which are small pages that processes use, a
/// quarter of them mapped twice and some by many. Returns the frames mapped.
fn kernel_and_processes(world: &World) -> u64 {
    let host = world.mmu.host();
    host.allow(Level::L2);
    let mut guest = Guest::new(World::ROOT);
    let mut map = |gva: u64, gfn: u64, level| {
        guest.map(host, gva, (Gfn::new(gfn), level), PWU | AD);
        gva
    };
    let mut used = alloc::vec::Vec::new();
    used.extend([512, 1024].map(|gfn| map(1 << 39 | gfn << 12, gfn, Level::L2)));
    for i in 0..512 {
        used.push(map(i << 12, 1536 + i, Level::L1));
        if i % 4 == 0 {
            used.push(map(1 << 30 | i << 12, 1536 + i, Level::L1));
        }
        if i % 64 == 0 {
            used.extend((2..10).map(|p| map(p << 30 | i << 12, 1536 + i, Level::L1)));
        }
    }
    world.set_root();
    for gva in used {
        assert_eq!(world.touch(gva, Access::WRITE), FaultOutcome::Resume);
    }
    1536
}

fn check(stats: &Stats, frames: u64) {
    // Pages are allocated 16 at a time.
    let pages = stats.pages.next_multiple_of(16);
    assert!(stats.page_bytes <= pages * PER_PAGE, "{stats:?}");
    let bound = pages * PER_PAGE + frames * PER_FRAME;
    assert!(stats.page_bytes + stats.frame_bytes <= bound, "{stats:?}");
}

#[test]
fn under_shadow_paging() {
    let world = World::new(Engine::Shadow, |_| {});
    let frames = kernel_and_processes(&world);
    let stats = world.mmu.stats();
    assert_eq!(stats.pages, 24);
    check(&stats, frames);
    // Frames that were mapped cost no more than frames that are; pages zapped are used again.
    assert_eq!(world.mmu.zap_all(), stats.pages);
    world.reload();
    kernel_and_processes(&world);
    let again = world.mmu.stats();
    assert_eq!(again.page_bytes, stats.page_bytes);
    check(&again, frames);
}

#[test]
fn under_nested_paging_there_is_none_by_frame() {
    let world = World::new(Engine::Npt, |_| {});
    let before = world.mmu.stats().frame_bytes;
    for gfn in 0..World::FRAMES as u64 {
        let gpa = Gfn::new(gfn).address();
        let done = world
            .vcpu(0)
            .handle_nested_fault(gpa, crate::walk::AccessKind::Read);
        assert_eq!(done, Ok(FaultOutcome::Resume));
    }
    assert_eq!(world.mmu.stats().frame_bytes, before);
}

/// The frames that the worst guests map, from `FIRST` on, and nothing large.
const MAPPED: u64 = 1024;
const FIRST: u64 = 1024;

/// In which order the worst guests use their mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// All of one frame, then of the next.
    ByFrame,
    /// All of one address space, then of the next.
    BySpace,
}

/// Makes a guest that maps every frame once in each of `windows` address spaces (windows of one, with tables of their own).
fn shared_by_all(windows: u64) -> World {
    let world = World::sized(Engine::Shadow, (256, World::FRAMES), |config| {
        // As many for these frames as a guest of some size has.
        config.stripes = 2;
    });
    let mut guest = Guest::new(World::ROOT);
    for window in 0..windows {
        for i in 0..MAPPED {
            let leaf = (Gfn::new(FIRST + i), Level::L1);
            guest.map(world.mmu.host(), window << 30 | i << 12, leaf, PWU | AD);
        }
    }
    world.set_root();
    world
}

/// Touches everything twice, and checks the bound all the way.
fn use_all(world: &World, windows: u64, order: Order) -> Stats {
    for n in 0..2 * windows * MAPPED {
        let n = n % (windows * MAPPED);
        let (window, i) = match order {
            Order::ByFrame => (n % windows, n / windows),
            Order::BySpace => (n / MAPPED, n % MAPPED),
        };
        let done = world.touch(window << 30 | i << 12, Access::WRITE);
        assert_eq!(done, FaultOutcome::Resume);
        // The address that was touched is mapped now.
        let slot = world.slot(window << 30 | i << 12, Level::L1);
        assert!(world.spte(slot).is_present());
    }
    world.mmu.audit(Strictness::Exact).unwrap();
    let stats = world.mmu.stats();
    check(&stats, MAPPED);
    stats
}

#[test]
fn of_a_guest_that_maps_each_frame_twice_at_most() {
    for windows in 1..=2 {
        for order in [Order::ByFrame, Order::BySpace] {
            let world = shared_by_all(windows);
            let stats = use_all(&world, windows, order);
            // And nothing has to make room.
            assert_eq!(stats.get(Event::Recycle), 0);
            assert_eq!(stats.get(Event::Leaf4K), windows * MAPPED);
        }
    }
}

#[test]
fn of_a_guest_whose_every_frame_is_mapped_by_many_address_spaces() {
    for windows in [3, 8, 64] {
        for order in [Order::ByFrame, Order::BySpace] {
            let world = shared_by_all(windows);
            let stats = use_all(&world, windows, order);
            assert!(stats.get(Event::Recycle) > 0);
        }
    }
}
