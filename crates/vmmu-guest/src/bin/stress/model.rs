//! What an access must do, from the tables as they are in memory: 4-level translation as the manuals say it
//! (AMD APM vol. 2, sections 5.3 and 5.6; Intel SDM vol. 3, sections 4.5 and 4.6).
//!
//! It knows no TLB: it speaks of accesses after every flush that the architecture demands.

use vmmu_guest::machine::register::Control;
use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::access::{Kind, Privilege, code};
use crate::probe::AlignmentCheck;

/// What of the processor decides an access besides the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) control: Control,
    pub(crate) ac: AlignmentCheck,
    /// Width of a physical address in bits.
    pub(crate) physical_bits: u32,
    /// Whether there are 1 GiB pages.
    pub(crate) gigabyte_pages: bool,
}

/// An entry that a walk read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) table: Frame,
    pub(crate) index: usize,
    pub(crate) entry: Entry,
}

/// What a walk found: the physical address or the error code, and the entries on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    pub(crate) result: Result<u64, u64>,
    steps: [Option<Step>; 4],
}

impl Walk {
    /// The entries that were read, from the root on.
    pub(crate) fn steps(&self) -> impl DoubleEndedIterator<Item = Step> {
        self.steps.into_iter().flatten()
    }
}

const LEVELS: [Level; 4] = [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt];
/// The bits of an entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Rights that a walk gathers.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

/// Walks from `root` for an access of `kind` by `privilege` to `va`.
pub(crate) fn walk(root: Frame, rules: Rules, kind: Kind, privilege: Privilege, va: Va) -> Walk {
    let mut steps = [None; 4];
    let mut rights = Rights {
        writable: true,
        user: true,
        executable: true,
    };
    let fault = base_code(rules, kind, privilege);
    let mut table = root;
    for (level, step) in LEVELS.into_iter().zip(&mut steps) {
        let index = va.index(level);
        let entry = table.get(index);
        *step = Some(Step {
            table,
            index,
            entry,
        });
        if !entry.has(Entry::P) {
            return Walk {
                result: Err(fault),
                steps,
            };
        }
        let leaf = level == Level::Pt || level != Level::Pml4 && entry.has(Entry::PS);
        if entry.bits() & reserved(rules, level, leaf) != 0 {
            return Walk {
                result: Err(fault | code::PRESENT | code::RESERVED),
                steps,
            };
        }
        rights.writable &= entry.has(Entry::W);
        rights.user &= entry.has(Entry::U);
        rights.executable &= !entry.has(Entry::NX);
        if leaf {
            let offset = (1 << level.shift()) - 1;
            let address = entry.bits() & ADDRESS & !offset | va.value() & offset;
            let allowed = permitted(rules, rights, kind, privilege);
            let result = if allowed {
                Ok(address)
            } else {
                Err(fault | code::PRESENT)
            };
            return Walk { result, steps };
        }
        table = entry.frame();
    }
    unreachable!("an entry of level 1 is a leaf")
}

/// The bits of the error code that say what was tried.
fn base_code(rules: Rules, kind: Kind, privilege: Privilege) -> u64 {
    let fetches_are_told = rules.control.intersects(Control::NXE.union(Control::SMEP));
    let access = match kind {
        Kind::Load => 0,
        Kind::Store => code::WRITE,
        Kind::Execute if fetches_are_told => code::FETCH,
        Kind::Execute => 0,
    };
    access
        | if privilege == Privilege::User {
            code::USER
        } else {
            0
        }
}

/// The bits that must be 0 in an entry of `level`.
fn reserved(rules: Rules, level: Level, leaf: bool) -> u64 {
    let mut bits = ADDRESS & !((1 << rules.physical_bits) - 1);
    if !rules.control.contains(Control::NXE) {
        bits |= Entry::NX;
    }
    match level {
        Level::Pml4 => bits |= Entry::PS,
        Level::Pdpt if !rules.gigabyte_pages => bits |= Entry::PS,
        // Below a large page's address: bit 12 is PAT, the rest is reserved.
        Level::Pdpt | Level::Pd if leaf => bits |= ((1 << level.shift()) - 1) & !0x1fff,
        _ => {}
    }
    bits
}

/// Whether the gathered rights allow the access.
fn permitted(rules: Rules, rights: Rights, kind: Kind, privilege: Privilege) -> bool {
    let has = |control| rules.control.contains(control);
    if privilege == Privilege::User {
        return rights.user
            && match kind {
                Kind::Load => true,
                Kind::Store => rights.writable,
                Kind::Execute => rights.executable,
            };
    }
    let shielded = rights.user && has(Control::SMAP) && rules.ac == AlignmentCheck::Clear;
    match kind {
        Kind::Load => !shielded,
        Kind::Store => !shielded && (rights.writable || !has(Control::WP)),
        Kind::Execute => rights.executable && !(rights.user && has(Control::SMEP)),
    }
}
