//! What an operating system does with page tables: demand paging, copy-on-write, many address spaces.

use vmmu_guest::machine::register::invalidate_page;
use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::access::{Check, Kind, Outcome, Privilege, same};
use crate::lab::{DATA, Lab, PWU, tag};
use crate::probe;

use Kind::{Load, Store};
use Privilege::{Supervisor, User};

/// Pages that are mapped by the page-fault handler, which then returns to the instruction.
pub(crate) fn demand_paging(lab: &mut Lab) -> Check {
    let va = Va::new(0x130_0000_0000);
    let (table, _) = lab.slot(va, Level::Pt);
    for page in 0..100 {
        lab.data(page);
        probe::repair(1, (table, page as usize), Entry::new(DATA.next(page), PWU));
        let at = va.page(page).plus(8);
        if page % 3 == 0 {
            same("load", at.value(), at.load(), DATA.next(page).get(1).bits())?;
        } else {
            at.store(page);
            same("stored", at.value(), DATA.next(page).get(1).bits(), page)?;
        }
        same("faults missing", at.value(), probe::repairs_left(), 0)?;
        lab.expect_frame(va.page(page), page)?;
    }
    Ok(())
}

/// A string copy that faults in the middle, at the source and at the destination, and goes on.
pub(crate) fn interrupted_copy(lab: &mut Lab) -> Check {
    let (from, to) = (Va::new(0x130_4000_0000), Va::new(0x130_8000_0000));
    for page in 0..2 {
        lab.map_data(from.page(page), 30 + page, PWU);
        lab.map_data(to.page(page), 40 + page, PWU);
    }
    for index in 0..512 {
        for page in 0..2 {
            DATA.next(30 + page)
                .set(index, Entry::raw(page << 32 | 0x5_0000 | index as u64));
        }
    }
    let (source_table, index) = lab.slot(from.page(1), Level::Pt);
    source_table.set(index, Entry::EMPTY);
    lab.flush();
    probe::repair(1, (source_table, index), Entry::new(DATA.next(31), PWU));
    to.plus(5).copy_from(from.plus(5), 8000);
    same("faults missing", from.value(), probe::repairs_left(), 0)?;
    for word in 1..1000 {
        same(
            "copied word",
            word,
            to.plus(8 * word).load(),
            from.plus(8 * word).load(),
        )?;
    }
    let (table, index) = lab.slot(to.page(1), Level::Pt);
    table.set(index, Entry::new(DATA.next(41), Entry::P | Entry::U));
    invalidate_page(to.page(1));
    DATA.next(30).set(500, Entry::raw(0x1234));
    DATA.next(31).set(20, Entry::raw(0x5678));
    probe::repair(1, (table, index), Entry::new(DATA.next(41), PWU));
    to.copy_from(from, 8192);
    same("faults missing", to.value(), probe::repairs_left(), 0)?;
    same("copied word", 500, DATA.next(40).get(500).bits(), 0x1234)?;
    same("copied word", 532, DATA.next(41).get(20).bits(), 0x5678)
}

/// Pages of a family of processes.
const PAGES: u64 = 48;
const PROCESS: Va = Va::new(0x40_0000_0000 * 2 + 0x40_0000);

/// Forks: parent and child share read-only pages, each store faults and gets a copy, the child dies, its frames serve the
/// next one.
pub(crate) fn fork_and_copy(lab: &mut Lab) -> Check {
    let parent = lab.root;
    for page in 0..PAGES {
        lab.map_data(PROCESS.page(page), page, PWU);
        lab.check(Store, User, PROCESS.page(page).plus(8))?;
    }
    let pool = lab.pool.clone();
    for generation in 0..6 {
        lab.pool = pool.clone();
        let child = lab.new_root();
        share(lab, parent, child)?;
        lab.switch(child);
        for page in (generation..PAGES).step_by(2) {
            copy_on_write(lab, page, 1000 + generation * 7 + page, generation)?;
        }
        lab.switch(parent);
        for page in 0..PAGES {
            // The parent's frames are as they were: the child wrote to its own.
            lab.expect_frame(PROCESS.page(page), page)?;
            same(
                "parent's word",
                page,
                PROCESS.page(page).plus(16).load(),
                DATA.next(page).get(2).bits(),
            )?;
            lab.expect_fault(Store, User, PROCESS.page(page).plus(8), 7)?;
            let bits = lab.get(PROCESS.page(page), Level::Pt).bits();
            lab.set(PROCESS.page(page), Level::Pt, Entry::raw(bits | Entry::W));
            invalidate_page(PROCESS.page(page));
            lab.check(Store, User, PROCESS.page(page).plus(8))?;
        }
    }
    Ok(())
}

/// Makes the parent's pages read-only and maps them in the child, as fork does.
fn share(lab: &mut Lab, parent: Frame, child: Frame) -> Check {
    for page in 0..PAGES {
        let va = PROCESS.page(page);
        let (table, index) = parent.slot(va, Level::Pt, &mut lab.pool, PWU);
        let entry = Entry::raw(table.get(index).bits() & !Entry::W);
        table.set(index, entry);
        let (table, index) = child.slot(va, Level::Pt, &mut lab.pool, PWU);
        table.set(index, entry);
    }
    lab.flush();
    Ok(())
}

/// The child stores to a shared page: it faults, gets a frame of its own, and stores.
fn copy_on_write(lab: &mut Lab, page: u64, number: u64, value: u64) -> Check {
    let va = PROCESS.page(page);
    lab.expect_frame(va, page)?;
    lab.expect_fault(Store, User, va.plus(16), 7)?;
    let copy = DATA.next(number);
    for index in 0..512 {
        copy.set(index, DATA.next(page).get(index));
    }
    lab.map(va, copy, PWU);
    invalidate_page(va);
    lab.check_value(Store, User, va.plus(16), value)?;
    lab.expect_frame(va, page)?;
    same("copied word", page, copy.get(2).bits(), value)
}

/// Eight roots that map the same addresses differently, in turn and at random.
pub(crate) fn switching(lab: &mut Lab) -> Check {
    let mut roots = [lab.root; 8];
    for (number, root) in (0..).zip(&mut roots) {
        *root = lab.new_root();
        lab.switch(*root);
        for page in 0..16 {
            lab.map_data(PROCESS.page(page), number * 16 + page, PWU);
        }
    }
    let mut random = 12345_u64;
    for round in 0..400 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let number = if round < 100 {
            round % 8
        } else {
            random >> 40 & 7
        };
        lab.switch(roots[number as usize]);
        let page = random >> 50 & 15;
        lab.expect_frame(PROCESS.page(page), number * 16 + page)?;
        lab.check(Store, User, PROCESS.page(page).plus(8))?;
    }
    Ok(())
}

/// Two roots share a table, and a change made under one is seen under the other after its CR3 load.
pub(crate) fn shared_kernel_half(lab: &mut Lab) -> Check {
    let va = Va::new(0xffff_c000_0000_0000);
    lab.map_data(va, 1, PWU);
    let (home, other) = (lab.root, lab.new_root());
    let slot = va.index(Level::Pml4);
    other.set(slot, home.get(slot));
    for round in 0..40 {
        lab.switch(if round % 2 == 0 { home } else { other });
        lab.map_data(va, round % 11, PWU);
        lab.switch(if round % 2 == 0 { other } else { home });
        lab.expect_frame(va, round % 11)?;
        lab.check(Store, Supervisor, va.plus(8))?;
    }
    Ok(())
}

/// Short lives: a root and its tables are built, used and forgotten, their frames reused at once and at other levels.
pub(crate) fn short_lives(lab: &mut Lab) -> Check {
    let (home, pool) = (lab.root, lab.pool.clone());
    for life in 0..40_u64 {
        lab.pool = pool.clone();
        // The same frames serve as another level each time.
        lab.pool.take_uncleared(life % 4);
        let root = lab.new_root();
        lab.switch(root);
        let va = PROCESS.page(life * 1000);
        for page in 0..24 {
            lab.map_data(va.page(page), life * 3 + page, PWU);
        }
        for page in 0..24 {
            lab.expect_frame(va.page(page), life * 3 + page)?;
            lab.check(Store, User, va.page(page).plus(8))?;
        }
        lab.expect_fault(Load, User, va.page(25), 4)?;
        lab.switch(home);
        lab.expect(
            Load,
            User,
            va,
            Outcome::PageFault {
                code: 4,
                address: va.value(),
            },
        )?;
    }
    Ok(())
}

/// More pages and tables than a small limit on shadow pages allows, spread over several roots, all used again and again.
pub(crate) fn large_working_set(lab: &mut Lab) -> Check {
    const ROOTS: usize = 4;
    let mut roots = [lab.root; ROOTS];
    for (number, root) in (0..).zip(&mut roots) {
        *root = lab.new_root();
        lab.switch(*root);
        for page in 0..600 {
            lab.map_data(spread(page), number * 100 + page, PWU);
        }
    }
    for round in 0..2 {
        for (number, root) in (0..).zip(roots) {
            lab.switch(root);
            for page in 0..600 {
                let va = spread(page);
                same(
                    "frame",
                    va.value(),
                    va.load(),
                    tag(DATA.next(number * 100 + page)),
                )?;
                va.plus(8).store(va.value() + round);
                same(
                    "stored",
                    va.value(),
                    DATA.next(number * 100 + page).get(1).bits(),
                    va.value() + round,
                )?;
            }
        }
    }
    Ok(())
}

/// Addresses that need a leaf table for every eight pages.
fn spread(page: u64) -> Va {
    Va::new(0x140_0000_0000 + ((page / 8) << 21) + ((page % 8) << 12))
}
