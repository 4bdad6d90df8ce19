//! The address space of a process: what is mapped where, and how a page gets there.
//!
//! Key types: [`Space`], [`Reply`].
//!
//! Invariants:
//! 1. Entry 0 of every root leads to the kernel's own mapping; a process's memory is what entry 1 leads to.
//! 2. A page that two spaces share is read-only in both, and marked [`COPY`] if its owner may write.
//! 3. A present entry loses a right only together with an invalidation before the process goes on.

use vmmu_guest::machine::register::{invalidate_page, load_root};
use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::memory::Frames;

/// Where a program lies.
pub(crate) const CODE: Va = Va::new(Va::LOWEST);
/// Where its stack begins; it grows down from the page's end.
pub(crate) const STACK: Va = Va::new(Va::LOWEST + (1 << 21));
/// Memory that is there when it is first touched.
pub(crate) const HEAP: Va = Va::new(Va::LOWEST + (1 << 30));
/// Pages of it.
pub(crate) const HEAP_PAGES: u64 = 512;
/// Where system calls map memory.
pub(crate) const AREA: Va = Va::new(Va::LOWEST + (2 << 30));
/// Pages of it.
pub(crate) const AREA_PAGES: u64 = 512;

/// The kernel's own mapping, as the entry code left it.
const KERNEL: Entry = Entry::raw(0x2000 | Entry::P | Entry::W | Entry::A);
/// A table's entry: rights are the leaf's affair.
const LINK: u64 = Entry::P | Entry::W | Entry::U;
/// A page's: readable.
const READ: u64 = Entry::P | Entry::U;
/// An ignored bit of an entry (AMD APM vol. 2, section 5.4: available to software): writes get a copy.
const COPY: u64 = 1 << 9;
/// Which entry of a root is a process's.
const OWN: usize = 1;

/// What a page fault led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Reply {
    /// The process can go on.
    Served,
    /// It has no right to what it tried.
    Refused,
}

/// An address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    root: Frame,
}

impl Space {
    /// Makes one with the kernel's mapping alone.
    pub(crate) fn new(frames: &mut Frames) -> Self {
        let root = frames.take_cleared();
        root.set(0, KERNEL);
        Self { root }
    }

    /// Makes it the processor's.
    pub(crate) fn load(self) {
        load_root(self.root);
    }

    /// Maps a page that the space gets a frame of its own for.
    pub(crate) fn map(self, frames: &mut Frames, at: Va, frame: Frame, rights: u64) {
        let (table, index) = self.slot(frames, at);
        table.set(index, Entry::new(frame, READ | rights));
    }

    /// Removes `pages` pages from `at` on, those that are there, and makes the processor forget them.
    pub(crate) fn unmap(self, frames: &mut Frames, at: Va, pages: u64) {
        for page in 0..pages {
            let at = at.page(page);
            let (table, index) = self.slot(frames, at);
            let entry = table.get(index);
            if entry.has(Entry::P) {
                table.set(index, Entry::EMPTY);
                invalidate_page(at);
                frames.release(entry.frame());
            }
        }
    }

    /// Answers a page fault with error code `code` at `at`.
    pub(crate) fn fault(self, frames: &mut Frames, at: u64, code: u64) -> Reply {
        let Some(at) = Self::page(at) else {
            return Reply::Refused;
        };
        let (table, index) = self.slot(frames, at);
        let entry = table.get(index);
        if !entry.has(Entry::P) {
            let frame = frames.take_cleared();
            table.set(index, Entry::new(frame, READ | Entry::W));
            Reply::Served
        } else if code & 2 != 0 && entry.has(COPY) {
            Self::own(frames, table, index);
            invalidate_page(at);
            Reply::Served
        } else {
            Reply::Refused
        }
    }

    /// Makes a shared page the space's own: by a copy, or by its being the last user.
    fn own(frames: &mut Frames, table: Frame, index: usize) {
        let mut frame = table.get(index).frame();
        if frames.is_shared(frame) {
            let copy = frames.take();
            copy.copy_from(frame);
            frames.release(frame);
            frame = copy;
        }
        table.set(index, Entry::new(frame, READ | Entry::W));
    }

    /// Makes a space with the same content; pages that may be written are shared until one of the two writes.
    pub(crate) fn fork(self, frames: &mut Frames) -> Self {
        let child = Self::new(frames);
        let top = Self::copy(frames, self.root.get(OWN), Level::Pdpt);
        child.root.set(OWN, top);
        // Rights were taken away in this space: forget all that is cached of it.
        self.load();
        child
    }

    /// Copies the subtree under `entry`, which leads to a table of `level`.
    fn copy(frames: &mut Frames, entry: Entry, level: Level) -> Entry {
        let (from, to) = (entry.frame(), frames.take_cleared());
        for index in 0..512 {
            let lower = from.get(index);
            if !lower.has(Entry::P) {
                continue;
            }
            let copied = match below(level) {
                Some(next) => Self::copy(frames, lower, next),
                None => Self::share(frames, from, index),
            };
            to.set(index, copied);
        }
        Entry::new(to, LINK)
    }

    fn share(frames: &mut Frames, table: Frame, index: usize) -> Entry {
        let entry = table.get(index);
        frames.share(entry.frame());
        let may_write = entry.has(Entry::W) || entry.has(COPY);
        let shared = Entry::new(entry.frame(), READ | if may_write { COPY } else { 0 });
        table.set(index, shared);
        shared
    }

    /// Gives everything back. The processor uses another root already.
    pub(crate) fn drop(self, frames: &mut Frames) {
        let top = self.root.get(OWN);
        if top.has(Entry::P) {
            Self::release(frames, top, Level::Pdpt);
        }
        frames.release(self.root);
    }

    fn release(frames: &mut Frames, entry: Entry, level: Level) {
        let table = entry.frame();
        for index in 0..512 {
            let lower = table.get(index);
            if lower.has(Entry::P) {
                match below(level) {
                    Some(next) => Self::release(frames, lower, next),
                    None => frames.release(lower.frame()),
                }
            }
        }
        frames.release(table);
    }

    /// Returns where the entry of the page at `at` sits, with tables made on the way.
    fn slot(self, frames: &mut Frames, at: Va) -> (Frame, usize) {
        let mut table = self.root;
        for level in [Level::Pml4, Level::Pdpt, Level::Pd] {
            let index = at.index(level);
            if !table.get(index).has(Entry::P) {
                table.set(index, Entry::new(frames.take_cleared(), LINK));
            }
            table = table.get(index).frame();
        }
        (table, at.index(Level::Pt))
    }

    /// Returns the page of an address that a process may touch.
    fn page(at: u64) -> Option<Va> {
        let inside = |start: Va, pages: u64| {
            at.checked_sub(start.value())
                .is_some_and(|offset| offset >> 12 < pages)
        };
        let known = inside(CODE, 1)
            || inside(STACK, 1)
            || inside(HEAP, HEAP_PAGES)
            || inside(AREA, AREA_PAGES);
        known.then(|| Va::new(at & !0xfff))
    }
}

/// Returns the level below a table's, unless that is the leaves'.
const fn below(level: Level) -> Option<Level> {
    match level {
        Level::Pml4 => Some(Level::Pdpt),
        Level::Pdpt => Some(Level::Pd),
        Level::Pd => Some(Level::Pt),
        Level::Pt => None,
    }
}
