//! Accessed and dirty bits, as the processor must leave them in the guest's own tables.
//!
//! Every checked access of every other module looks at them too; here they are the subject.

use vmmu_guest::machine::register::invalidate_page;
use vmmu_guest::machine::{Entry, Level, Va};

use crate::access::{Check, Kind, Privilege, same};
use crate::lab::{DATA, Lab, PWU};

use Kind::{Execute, Load, Store};
use Privilege::{Supervisor, User};

const A_D: u64 = Entry::A | Entry::D;

/// Demands of `va`'s entry at `level` that its A and D bits are `want`.
#[track_caller]
fn demand(lab: &mut Lab, va: Va, level: Level, want: u64) -> Check {
    same("A and D", va.value(), lab.get(va, level).bits() & A_D, want)
}

/// A load sets A on the way and not D; a store then sets D in the leaf only.
pub(crate) fn load_then_store(lab: &mut Lab) -> Check {
    for (page, kind) in (0..).zip([Load, Execute, Load]) {
        let va = Va::new(0x110_0000_0000 + (page << 39));
        lab.map_data(va, page, PWU);
        for level in [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt] {
            demand(lab, va, level, 0)?;
        }
        lab.check(kind, User, va)?;
        for level in [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt] {
            demand(lab, va, level, Entry::A)?;
        }
        lab.check(Store, User, va.plus(8))?;
        demand(lab, va, Level::Pt, A_D)?;
        demand(lab, va, Level::Pd, Entry::A)?;
    }
    Ok(())
}

/// The first access is a store: A and D at once.
pub(crate) fn store_first(lab: &mut Lab) -> Check {
    for (number, privilege) in (0..).zip([User, Supervisor]) {
        let va = Va::new(0x111_0000_0000 + (number << 30));
        for page in 0..32 {
            lab.map_data(va.page(page), page, PWU);
            lab.check(Store, privilege, va.page(page).plus(8))?;
            demand(lab, va.page(page), Level::Pt, A_D)?;
        }
    }
    Ok(())
}

/// Neighbours of a touched page stay untouched: whatever a hypervisor prefetches, it is not the guest's access.
pub(crate) fn neighbours(lab: &mut Lab) -> Check {
    let va = Va::new(0x112_0000_0000);
    for page in 0..64 {
        lab.map_data(va.page(page), page, PWU);
    }
    for page in [20, 40, 63, 0] {
        lab.check(Load, User, va.page(page))?;
        lab.check(Store, User, va.page(page).plus(8))?;
    }
    for page in 0..64 {
        let want = if [0, 20, 40, 63].contains(&page) {
            A_D
        } else {
            0
        };
        demand(lab, va.page(page), Level::Pt, want)?;
    }
    Ok(())
}

/// Large leaves keep A and D in their own entry.
pub(crate) fn large_leaves(lab: &mut Lab) -> Check {
    let va = Va::new(0x112_4000_0000);
    lab.set(va, Level::Pd, Entry::new(DATA, PWU | Entry::PS));
    lab.data(17);
    lab.check(Load, User, va.page(17))?;
    demand(lab, va, Level::Pd, Entry::A)?;
    lab.check(Load, User, va.page(400))?;
    demand(lab, va, Level::Pd, Entry::A)?;
    lab.check(Store, User, va.page(17).plus(8))?;
    demand(lab, va, Level::Pd, A_D)?;
    if lab.features.gigabyte_pages {
        let va = Va::new(0x112_8000_0000);
        lab.set(va, Level::Pdpt, Entry::raw(PWU | Entry::PS));
        let at = va.plus(DATA.address());
        lab.check(Load, User, at)?;
        demand(lab, va, Level::Pdpt, Entry::A)?;
        lab.check(Store, Supervisor, at.plus(8))?;
        demand(lab, va, Level::Pdpt, A_D)?;
    }
    Ok(())
}

/// Bits that the guest clears come back with the next access after INVLPG or CR3: how an operating system watches
/// which pages are used.
pub(crate) fn cleared_and_set_again(lab: &mut Lab) -> Check {
    let va = Va::new(0x113_0000_0000);
    for page in 0..16 {
        lab.map_data(va.page(page), page, PWU);
        lab.check(Store, User, va.page(page).plus(8))?;
    }
    for round in 0..24 {
        let page = va.page(round % 16);
        let cleared = if round % 3 == 0 { A_D } else { Entry::D };
        let entry = lab.get(page, Level::Pt);
        lab.set(page, Level::Pt, Entry::raw(entry.bits() & !cleared));
        if round % 2 == 0 {
            invalidate_page(page);
        } else {
            lab.flush();
        }
        lab.check(Load, User, page)?;
        demand(lab, page, Level::Pt, Entry::A)?;
        lab.check(
            Store,
            if round % 4 == 0 { Supervisor } else { User },
            page.plus(8),
        )?;
        demand(lab, page, Level::Pt, A_D)?;
    }
    // A cleared in the upper levels.
    for level in [Level::Pml4, Level::Pdpt, Level::Pd] {
        let entry = lab.get(va, level);
        lab.set(va, level, Entry::raw(entry.bits() & !Entry::A));
        lab.flush();
        lab.check(Load, User, va)?;
        demand(lab, va, level, Entry::A)?;
    }
    Ok(())
}

/// Accesses that fault never set D.
pub(crate) fn faults_leave_dirty_alone(lab: &mut Lab) -> Check {
    let va = Va::new(0x113_4000_0000);
    lab.map_data(va, 1, Entry::P | Entry::U);
    lab.map_data(va.page(1), 2, Entry::P | Entry::W);
    for _ in 0..3 {
        lab.expect_fault(Store, User, va, 7)?;
        lab.expect_fault(Store, Supervisor, va, 3)?;
        lab.expect_fault(Store, User, va.page(1), 7)?;
        same("D", va.value(), lab.get(va, Level::Pt).bits() & Entry::D, 0)?;
        same(
            "D",
            va.value(),
            lab.get(va.page(1), Level::Pt).bits() & Entry::D,
            0,
        )?;
        lab.check(Load, User, va)?;
    }
    lab.check(Store, Supervisor, va.page(1).plus(8))?;
    demand(lab, va.page(1), Level::Pt, A_D)
}

/// A frame behind two addresses: each entry has bits of its own.
pub(crate) fn aliases_have_their_own(lab: &mut Lab) -> Check {
    let va = Va::new(0x113_8000_0000);
    for page in 0..8 {
        lab.map_data(va.page(page), 9, PWU);
    }
    lab.check(Store, User, va.page(3).plus(8))?;
    lab.check(Load, User, va.page(5))?;
    for page in 0..8 {
        let want = match page {
            3 => A_D,
            5 => Entry::A,
            _ => 0,
        };
        demand(lab, va.page(page), Level::Pt, want)?;
    }
    lab.check(Store, User, va.page(5).plus(16))?;
    demand(lab, va.page(5), Level::Pt, A_D)?;
    demand(lab, va.page(4), Level::Pt, 0)
}
