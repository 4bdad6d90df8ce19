//! Exceptions whose own delivery goes through pages: the stack, the descriptor table; and device memory.

use vmmu_guest::machine::register::invalidate_page;
use vmmu_guest::machine::segment::{Stacks, set_stacks};
use vmmu_guest::machine::{Entry, Level, Va, gates_address};

use crate::access::{Check, Kind, Outcome, Privilege, same};
use crate::lab::{DATA, Lab, PW, PWU};
use crate::probe::{self, PageFaultStack, usual_stacks};

use Kind::{Load, Store};
use Privilege::{Supervisor, User};

/// Exceptions from user mode push to a stack page that is new to a hypervisor, each time another.
pub(crate) fn fresh_stack(lab: &mut Lab) -> Check {
    let (va, stack) = (Va::new(0x150_0000_0000), Va::new(0x150_4000_0000));
    lab.map_data(va, 1, PWU);
    let result = (0..40).try_for_each(|round| {
        lab.map_data(stack.page(round), 100 + round, PW);
        set_stacks(Stacks {
            kernel: stack.page(round + 1).value(),
            ..usual_stacks()
        });
        lab.check(Load, User, va)?;
        same(
            "A and D of the stack",
            round,
            lab.get(stack.page(round), Level::Pt).bits() & 0x60,
            0x60,
        )?;
        // What the exception pushed last is the vector, below it the error code and RIP.
        same(
            "vector on the stack",
            round,
            DATA.next(100 + round).get(505).bits(),
            3,
        )?;
        // Cleared bits: the next push sets them again.
        lab.map(stack.page(round), DATA.next(100 + round), PW);
        invalidate_page(stack.page(round));
        lab.expect_fault(Store, User, va.page(1), 6)?;
        same(
            "A and D of the stack",
            round,
            lab.get(stack.page(round), Level::Pt).bits() & 0x60,
            0x60,
        )
    });
    set_stacks(usual_stacks());
    result
}

/// The stack of the kernel is missing or read-only: a page fault on a stack of its own tells so, and without one there is a
/// double fault.
pub(crate) fn broken_stack(lab: &mut Lab) -> Check {
    let (va, stack) = (Va::new(0x150_8000_0000), Va::new(0x150_c000_0000));
    lab.map_data(va, 1, PWU);
    lab.map_data(stack.page(1), 2, Entry::P);
    let run = |lab: &mut Lab| {
        for (page, code) in [(0, 2), (1, 3)] {
            let top = stack.page(page + 1);
            set_stacks(Stacks {
                kernel: top.value(),
                ..usual_stacks()
            });
            probe::install_handlers(PageFaultStack::Own);
            // SS is pushed first, 8 bytes below the top.
            let first_push = top.value() - 8;
            lab.expect(
                Load,
                User,
                va,
                Outcome::PageFault {
                    code,
                    address: first_push,
                },
            )?;
            probe::install_handlers(PageFaultStack::Usual);
            lab.expect(
                Load,
                User,
                va,
                Outcome::Exception {
                    vector: 8,
                    error: 0,
                },
            )?;
            lab.expect(
                Load,
                User,
                va.page(1),
                Outcome::Exception {
                    vector: 8,
                    error: 0,
                },
            )?;
        }
        Ok(())
    };
    let result = run(lab);
    probe::install_handlers(PageFaultStack::Usual);
    set_stacks(usual_stacks());
    result
}

/// The descriptor table is read through an address of its own, whose entry changes between exceptions.
pub(crate) fn fresh_descriptor_table(lab: &mut Lab) -> Check {
    let (va, table) = (Va::new(0x151_0000_0000), Va::new(0x151_4000_0000));
    lab.map_data(va, 1, PWU);
    let physical = gates_address();
    let run = |lab: &mut Lab| {
        for round in 0..20 {
            let page = table.page(2 * round);
            for part in 0..2 {
                lab.set(
                    page.page(part),
                    Level::Pt,
                    Entry::raw(((physical & !0xfff) + part * 4096) | PW),
                );
            }
            probe::use_descriptors_at(page.plus(physical & 0xfff));
            lab.check(Load, if round % 2 == 0 { User } else { Supervisor }, va)?;
            lab.expect_fault(Load, User, va.page(1), 4)?;
        }
        Ok(())
    };
    let result = run(lab);
    probe::install_handlers(PageFaultStack::Usual);
    result
}

/// A page is RAM and the local APIC in turn: its version register is read, then memory again.
pub(crate) fn device_page(lab: &mut Lab) -> Check {
    const LOCAL_APIC: u64 = 0xfee0_0000;
    const VERSION: u64 = 0x30;
    let va = Va::new(0x151_8000_0000);
    let mut versions = [0; 10];
    for (round, version) in (0..).zip(&mut versions) {
        lab.map_data(va, round, PWU);
        invalidate_page(va);
        lab.expect_frame(va, round)?;
        lab.check(Store, User, va.plus(VERSION))?;
        lab.set(va, Level::Pt, Entry::raw(LOCAL_APIC | PWU | 0x18));
        invalidate_page(va);
        *version = u64::from(va.plus(VERSION).load_u32() & 0xff);
    }
    // A version register reads 0x10 to 0x1f on every integrated APIC.
    versions
        .iter()
        .try_for_each(|version| same("APIC version", *version, version & 0xf0, 0x10))
}
