//! Rights at every level, and the processor's switches that change what they mean.

use vmmu_guest::machine::register::{Control, invalidate_page};
use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::access::{ALL_ACCESSES, Check, Kind, Outcome, Privilege, code};
use crate::lab::{DATA, Lab, PW, PWU};
use crate::probe::AlignmentCheck;

use Kind::{Execute, Load, Store};
use Privilege::{Supervisor, User};

const LEVELS: [Level; 4] = [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt];

/// Every combination of P, W, U and NX at each level, the other levels permissive; all accesses.
pub(crate) fn combinations(lab: &mut Lab) -> Check {
    let va = Va::new(0x100_0000_0000);
    lab.map_data(va, 60, PWU);
    for level in LEVELS {
        let (table, index) = lab.slot(va, level);
        let entry = table.get(index);
        let frame = entry.frame();
        for combination in 0..16 {
            let nx = if combination & 8 != 0 { Entry::NX } else { 0 };
            table.set(index, Entry::new(frame, combination & 7 | nx));
            invalidate_page(va);
            lab.check_all(va)?;
        }
        table.set(index, entry);
        lab.flush();
    }
    Ok(())
}

/// The same for leaves of 2 MiB.
pub(crate) fn large_combinations(lab: &mut Lab) -> Check {
    let va = Va::new(0x100_4000_0000);
    lab.data(1024);
    for combination in 0..16 {
        let nx = if combination & 8 != 0 { Entry::NX } else { 0 };
        lab.set(
            va,
            Level::Pd,
            Entry::new(DATA.next(1024), combination & 7 | nx | Entry::PS),
        );
        invalidate_page(va);
        lab.check_all(va)?;
    }
    Ok(())
}

/// The error codes, written out: the model that other checks compare with is not trusted alone.
pub(crate) fn error_codes(lab: &mut Lab) -> Check {
    use code::{FETCH, PRESENT, USER, WRITE};
    let va = Va::new(0x100_8000_0000);
    lab.map_data(va.page(1), 61, PW | Entry::NX);
    lab.map_data(va.page(2), 62, Entry::P | Entry::U);
    lab.flush();
    lab.expect_fault(Load, Supervisor, va, 0)?;
    lab.expect_fault(Store, Supervisor, va.plus(8), WRITE)?;
    lab.expect_fault(Execute, Supervisor, va, FETCH)?;
    lab.expect_fault(Load, User, va.plus(0xff8), USER)?;
    lab.expect_fault(Store, User, va, USER | WRITE)?;
    lab.expect_fault(Execute, User, va.plus(0x123), USER | FETCH)?;
    lab.expect_fault(Load, User, va.page(1), PRESENT | USER)?;
    lab.expect_fault(Store, User, va.page(1), PRESENT | USER | WRITE)?;
    lab.expect_fault(Execute, User, va.page(1), PRESENT | USER | FETCH)?;
    lab.expect_fault(Execute, Supervisor, va.page(1), PRESENT | FETCH)?;
    lab.expect_fault(Store, User, va.page(2), PRESENT | USER | WRITE)?;
    lab.expect_fault(Store, Supervisor, va.page(2), PRESENT | WRITE)?;
    lab.expect(
        Execute,
        User,
        va.page(2),
        Outcome::Done(DATA.next(62).address() >> 12),
    )?;
    lab.expect(Store, Supervisor, va.page(1).plus(8), Outcome::Done(0))?;
    let beyond = 0x8000_0000_0000;
    let got = crate::probe::run(Load, Supervisor, AlignmentCheck::Clear, beyond, 0);
    crate::access::same_outcome(
        "non-canonical address",
        beyond,
        got,
        Outcome::Exception {
            vector: 13,
            error: 0,
        },
    )
}

/// One table under two directory entries with different rights: touched through the wide one, then the narrow one.
pub(crate) fn shared_table(lab: &mut Lab) -> Check {
    let (wide, narrow) = (Va::new(0x101_0000_0000), Va::new(0x101_0020_0000));
    for page in 0..4 {
        lab.map_data(wide.page(page), 70 + page, PWU);
    }
    let link = lab.get(wide, Level::Pd).frame();
    for bits in [Entry::P | Entry::U, PW, PWU | Entry::NX, Entry::P] {
        lab.set(narrow, Level::Pd, Entry::new(link, bits));
        lab.flush();
        for page in 0..4 {
            lab.check_all(wide.page(page))?;
            lab.check_all(narrow.page(page))?;
            lab.check_all(wide.page(page))?;
        }
    }
    Ok(())
}

/// The same at the root: a whole subtree under two rights, in one root and in two.
pub(crate) fn shared_subtree(lab: &mut Lab) -> Check {
    let (wide, narrow) = (Va::new(0x180_0000_0000), Va::new(0x200_0000_0000));
    lab.map_data(wide, 75, PWU);
    let link = lab.get(wide, Level::Pml4).frame();
    lab.set(
        narrow,
        Level::Pml4,
        Entry::new(link, Entry::P | Entry::U | Entry::NX),
    );
    let (home, other) = (lab.root, lab.new_root());
    other.set(wide.index(Level::Pml4), Entry::new(link, Entry::P));
    for _ in 0..4 {
        lab.switch(home);
        lab.check_all(wide)?;
        lab.check_all(narrow)?;
        lab.switch(other);
        lab.check_all(wide)?;
    }
    Ok(())
}

/// CR0.WP cleared: the supervisor stores to read-only pages, and only it; set again: it faults again.
pub(crate) fn write_protect(lab: &mut Lab) -> Check {
    let va = Va::new(0x102_0000_0000);
    let usual = lab.control();
    lab.map_data(va, 80, Entry::P | Entry::U);
    lab.map_data(va.page(1), 81, Entry::P);
    lab.set(
        va.page(512),
        Level::Pd,
        Entry::new(DATA.next(512), Entry::P | Entry::U | Entry::PS),
    );
    lab.data(512);
    lab.flush();
    for round in 0..6 {
        for page in [0, 1, 512] {
            lab.set_control(usual.difference(Control::WP));
            lab.check(Store, Supervisor, va.page(page).plus(8))?;
            lab.check_all(va.page(page))?;
            lab.set_control(usual);
            lab.check_all(va.page(page))?;
        }
        if round % 2 == 0 {
            lab.flush();
        }
    }
    Ok(())
}

/// A store under CR0.WP = 0 to a user page leaves nothing behind that SMEP, SMAP or WP would forbid.
pub(crate) fn write_protect_leftovers(lab: &mut Lab) -> Check {
    let va = Va::new(0x102_4000_0000);
    let usual = lab.control();
    let extra = [
        Control::empty(),
        Control::SMEP,
        Control::SMAP,
        Control::SMEP.union(Control::SMAP),
    ];
    for control in extra.map(|control| usual.union(control).intersection(lab.features.control)) {
        lab.map_data(va, 83, Entry::P | Entry::U);
        invalidate_page(va);
        for later in [control, control.difference(Control::WP)] {
            lab.set_control(usual.difference(Control::WP));
            lab.check(Store, Supervisor, va.plus(8))?;
            lab.check(Execute, Supervisor, va)?;
            lab.set_control(later);
            lab.check_all(va)?;
        }
        lab.set_control(usual);
    }
    Ok(())
}

/// SMEP and SMAP, set and cleared; RFLAGS.AC lifts SMAP.
pub(crate) fn user_pages_shielded(lab: &mut Lab) -> Check {
    let va = Va::new(0x102_8000_0000);
    let usual = lab.control();
    lab.map_data(va, 85, PWU);
    lab.map_data(va.page(1), 86, PW);
    lab.set(
        va.page(512),
        Level::Pd,
        Entry::new(DATA.next(512), PWU | Entry::PS),
    );
    lab.data(512);
    for bits in [
        Control::SMEP,
        Control::SMAP,
        Control::SMEP.union(Control::SMAP),
        Control::empty(),
    ] {
        lab.set_control(usual.union(bits).intersection(lab.features.control));
        for page in [0, 1, 512] {
            for ac in [
                AlignmentCheck::Clear,
                AlignmentCheck::Set,
                AlignmentCheck::Clear,
            ] {
                lab.ac = ac;
                lab.check_all(va.page(page))?;
            }
        }
    }
    Ok(())
}

/// EFER.NXE cleared: bit 63 is reserved, and faults do not tell fetches apart.
pub(crate) fn no_execute_switch(lab: &mut Lab) -> Check {
    let va = Va::new(0x102_c000_0000);
    let usual = lab.control();
    lab.map_data(va, 87, PWU | Entry::NX);
    lab.map_data(va.page(1), 88, PWU);
    for _ in 0..3 {
        for control in [usual, usual.difference(Control::NXE)] {
            lab.set_control(control);
            lab.flush();
            for page in 0..3 {
                lab.check_all(va.page(page))?;
            }
        }
    }
    Ok(())
}

/// Reserved bits: above the physical address width at every level, below a large page's address.
pub(crate) fn reserved_bits(lab: &mut Lab) -> Check {
    let va = Va::new(0x103_0000_0000);
    lab.map_data(va, 90, PWU);
    let highest = 51;
    for level in LEVELS {
        let (table, index) = lab.slot(va, level);
        let entry = table.get(index);
        for bit in [lab.features.physical_bits, highest]
            .into_iter()
            .filter(|bit| *bit <= highest && *bit >= 40)
        {
            if lab.features.physical_bits > highest {
                continue;
            }
            table.set(index, Entry::raw(entry.bits() | 1 << bit));
            invalidate_page(va);
            lab.check_all(va)?;
            // Not present comes before reserved.
            table.set(index, Entry::raw(entry.bits() & !Entry::P | 1 << bit));
            invalidate_page(va);
            lab.check_all(va)?;
        }
        table.set(index, entry);
        lab.flush();
        lab.check_all(va)?;
    }
    for bit in [13, 16, 20] {
        lab.set(
            va.page(512),
            Level::Pd,
            Entry::raw(DATA.address() | PWU | Entry::PS | 1 << bit),
        );
        invalidate_page(va.page(512));
        lab.check_all(va.page(512))?;
    }
    let huge = Va::new(va.value() + (1 << 30));
    for bit in [13, 21, 29] {
        lab.set(huge, Level::Pdpt, Entry::raw(PWU | Entry::PS | 1 << bit));
        invalidate_page(huge);
        lab.check(Load, User, huge)?;
        lab.check(Execute, Supervisor, huge)?;
    }
    Ok(())
}

/// Bits that software may use (9 to 11, 52 to 58) mean nothing; the processor keeps them.
pub(crate) fn ignored_bits(lab: &mut Lab) -> Check {
    const SOFTWARE: u64 = 0xe00 | 0x07f0_0000_0000_0000;
    let va = Va::new(0x103_8000_0000);
    lab.map_data(va, 91, PWU | SOFTWARE);
    for level in LEVELS {
        let (table, index) = lab.slot(va, level);
        table.set(index, Entry::raw(table.get(index).bits() | SOFTWARE));
    }
    lab.flush();
    lab.check_all(va)
}

/// Rights of one page through many addresses, in turn: the narrow ones stay narrow.
pub(crate) fn aliases(lab: &mut Lab) -> Check {
    let va = Va::new(0x104_0000_0000);
    let frame: Frame = lab.data(95);
    let bits = [
        PWU,
        Entry::P,
        Entry::P | Entry::U,
        PW,
        PWU | Entry::NX,
        Entry::P | Entry::NX,
    ];
    for (page, bits) in (0..).zip(bits) {
        lab.map(va.page(page), frame, bits);
    }
    lab.flush();
    for (kind, privilege) in ALL_ACCESSES {
        for page in 0..bits.len() as u64 {
            let at = if kind == Store {
                va.page(page).plus(8)
            } else {
                va.page(page)
            };
            lab.check(kind, privilege, at)?;
        }
    }
    Ok(())
}
