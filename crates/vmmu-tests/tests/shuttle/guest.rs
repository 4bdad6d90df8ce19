//! What a guest is, and what it does next, at random.
//!
//! Key type: [`Guest`]. One with tables of its own has two roots over two level-1 tables, which map data, and a third, the window, which maps the tables
//! themselves. Two levels of tables are edited: through the window, as a guest does, and by an emulator that reports. One without only reads and writes,
//! in enough places that the smallest limit on tables is reached.

use core::ops::Range;

use vmmu::Engine;
use vmmu::addr::Level;
use vmmu_tests::guest::{A, D, P, PS, U, W, entry, slot};

use crate::processor::Processor;
use crate::program::{CHANGING, LOGGED, Program, USED};
use crate::state::{BLOCK, FRAMES, State};

/// The guest's roots.
pub(crate) const ROOTS: [u64; 2] = [1, 7];
/// The tables of level 2, by root.
const DIRECTORIES: [u64; 2] = [3, 9];
/// The tables of level 1 that map data.
const LEAVES: [u64; 2] = [4, 5];
/// The table of level 1 that maps what the guest edits.
const WINDOW: u64 = 6;
/// The frames of all.
pub(crate) const TABLES: [u64; 8] = [1, 2, 3, 4, 5, 6, 8, 9];
/// The gibibytes beyond the first that a guest without tables uses, and the blocks in each: each takes tables of its own. Tables have four entries here.
const FAR: Range<u64> = 1..4;
const FAR_BLOCKS: u64 = 4;
const GIB: u64 = 1 << 18;

/// Returns the first frame of a block that is far away.
const fn far_block(gib: u64, at: u64) -> u64 {
    gib * GIB + at * BLOCK
}

/// A guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    program: Program,
    pub(crate) engine: Engine,
    /// The largest leaf that the host allows it.
    pub(crate) largest: Level,
    /// It uses memory that is far away, too.
    is_wide: bool,
}

impl Guest {
    /// Chooses a guest for a kind of program.
    pub(crate) fn choose(program: Program, random: &mut fastrand::Rng) -> Self {
        let sizes = [Level::L1, Level::L2, Level::L2];
        let (engine, largest) = match program {
            Program::Small => (Engine::Shadow, Level::L1),
            Program::Large => (Engine::Shadow, sizes[random.usize(..3)]),
            Program::Nested => {
                let engine = [Engine::Npt, Engine::Ept][random.usize(..2)];
                (engine, sizes[random.usize(..3)])
            }
        };
        Self {
            program,
            engine,
            largest,
            is_wide: program == Program::Nested && random.bool(),
        }
    }

    /// Returns the slot of the memory that is far away.
    pub(crate) fn far(&self) -> Option<Range<u64>> {
        self.is_wide.then_some(FAR.start * GIB..FAR.end * GIB)
    }

    /// Returns all frames that there are.
    pub(crate) fn frames(&self) -> Range<u64> {
        0..self.far().map_or(FRAMES, |far| far.end)
    }

    /// Returns the addresses that the guest uses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        let blocks: Vec<u64> = if self.program == Program::Nested {
            let far = FAR.flat_map(|gib| (0..FAR_BLOCKS).map(move |at| far_block(gib, at)));
            [LOGGED.start, CHANGING.start]
                .into_iter()
                .chain(far)
                .collect()
        } else {
            (0..LEAVES.len() as u64).map(|at| at * BLOCK).collect()
        };
        blocks
            .into_iter()
            .flat_map(|first| (0..USED).map(move |page| first + page << 12))
    }

    /// Makes the guest's tables.
    pub(crate) fn boot(&self, state: &mut State) {
        let table = P | W | U | A;
        for (root, directory) in ROOTS.into_iter().zip(DIRECTORIES) {
            state.store(slot(root, 0), entry(root + 1, table));
            state.store(slot(root + 1, 0), entry(directory, table));
            for (i, leaves) in LEAVES.into_iter().chain([WINDOW]).enumerate() {
                state.store(slot(directory, i as u64), entry(leaves, table));
            }
            if self.program == Program::Large {
                state.store(slot(directory, 1), entry(CHANGING.start, table | PS | D));
            }
        }
        for (leaves, first) in LEAVES.into_iter().zip([LOGGED.start, CHANGING.start]) {
            for i in 0..USED {
                state.store(slot(leaves, i), entry(first + i, table | D));
            }
        }
        for (i, edited) in LEAVES.into_iter().chain(DIRECTORIES).enumerate() {
            state.store(slot(WINDOW, i as u64), entry(edited, table | D));
        }
    }

    /// Does something.
    pub(crate) fn step(&self, processor: &mut Processor) {
        if self.program == Program::Nested {
            self.step_nested(processor);
        } else {
            self.step_with_tables(processor);
        }
    }

    /// Reads or writes, mostly what the host works on.
    fn step_nested(&self, processor: &mut Processor) {
        let random = &mut processor.random;
        let start = match random.u8(..4) {
            2.. if self.is_wide => far_block(random.u64(FAR), random.u64(..FAR_BLOCKS)),
            0 => LOGGED.start,
            _ => CHANGING.start,
        };
        let gpa = start + random.u64(..USED) << 12;
        let value = random.bool().then_some(0);
        processor.access(gpa, value);
    }

    fn step_with_tables(&self, processor: &mut Processor) {
        let random = &mut processor.random;
        let va = random.u64(..2) << 21 | random.u64(..USED) << 12;
        match random.u8(..16) {
            0..7 => {
                let value = random.bool().then_some(0);
                processor.access(va, value);
            }
            7..10 => {
                let (place, index, value) = self.edit(random);
                let edited = 2 << 21 | place << 12 | index << 3;
                processor.access(edited, Some(value));
                if processor.random.bool() {
                    processor.invlpg(va);
                }
            }
            10..12 => {
                let (place, index, value) = self.edit(random);
                let table = [LEAVES, DIRECTORIES].concat()[place as usize];
                processor.write_and_report(slot(table, index), value);
            }
            12..14 => {
                let root = ROOTS[random.usize(..2)];
                processor.load_root(root);
            }
            14 => {
                let (root, protects) = (ROOTS[random.usize(..2)], random.bool());
                processor.set_paging(root, protects);
            }
            _ => processor.invlpg(va),
        }
    }

    /// Returns an edit of a table: its place in the window, the entry, and what it becomes.
    fn edit(&self, random: &mut fastrand::Rng) -> (u64, u64, u64) {
        let rights = P | U | if random.u8(..4) != 0 { W } else { 0 };
        let used = [0, A, A | D, A | D][random.usize(..4)];
        let is_gone = random.u8(..6) == 0;
        let place = random.u64(..4);
        let first = [LOGGED.start, CHANGING.start][random.usize(..2)];
        let table = LEAVES[random.usize(..2)];
        let (index, target) = if place < 2 {
            let data = entry(first + random.u64(..USED), 0);
            let is_data = random.u8(..8) != 0;
            let target = if is_data { data } else { entry(table, 0) };
            (random.u64(..USED), target)
        } else {
            let is_large = self.program == Program::Large && random.bool();
            let target = if is_large {
                entry(first, PS)
            } else {
                entry(table, 0)
            };
            (random.u64(..2), target)
        };
        let value = if is_gone { 0 } else { target | rights | used };
        (place, index, value)
    }
}
