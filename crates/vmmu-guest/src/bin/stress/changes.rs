//! Entries that change, at every level, and the flushes that make the change count.

use vmmu_guest::machine::register::{Control, invalidate_page, load_root_with};
use vmmu_guest::machine::{Entry, Level, Va};

use crate::access::{Check, Kind, Privilege, same};
use crate::lab::{DATA, Lab, PWU, tag};

use Kind::{Execute, Load, Store};
use Privilege::{Supervisor, User};

/// A leaf is pointed at other frames; INVLPG each time.
pub(crate) fn leaf_invalidate(lab: &mut Lab) -> Check {
    let va = Va::new(0x90_0000_0000);
    lab.map_data(va.page(1), 99, PWU);
    for round in 0..200 {
        lab.map_data(va, round % 7, PWU);
        invalidate_page(va);
        lab.expect_frame(va, round % 7)?;
        lab.check(
            if round % 3 == 0 { Store } else { Execute },
            User,
            va.plus(if round % 3 == 0 { 8 } else { 0 }),
        )?;
        lab.expect_frame(va.page(1), 99)?;
    }
    Ok(())
}

/// Leaves change, one or all of a table; CR3 is loaded afterwards.
pub(crate) fn leaf_reload(lab: &mut Lab) -> Check {
    let va = Va::new(0x90_4000_0000);
    for page in 0..512 {
        lab.map_data(va.page(page), page, PWU);
    }
    for round in 0..40 {
        lab.map(va.page(round), DATA.next(511 - round), PWU);
        lab.flush();
        lab.expect_frame(va.page(round), 511 - round)?;
        lab.check(Store, Supervisor, va.page(round).plus(24))?;
    }
    for round in 1..5 {
        for page in 0..512 {
            lab.map(va.page(page), DATA.next(page + round * 3), PWU);
            lab.data(page + round * 3);
        }
        lab.flush();
        for page in 0..512 {
            lab.expect_frame(va.page(page), page + round * 3)?;
        }
    }
    Ok(())
}

/// An entry that becomes present needs no flush, whatever faulted before.
pub(crate) fn appearance(lab: &mut Lab) -> Check {
    let va = Va::new(0x90_8000_0000);
    for round in 0..50 {
        lab.set(va, Level::Pt, Entry::EMPTY);
        invalidate_page(va);
        lab.expect_fault(Load, Supervisor, va, 0)?;
        lab.expect_fault(Store, User, va, 6)?;
        lab.expect_fault(Execute, User, va, 0x14)?;
        lab.map_data(va, round, PWU);
        lab.expect_frame(va, round)?;
        lab.check(Store, User, va.plus(8))?;
    }
    // The same at every level, top down: each fault comes one level later.
    let va = Va::new(0xa0_0000_0000);
    lab.map_data(va, 7, PWU);
    for level in [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt] {
        let (table, index) = lab.slot(va, level);
        let entry = table.get(index);
        table.set(index, Entry::EMPTY);
        lab.flush();
        lab.expect_fault(Load, User, va, 4)?;
        table.set(index, entry);
        lab.check(Load, User, va)?;
    }
    Ok(())
}

/// Rights are given (a spurious fault or none, then the access) and taken (INVLPG, then a fault).
pub(crate) fn leaf_rights(lab: &mut Lab) -> Check {
    let va = Va::new(0x90_c000_0000);
    let frame = lab.data(44);
    for _ in 0..30 {
        for bits in [
            Entry::P,
            Entry::P | Entry::U,
            PWU,
            Entry::P | Entry::W,
            PWU | Entry::NX,
        ] {
            lab.map(va, frame, bits);
            invalidate_page(va);
            lab.check_all(va)?;
        }
    }
    Ok(())
}

/// Entries of the upper levels are switched between two subtrees; INVLPG or CR3.
pub(crate) fn subtree_switch(lab: &mut Lab) -> Check {
    for (number, level) in (0..).zip([Level::Pd, Level::Pdpt, Level::Pml4]) {
        let va = Va::new(0xb0_0000_0000 + (number << 39));
        let other = Va::new(va.value() + (8 << 39));
        for page in 0..8 {
            lab.map_data(va.page(page), page, PWU);
            lab.map_data(other.page(page), 100 + page, PWU);
        }
        let entries = [lab.get(va, level), lab.get(other, level)];
        for round in 0..30 {
            let (entry, base) = if round % 2 == 0 {
                (entries[1], 100)
            } else {
                (entries[0], 0)
            };
            lab.set(va, level, entry);
            if round % 3 == 0 {
                lab.flush();
            } else {
                invalidate_page(va.page(round % 8));
            }
            lab.expect_frame(va.page(round % 8), base + round % 8)?;
            lab.check(Store, User, va.page(round % 8).plus(32))?;
        }
    }
    Ok(())
}

/// A table changes while no entry points at it; then one does again, and no flush is made.
pub(crate) fn change_while_unlinked(lab: &mut Lab) -> Check {
    let va = Va::new(0xc0_0000_0000);
    lab.map_data(va, 1, PWU);
    lab.map_data(va.page(1), 2, PWU);
    let (directory, at) = lab.slot(va, Level::Pd);
    let (table, index) = lab.slot(va, Level::Pt);
    let link = directory.get(at);
    for round in 0..40 {
        lab.check(Load, User, va)?;
        lab.check(Store, User, va.page(1).plus(8))?;
        directory.set(at, Entry::EMPTY);
        lab.flush();
        if round % 2 == 0 {
            lab.expect_fault(Load, User, va, 4)?;
        }
        table.set(index, Entry::new(lab.data(round + 3), PWU));
        directory.set(at, link);
        lab.expect_frame(va, round + 3)?;
        lab.check(Store, User, va.plus(8))?;
    }
    Ok(())
}

/// A table's frame becomes data, and data a table.
pub(crate) fn table_reuse(lab: &mut Lab) -> Check {
    let (va, window) = (Va::new(0xc0_4000_0000), Va::new(0xc0_8000_0000));
    let tables = [lab.pool.take(), lab.pool.take()];
    for round in 0..30_u64 {
        let [table, data] = if round % 2 == 0 {
            tables
        } else {
            [tables[1], tables[0]]
        };
        for index in 0..512 {
            table.set(index, Entry::new(DATA.next(round + index as u64), PWU));
        }
        lab.set(va, Level::Pd, Entry::new(table, PWU));
        lab.map(window, data, PWU);
        lab.flush();
        lab.data(round + 17);
        lab.expect_frame(va.page(17), round + 17)?;
        lab.check(Store, User, va.page(18).plus(8))?;
        for at in [0, 8, 512, 4088] {
            lab.check(Store, User, window.plus(at))?;
        }
    }
    Ok(())
}

/// Global pages: gone after INVLPG or a change of CR4.PGE; after a CR3 load the old or the new frame may show.
pub(crate) fn global_pages(lab: &mut Lab) -> Check {
    let va = Va::new(0xc0_c000_0000);
    let usual = lab.control();
    for round in 0..20 {
        lab.set_control(usual.union(Control::PGE));
        let old = round % 5;
        lab.map_data(va, old, PWU | Entry::G);
        invalidate_page(va);
        lab.expect_frame(va, old)?;
        lab.map_data(va, 50 + round, PWU | Entry::G);
        lab.flush();
        let seen = va.load();
        if seen != tag(DATA.next(old)) {
            same(
                "frame after CR3",
                va.value(),
                seen,
                tag(DATA.next(50 + round)),
            )?;
        }
        if round % 2 == 0 {
            lab.set_control(usual);
        } else {
            invalidate_page(va);
        }
        lab.expect_frame(va, 50 + round)?;
        lab.check(Store, Supervisor, va.plus(8))?;
        lab.set_control(usual);
    }
    Ok(())
}

/// The cache-control bits of CR3 and of entries change nothing in what is mapped.
pub(crate) fn cache_bits(lab: &mut Lab) -> Check {
    let va = Va::new(0xc1_0000_0000);
    for bits in 0..4 {
        lab.map_data(va, bits, PWU | bits << 3);
        load_root_with(lab.root, bits << 3);
        lab.check_all(va)?;
        lab.expect_frame(va, bits)?;
    }
    // At level 1 bit 7 is PAT, in a leaf of level 2 bit 12 is.
    lab.map_data(va, 5, PWU | Entry::PS);
    lab.set(
        va.page(512),
        Level::Pd,
        Entry::new(DATA, PWU | Entry::PS | 1 << 12),
    );
    lab.flush();
    lab.data(0);
    lab.check_all(va)?;
    lab.check_all(va.page(512))
}
