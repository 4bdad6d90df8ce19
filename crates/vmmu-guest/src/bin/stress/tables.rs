//! Page tables that are reached in unusual ways: by themselves, through other addresses, by odd instructions.

use vmmu_guest::machine::register::invalidate_page;
use vmmu_guest::machine::{Entry, Level, Va};

use crate::access::{Check, Kind, Outcome, Privilege, same, same_outcome};
use crate::lab::{DATA, Lab, PWU, tag};
use crate::probe::{self, AlignmentCheck};

use Kind::{Load, Store};
use Privilege::{Supervisor, User};

/// Where a root's recursive entry sits, and the address of the leaf entry of `va` through it.
const RECURSIVE: u64 = 300;
fn leaf_entry_at(va: Va) -> Va {
    let canonical = 0xffff_0000_0000_0000;
    Va::new(canonical | RECURSIVE << 39 | (va.value() & 0xffff_ffff_f000) >> 9)
}

/// A root that contains itself: leaf entries are read and written through it.
pub(crate) fn recursive_root(lab: &mut Lab) -> Check {
    let va = Va::new(0x120_0000_0000);
    lab.map_data(va, 1, PWU);
    lab.map_data(va.page(1), 2, PWU);
    let root = lab.root;
    root.set(RECURSIVE as usize, Entry::new(root, PWU));
    let at = leaf_entry_at(va);
    same(
        "entry through itself",
        at.value(),
        at.load() & !0x60,
        lab.get(va, Level::Pt).bits() & !0x60,
    )?;
    for round in 0..40 {
        let number = round % 9;
        lab.data(number);
        at.store(Entry::new(DATA.next(number), PWU).bits());
        invalidate_page(va);
        lab.expect_frame(va, number)?;
        lab.check(Store, User, va.plus(8))?;
        lab.expect_frame(va.page(1), 2)?;
        lab.check(Load, User, at)?;
    }
    // The root's own entries, at the end of the recursion.
    let own = Va::new(
        0xffff_0000_0000_0000
            | RECURSIVE << 39
            | RECURSIVE << 30
            | RECURSIVE << 21
            | RECURSIVE << 12,
    );
    for index in [2, RECURSIVE, 511] {
        lab.check(Load, Supervisor, own.plus(8 * index))?;
    }
    Ok(())
}

/// A leaf table is mapped as data elsewhere; entries written there count.
pub(crate) fn table_as_data(lab: &mut Lab) -> Check {
    let (va, alias) = (Va::new(0x120_4000_0000), Va::new(0x120_8000_0000));
    lab.map_data(va, 3, PWU);
    let (table, index) = lab.slot(va, Level::Pt);
    lab.map(alias, table, PWU);
    let at = alias.plus(8 * index as u64);
    for round in 0..40 {
        let number = 3 + round % 5;
        lab.data(number);
        lab.check_value(
            Store,
            if round % 2 == 0 { User } else { Supervisor },
            at,
            Entry::new(DATA.next(number), PWU).bits(),
        )?;
        invalidate_page(va);
        lab.expect_frame(va, number)?;
        lab.check(Load, User, at)?;
    }
    // Upper levels too.
    let other = lab.pool.take();
    other.set(0, Entry::new(lab.data(77), PWU));
    let (directory, index) = lab.slot(va, Level::Pd);
    lab.map(alias.page(1), directory, PWU);
    let at = alias.page(1).plus(8 * index as u64);
    for round in 0..10 {
        let (entry, number) = if round % 2 == 0 {
            (Entry::new(other, PWU), 77)
        } else {
            (Entry::new(table, PWU), 7)
        };
        table.set(0, Entry::new(lab.data(7), PWU));
        lab.check_value(Store, User, at, entry.bits())?;
        lab.flush();
        lab.expect_frame(va, number)?;
    }
    Ok(())
}

/// A leaf table that maps itself: a store through it may change the very entry that it went through.
pub(crate) fn table_maps_itself(lab: &mut Lab) -> Check {
    let va = Va::new(0x120_c000_0000);
    let (table, index) = lab.slot(va, Level::Pt);
    lab.map(va, table, PWU);
    lab.map_data(va.page(1), 4, PWU);
    for round in 0..30 {
        let number = 4 + round % 6;
        lab.data(number);
        let next = Entry::new(DATA.next(number), PWU).bits();
        // The neighbour's entry.
        lab.check_value(Store, User, va.plus(8 * (index as u64 + 1)), next)?;
        invalidate_page(va.page(1));
        lab.expect_frame(va.page(1), number)?;
        // Its own: after the flush the page is data.
        lab.check_value(Store, Supervisor, va.plus(8 * index as u64), next)?;
        invalidate_page(va);
        lab.expect_frame(va, number)?;
        table.set(index, Entry::new(table, PWU));
        invalidate_page(va);
        lab.check(Load, User, va.plus(8 * index as u64))?;
    }
    Ok(())
}

/// Code that rewrites the entry of the page it runs in: `mov [rdi], rsi; int3` on a page whose entry RDI names.
pub(crate) fn code_changes_its_own_entry(lab: &mut Lab) -> Check {
    const STORE_AND_STOP: u64 = 0xcc37_8948;
    let (va, alias) = (Va::new(0x121_0000_0000), Va::new(0x121_4000_0000));
    let code = [lab.data(200), lab.data(201)];
    for frame in code {
        frame.set(2, Entry::raw(STORE_AND_STOP));
    }
    lab.map(va, code[0], PWU);
    let (table, index) = lab.slot(va, Level::Pt);
    lab.map(alias, table, PWU);
    let at = alias.plus(8 * index as u64);
    for round in 0..20 {
        let next = Entry::new(code[(round + 1) % 2], PWU);
        probe::store_by_code_at(
            va.plus(16),
            if round % 3 == 0 { User } else { Supervisor },
            at,
            next.bits(),
        );
        same(
            "entry",
            at.value(),
            table.get(index).bits() & !0x60,
            next.bits(),
        )?;
        invalidate_page(va);
        lab.expect_frame(va, 200 + (round as u64 + 1) % 2)?;
    }
    // The same when the table's own page is the one that the code runs in.
    table.set(100, Entry::raw(STORE_AND_STOP));
    let inside = alias.plus(8 * 100);
    let (alias_table, alias_index) = lab.slot(alias, Level::Pt);
    lab.flush();
    for round in 0..10 {
        let next = Entry::new(code[round % 2], PWU);
        probe::store_by_code_at(inside, Supervisor, at, next.bits());
        invalidate_page(va);
        lab.expect_frame(va, 200 + round as u64 % 2)?;
        same(
            "alias entry",
            alias.value(),
            alias_table.get(alias_index).frame().address(),
            table.address(),
        )?;
    }
    Ok(())
}

/// One frame as a leaf table and as a directory at once.
pub(crate) fn table_at_two_levels(lab: &mut Lab) -> Check {
    let (small, upper) = (Va::new(0x122_0000_0000), Va::new(0x123_0000_0000));
    let (inner, double) = (lab.pool.take(), lab.pool.take());
    inner.set(3, Entry::new(lab.data(30), PWU));
    inner.set(4, Entry::new(lab.data(31), PWU));
    double.set(0, Entry::new(inner, PWU));
    double.set(1, Entry::new(lab.data(32), PWU));
    lab.set(small, Level::Pd, Entry::new(double, PWU));
    lab.set(upper, Level::Pdpt, Entry::new(double, PWU));
    lab.flush();
    for _ in 0..5 {
        lab.check(Load, User, small.plus(24))?;
        lab.expect_frame(small.page(1), 32)?;
        lab.expect_frame(upper.page(3), 30)?;
        lab.check(Store, User, upper.page(4).plus(8))?;
        // As a leaf of `small` entry 0 maps the inner table: a store there changes what `upper` shows.
        lab.check_value(
            Store,
            User,
            small.plus(32),
            Entry::new(lab.data(33), PWU).bits(),
        )?;
        lab.flush();
        lab.expect_frame(upper.page(4), 33)?;
        lab.check_value(
            Store,
            User,
            small.plus(32),
            Entry::new(lab.data(31), PWU).bits(),
        )?;
        invalidate_page(upper.page(4));
        lab.expect_frame(upper.page(4), 31)?;
    }
    Ok(())
}

/// Entries written by bytes, halves, pairs, locked instructions and string instructions.
pub(crate) fn odd_writes(lab: &mut Lab) -> Check {
    let (va, alias) = (Va::new(0x124_0000_0000), Va::new(0x124_4000_0000));
    for page in 0..8 {
        lab.map_data(va.page(page), 40 + page, PWU);
    }
    let (table, _) = lab.slot(va, Level::Pt);
    lab.map(alias, table, PWU);
    let show = |lab: &mut Lab, page: u64, number: u64| {
        invalidate_page(va.page(page));
        lab.expect_frame(va.page(page), number)
    };
    for round in 0..16 {
        let number = 60 + round;
        lab.data(number);
        lab.data(number + 1);
        let entry = Entry::new(DATA.next(number), PWU).bits();
        let second = Entry::new(DATA.next(number + 1), PWU).bits();
        lab.check(Load, User, va)?;
        alias.store_u32(entry as u32);
        show(lab, 0, number)?;
        for byte in 0..8 {
            alias.plus(8 + byte).store_u8((entry >> (8 * byte)) as u8);
        }
        show(lab, 1, number)?;
        alias.plus(16).store_pair(entry, second);
        show(lab, 2, number)?;
        show(lab, 3, number + 1)?;
        alias.plus(32).exchange(entry);
        show(lab, 4, number)?;
        let old = alias.plus(40).load();
        same(
            "compare-exchange",
            40,
            alias.plus(40).compare_exchange(old, entry),
            old,
        )?;
        show(lab, 5, number)?;
        // Two halves of neighbouring entries by one store that is not aligned.
        let mixed = (table.get(6).bits() >> 32) | (second & 0xffff_ffff) << 32;
        alias.plus(52).store(mixed);
        show(lab, 7, number + 1)?;
        show(lab, 6, 46)?;
    }
    alias.fill(0, 512);
    for page in 0..8 {
        invalidate_page(va.page(page));
        lab.expect_fault(Load, User, va.page(page), 4)?;
    }
    alias.fill(Entry::new(DATA.next(50), PWU).bits(), 512);
    lab.data(50);
    for page in [0, 7, 300, 511] {
        lab.expect_frame(va.page(page), 50)?;
        lab.check(Store, User, va.page(page).plus(8))?;
    }
    Ok(())
}

/// A table is filled entry by entry while it is in use, each new page touched at once.
pub(crate) fn growing_table(lab: &mut Lab) -> Check {
    let va = Va::new(0x125_0000_0000);
    for page in 0..600 {
        lab.map_data(va.page(page), page, PWU);
        lab.check(
            if page % 2 == 0 { Store } else { Load },
            User,
            va.page(page).plus(8),
        )?;
    }
    for page in (0..600).rev() {
        lab.set(va.page(page), Level::Pt, Entry::EMPTY);
        if page % 64 == 0 {
            lab.flush();
        } else {
            invalidate_page(va.page(page));
        }
        lab.expect_fault(Store, User, va.page(page), 6)?;
    }
    Ok(())
}

/// Code is written through one address and runs at another, before and after; also by the user.
pub(crate) fn code_through_aliases(lab: &mut Lab) -> Check {
    let (write, run) = (Va::new(0x125_4000_0000), Va::new(0x125_8000_0000));
    let frame = lab.data(210);
    lab.map(write, frame, PWU);
    lab.map(run, frame, Entry::P | Entry::U);
    for round in 1..30 {
        let privilege = if round % 2 == 0 { User } else { Supervisor };
        write.store(tag(DATA.next(round)));
        let want = Outcome::Done(DATA.next(round).address() >> 12);
        let got = probe::run(
            Kind::Execute,
            privilege,
            AlignmentCheck::Clear,
            run.value(),
            0,
        );
        same_outcome("rewritten code", run.value(), got, want)?;
    }
    Ok(())
}
