//! The phases, in the order in which they run.
//!
//! The order is part of the measurement: a phase finds the tables (and a hypervisor's shadows of them) as the phases
//! before it left them. Phase numbers are not in running order; the peer's records have the same ones.

use vmmu_guest::machine::register::{self, load_root};
use vmmu_guest::machine::{Entry, Frame, FramePool, Level, Va};

use crate::fault::{self, Invalidation};
use crate::loops::{self, Slot};
use crate::{Failure, measure};

/// Leaf and table bits with accessed and dirty already set.
const AD: u64 = Entry::P | Entry::W | Entry::U | Entry::A | Entry::D;
/// Leaf bits without accessed and dirty.
const NO_AD: u64 = Entry::P | Entry::W | Entry::U;
/// The first data page.
const DATA: Frame = Frame::at(0x100_0000);
/// The root's entry for the image: the bootstrap page-directory-pointer table.
const IMAGE_ENTRY: Entry = Entry::raw(0x2000 | NO_AD | Entry::A);
/// Where the phases' windows begin.
const BASE: Va = Va::new(Va::LOWEST);
/// Pages in a leaf table.
const TABLE_PAGES: u64 = 512;

/// The window of 1 GiB with number `number`.
const fn window(number: u64) -> Va {
    Va::new(BASE.value() + (number << 30))
}

/// Everything that the phases share.
struct Guest {
    pool: FramePool,
    root: Frame,
    /// The next data page that no phase has touched.
    fresh: Frame,
}

/// How a phase touches a page.
#[derive(Clone, Copy)]
enum Touch {
    Load,
    Store,
}

/// Pages to touch: one in every `stride`, `count` times.
#[derive(Clone, Copy)]
struct Fresh {
    window: Va,
    count: u32,
    stride: u64,
    bits: u64,
    touch: Touch,
}

/// Runs every phase.
pub(crate) fn run_all() -> Result<(), Failure> {
    let mut pool = FramePool::new(Frame::at(0x20_0000), Frame::at(0x80_0000));
    let root = new_root(&mut pool);
    load_root(root);
    let mut guest = Guest {
        pool,
        root,
        fresh: DATA,
    };
    exits();
    guest.touch_fresh();
    guest.touch_known();
    guest.switch_roots();
    let slot = guest.rewrite_leaf();
    guest.swap_tables(slot);
    guest.rewrite_table(slot);
    guest.faults(slot)?;
    guest.lives();
    measure(18, 2000, || loops::invalidate(2000, window(5)));
    let cr4 = register::cr4();
    measure(19, 500, || loops::toggle_global_pages(500, cr4));
    guest.rewrite_lonely_leaf();
    measure(21, 2000, || loops::read_apic_base(2000));
    check_data()
}

/// Phases 0 to 2: the marks themselves, no exit at all, and the exit that does least.
fn exits() {
    for _ in 0..3 {
        measure(0, 1, || {});
    }
    measure(1, 100_000, || loops::nop(100_000));
    for _ in 0..2 {
        measure(2, 2000, || loops::cpuid(2000));
    }
}

/// A root that maps the image as the bootstrap tables do, and nothing else.
fn new_root(pool: &mut FramePool) -> Frame {
    let root = pool.take();
    root.set(0, IMAGE_ENTRY);
    root
}

impl Guest {
    /// Maps the page at `va` to `frame` under `root`.
    fn map(&mut self, root: Frame, va: Va, frame: Frame, bits: u64) {
        map(&mut self.pool, root, va, frame, bits);
    }

    /// The leaf table of `va` under this guest's root, and the index in it.
    fn leaf(&mut self, va: Va) -> (Frame, usize) {
        self.root.slot(va, Level::Pt, &mut self.pool, AD)
    }

    /// Phases 3 to 6: pages that neither the guest nor a hypervisor has touched.
    fn touch_fresh(&mut self) {
        let sequential = Fresh {
            window: window(0),
            count: 1024,
            stride: 1,
            bits: AD,
            touch: Touch::Load,
        };
        self.touch(3, sequential);
        self.touch(
            4,
            Fresh {
                window: window(1),
                touch: Touch::Store,
                ..sequential
            },
        );
        self.touch(
            5,
            Fresh {
                window: window(2),
                bits: NO_AD,
                touch: Touch::Store,
                ..sequential
            },
        );
        self.touch(
            6,
            Fresh {
                window: window(3),
                count: 512,
                stride: 8,
                bits: AD,
                touch: Touch::Store,
            },
        );
    }

    fn touch(&mut self, phase: u8, fresh: Fresh) {
        let pages = u64::from(fresh.count) * fresh.stride;
        for page in 0..pages {
            self.map(
                self.root,
                fresh.window.page(page),
                self.fresh.next(page),
                fresh.bits,
            );
        }
        self.fresh = self.fresh.next(pages);
        load_root(self.root);
        // The upper levels are warm, so only leaves are measured.
        let last = fresh.window.page(pages - 1);
        last.store(last.value());
        let stride = fresh.stride << 12;
        match fresh.touch {
            Touch::Load => measure(phase, fresh.count, || {
                loops::load(fresh.count, fresh.window, stride)
            }),
            Touch::Store => measure(phase, fresh.count, || {
                loops::store(fresh.count, fresh.window, stride)
            }),
        }
    }

    /// Phase 7: pages that a hypervisor knows, at addresses that it doesn't.
    fn touch_known(&mut self) {
        let first = window(4);
        for page in 0..1024 {
            self.map(self.root, first.page(page), DATA.next(page), NO_AD);
        }
        load_root(self.root);
        let last = first.page(1023);
        last.store(last.value());
        measure(7, 1023, || loops::store_pages(first, last));
    }

    /// Phases 8 to 10: the same root again, two roots in turn, eight roots in turn.
    fn switch_roots(&mut self) {
        const PAGES: u64 = 16;
        let roots: [Frame; 8] = core::array::from_fn(|number| {
            let root = new_root(&mut self.pool);
            for page in 0..PAGES {
                self.map(
                    root,
                    BASE.page(page),
                    DATA.next(number as u64 * PAGES + page),
                    AD,
                );
            }
            root
        });
        for root in roots {
            load_root(root);
            loops::store_pages(BASE, BASE.page(PAGES));
        }
        for root in roots {
            load_root(root);
            BASE.store(BASE.value());
        }
        load_root(roots[0]);
        let roots_in_memory = roots.map(Frame::address);
        measure(8, 2000, || loops::load_root(2000, &roots_in_memory[0]));
        load_root(roots[0]);
        load_root(roots[1]);
        measure(9, 2000, || {
            loops::switch_roots::<1>(2000, &roots_in_memory, BASE)
        });
        measure(10, 2000, || {
            loops::switch_roots::<7>(2000, &roots_in_memory, BASE)
        });
    }

    /// Phases 11 and 12: one entry of a full leaf table is rewritten, then flushed by INVLPG or by CR3.
    fn rewrite_leaf(&mut self) -> (Frame, usize) {
        load_root(self.root);
        let first = window(5);
        for page in 0..TABLE_PAGES {
            self.map(self.root, first.page(page), DATA.next(page), AD);
        }
        let leaf = self.leaf(first);
        load_root(self.root);
        loops::store_pages(first, first.page(TABLE_PAGES));
        load_root(self.root);
        let (slot, root) = (Slot::new(leaf), self.root);
        measure(11, 2000, || {
            loops::rewrite_invalidate(2000, slot, DATA, AD, first)
        });
        measure(12, 2000, || {
            loops::rewrite_load_root(2000, slot, DATA, AD, first, root)
        });
        leaf
    }

    /// Phase 13: a directory entry points at two leaf tables in turn.
    fn swap_tables(&mut self, (table, _): (Frame, usize)) {
        let first = window(5);
        let (directory, index) = self.root.slot(first, Level::Pd, &mut self.pool, AD);
        let other = self.pool.take();
        for page in 0..TABLE_PAGES {
            other.set(page as usize, Entry::new(DATA.next(TABLE_PAGES + page), AD));
        }
        let (before, after) = (Entry::new(table, AD), Entry::new(other, AD));
        let slot = Slot::new((directory, index));
        measure(13, 1000, || {
            loops::swap_tables(1000, slot, after, before, first)
        });
        directory.set(index, before);
        load_root(self.root);
    }

    /// Phase 14: a whole leaf table is rewritten, CR3 loaded, every page touched; eight times.
    fn rewrite_table(&mut self, leaf: (Frame, usize)) {
        let (first, end, slot, root) = (
            window(5),
            window(5).page(TABLE_PAGES),
            Slot::new(leaf),
            self.root,
        );
        measure(14, 4096, || {
            for round in 0..8 {
                loops::fill_table(slot, DATA.next(round * 7), AD);
                load_root(root);
                loops::store_pages(first, end);
            }
        });
    }

    /// Phases 15 and 16: the guest's own page faults, copy-on-write and on demand.
    fn faults(&mut self, (table, _): (Frame, usize)) -> Result<(), Failure> {
        const PAGE: usize = 3;
        load_root(self.root);
        let at = window(5).page(PAGE as u64);
        let (frame, slot) = (DATA.next(PAGE as u64), Slot::new((table, PAGE)));
        let whole = Entry::new(frame, AD);
        let read_only = Entry::new(frame, AD & !Entry::W);
        fault::repair((table, PAGE), whole, Invalidation::Page);
        measure(15, 1000, || {
            loops::store_to_entry(1000, slot, read_only, at)
        });
        fault::repair((table, PAGE), whole, Invalidation::None);
        measure(16, 1000, || {
            loops::store_to_entry(1000, slot, Entry::EMPTY, at)
        });
        if fault::count() == 2000 {
            Ok(())
        } else {
            Err(Failure::FaultCount)
        }
    }

    /// Phase 17: a new root and private tables for 64 pages, switched to, touched, left; its frames serve the next one.
    fn lives(&mut self) {
        let end = BASE.page(64);
        let (root, home) = (self.pool.take_uncleared(4), self.root);
        let tables = root.next(1);
        for _ in 0..2 {
            measure(17, 50, || {
                for _ in 0..50 {
                    root.clear();
                    root.set(0, IMAGE_ENTRY);
                    loops::map_pages(root, BASE, end, DATA, tables);
                    load_root(root);
                    loops::store_pages(BASE, end);
                    load_root(home);
                }
            });
        }
    }

    /// Phase 20: as phase 12, in a leaf table with nothing else in it.
    fn rewrite_lonely_leaf(&mut self) {
        let first = window(6);
        self.map(self.root, first, DATA, AD);
        let slot = Slot::new(self.leaf(first));
        load_root(self.root);
        first.store(first.value());
        let root = self.root;
        measure(20, 2000, || {
            loops::rewrite_load_root(2000, slot, DATA, AD, first, root)
        });
    }
}

/// Maps the page at `va` to `frame` under `root`, with tables from `pool`.
#[inline(always)]
fn map(pool: &mut FramePool, root: Frame, va: Va, frame: Frame, bits: u64) {
    let (table, index) = root.slot(va, Level::Pt, pool, AD);
    table.set(index, Entry::new(frame, bits));
}

/// The pages that phases 4 to 6 wrote, and nobody after them, hold their addresses.
fn check_data() -> Result<(), Failure> {
    let holds = |frame: Frame, va: Va| frame.get(0) == Entry::raw(va.value());
    let sequential = [(1, 1024), (2, 2048)].into_iter().all(|(number, first)| {
        (0..1024).all(|page| holds(DATA.next(first + page), window(number).page(page)))
    });
    let sparse = (0..512).all(|page| holds(DATA.next(3072 + page * 8), window(3).page(page * 8)));
    if sequential && sparse {
        Ok(())
    } else {
        Err(Failure::Data)
    }
}
