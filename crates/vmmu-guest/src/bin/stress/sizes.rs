//! Pages of every size, and changes of size.

use vmmu_guest::machine::register::invalidate_page;
use vmmu_guest::machine::{Entry, Frame, LARGE_PAGE, Level, Va};

use crate::access::{Check, Kind, Privilege, same};
use crate::lab::{DATA, Lab, PWU, tag};

use Kind::{Load, Store};
use Privilege::{Supervisor, User};

/// Frames of a 2 MiB page.
const LARGE: u64 = 512;

/// 4 KiB pages over several tables: each shows its own frame, whoever looks.
pub(crate) fn small_pages(lab: &mut Lab) -> Check {
    let first = Va::new(0x80_001f_0000);
    for page in 0..64 {
        lab.map_data(first.page(page), 3 * page, PWU);
    }
    lab.flush();
    for page in 0..64 {
        lab.check_all(first.page(page))?;
    }
    for page in 0..64 {
        lab.expect_frame(first.page(page), 3 * page)?;
    }
    Ok(())
}

/// Addresses at the ends of both halves of the address space.
pub(crate) fn far_addresses(lab: &mut Lab) -> Check {
    let pages = [
        0x80_0000_0000,
        0x7f7f_ffff_f000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_f000,
    ];
    for (number, address) in (0..).zip(pages) {
        lab.map_data(Va::new(address), number, PWU);
        lab.check_all(Va::new(address))?;
    }
    for (number, address) in (0..).zip(pages) {
        lab.expect_frame(Va::new(address), number)?;
    }
    Ok(())
}

/// A 2 MiB page: every part of it, by everybody.
pub(crate) fn large_page(lab: &mut Lab) -> Check {
    let va = Va::new(0x80_4000_0000);
    lab.set(va, Level::Pd, Entry::new(DATA.next(LARGE), PWU | Entry::PS));
    lab.flush();
    for page in [0, 1, 7, 255, 256, 511] {
        lab.data(LARGE + page);
        lab.check_all(va.page(page))?;
        lab.expect_frame(va.page(page), LARGE + page)?;
    }
    Ok(())
}

/// A 1 GiB page: it shows physical memory from 0, of which the data frames are looked at.
///
/// Where CPUID denies such pages the bit is reserved, but TCG (and a processor under nested paging) takes it all the
/// same: nothing to check.
pub(crate) fn huge_page(lab: &mut Lab) -> Check {
    if !lab.features.gigabyte_pages {
        return Ok(());
    }
    let va = Va::new(0x81_0000_0000);
    lab.set(va, Level::Pdpt, Entry::raw(PWU | Entry::PS));
    lab.flush();
    for number in [0, 1, 511, 512, 513, 4095, 8191, 12287] {
        let page = va.plus(lab.data(number).address());
        lab.check_all(page)?;
        lab.expect_frame(page, number)?;
    }
    Ok(())
}

/// A directory entry is a 2 MiB page and a table in turn; INVLPG after each change.
pub(crate) fn size_changes(lab: &mut Lab) -> Check {
    let va = Va::new(0x80_8000_0000);
    let large = Entry::new(DATA.next(LARGE), PWU | Entry::PS);
    for page in [0, 5, 511] {
        lab.map_data(va.page(page), 2 * LARGE + page, PWU);
        lab.data(LARGE + page);
    }
    let small = lab.get(va, Level::Pd);
    for round in 0..12 {
        let (entry, base) = if round % 2 == 0 {
            (large, LARGE)
        } else {
            (small, 2 * LARGE)
        };
        lab.set(va, Level::Pd, entry);
        for page in [0, 5, 511] {
            invalidate_page(va.page(page));
            lab.expect_frame(va.page(page), base + page)?;
            lab.check(Store, User, va.page(page).plus(16))?;
        }
    }
    Ok(())
}

/// INVLPG of any address in a 2 MiB page reaches all of it.
pub(crate) fn invalidate_part(lab: &mut Lab) -> Check {
    let va = Va::new(0x80_c000_0000);
    let parts = [0, 1, 100, 511];
    for part in parts {
        lab.data(LARGE + part);
        lab.data(2 * LARGE + part);
    }
    for (round, part) in (0..).zip(parts.into_iter().cycle().take(16)) {
        let base = (1 + round % 2) * LARGE;
        lab.set(va, Level::Pd, Entry::new(DATA.next(base), PWU | Entry::PS));
        invalidate_page(va.page(part).plus(0x123));
        for page in parts {
            lab.expect_frame(va.page(page), base + page)?;
        }
    }
    Ok(())
}

/// A 2 MiB page that shows page tables: stores through it are stores to them.
pub(crate) fn tables_in_large_page(lab: &mut Lab) -> Check {
    let (window, target) = (Va::new(0x81_8000_0000), Va::new(0x82_0000_0000));
    lab.map_data(target, 10, PWU);
    lab.data(11);
    let (table, index) = lab.slot(target, Level::Pt);
    let base = Frame::at(table.address() & !(LARGE_PAGE - 1));
    lab.set(window, Level::Pd, Entry::new(base, PWU | Entry::PS));
    lab.flush();
    let entry_at = window.plus(table.address() - base.address() + 8 * index as u64);
    for round in 0..20 {
        let number = 10 + round % 2;
        entry_at.store(Entry::new(DATA.next(number), PWU).bits());
        invalidate_page(target);
        lab.expect_frame(target, number)?;
        lab.check(Store, User, target.plus(8))?;
        // The processor's own store to the entry is seen through the page.
        same(
            "entry through the large page",
            target.value(),
            entry_at.load(),
            lab.get(target, Level::Pt).bits(),
        )?;
    }
    Ok(())
}

/// Words that lie across two pages with frames far apart, and the fault at the second page.
pub(crate) fn across_pages(lab: &mut Lab) -> Check {
    let va = Va::new(0x82_4000_0000);
    for (page, number) in [(0, 700), (1, 20), (2, 300)] {
        lab.map_data(va.page(page), number, PWU);
    }
    lab.flush();
    let across = va.plus(0xffc);
    across.store(0x1122_3344_5566_7788);
    same(
        "word across pages",
        across.value(),
        across.load(),
        0x1122_3344_5566_7788,
    )?;
    same(
        "its upper half",
        across.value(),
        DATA.next(20).get(0).bits() & 0xffff_ffff,
        0x1122_3344,
    )?;
    same(
        "its lower half",
        across.value(),
        DATA.next(700).get(511).bits() >> 32,
        0x5566_7788,
    )?;
    DATA.next(20).set(0, Entry::raw(tag(DATA.next(20))));
    lab.map(va.page(1), DATA.next(20), Entry::P | Entry::U);
    invalidate_page(va.page(1));
    let want = crate::access::Outcome::PageFault {
        code: 3,
        address: va.page(1).value(),
    };
    lab.expect(Store, Supervisor, across, want)?;
    same(
        "the first page's part after the fault",
        across.value(),
        DATA.next(700).get(511).bits() >> 32,
        0x5566_7788,
    )?;
    lab.check(Load, User, va.page(2))
}
