//! Random programs: tables whose entries may point at any table of an arena, at any level, with any rights.
//!
//! The arena is 2 MiB of frames, some used as tables, some as data. Entries point into it only, and every word that is
//! stored to a table through an address is again such an entry, so whatever the processor walks stays in the arena.
//! Tables are shared between levels, contain themselves, and are written through the addresses that they map. After each
//! change the program flushes just as much as the architecture demands, and every access must do what the model reads
//! out of memory at that moment.
//!
//! Left out because its rules are weaker than "exactly": G (see `changes::global_pages`), and accesses between a change
//! and its flush.

use vmmu_guest::machine::register::{Control, invalidate_page};
use vmmu_guest::machine::{Entry, Frame, Va};

use crate::access::{Check, Kind, Privilege};
use crate::lab::{Lab, PWU, tag, word};
use crate::probe::AlignmentCheck;

/// The arena's first frame, at a multiple of 2 MiB; its tables come first, then its data.
const ARENA: Frame = Frame::at(0x200_0000);
const TABLES: u64 = 20;
const DATA: u64 = 12;
/// The indices at which the entries are that addresses use.
const INDICES: [usize; 4] = [0, 1, 2, 511];
/// Root entries that lead into the arena.
const ROOT_SLOTS: [usize; 4] = [3, 4, 200, 400];
const ROOTS: usize = 3;

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An entry that points into the arena.
    fn entry(&mut self) -> Entry {
        const SOFTWARE: u64 = 0xe00 | 0x07f0_0000_0000_0000;
        if self.chance(4) {
            // Not present, the rest arbitrary.
            return Entry::raw(self.next() << 13 & !Entry::P);
        }
        let mut bits = Entry::P;
        let optional = [
            (Entry::W, 92),
            (Entry::U, 90),
            (Entry::NX, 6),
            (Entry::A, 30),
            (Entry::D, 20),
            (0x18, 5),
        ];
        for (bit, percent) in optional.into_iter().chain([(SOFTWARE, 10)]) {
            bits |= if self.chance(percent) { bit } else { 0 };
        }
        let frame = match self.below(100) {
            // At level 2 a 2 MiB page over the arena, above it a fault; at level 1 the PAT bit.
            0..4 => return Entry::new(ARENA, bits | Entry::PS),
            // At level 2 a fault.
            4..5 => return Entry::new(self.frame(), bits | Entry::PS),
            5..75 => ARENA.next(self.below(TABLES)),
            _ => ARENA.next(TABLES + self.below(DATA)),
        };
        Entry::new(frame, bits)
    }

    fn frame(&mut self) -> Frame {
        ARENA.next(self.below(TABLES + DATA))
    }

    fn table_slot(&mut self) -> (Frame, usize) {
        (ARENA.next(self.below(TABLES)), self.pick(&INDICES))
    }

    /// An address below one of the root's slots, at the start of a page.
    fn page(&mut self) -> Va {
        let slot = self.pick(&ROOT_SLOTS) as u64;
        let rest = (0..3).fold(0, |address, _| address << 9 | self.pick(&INDICES) as u64);
        let address = slot << 39 | rest << 12;
        Va::new(if slot >= 256 {
            address | 0xffff_0000_0000_0000
        } else {
            address
        })
    }
}

/// The random program with number `number`, as long as the command line says.
pub(crate) fn program(lab: &mut Lab, number: u64) -> Check {
    let seed = lab.line.number("seed").unwrap_or(0x9e37_79b9_7f4a_7c15);
    let mut random = Random(seed.wrapping_mul(2 * number + 1) | 1);
    // The last frame shows at the end of 2 MiB pages.
    for number in (0..TABLES + DATA).chain([511]) {
        let frame = ARENA.next(number);
        frame.clear();
        frame.set(0, Entry::raw(tag(frame)));
    }
    for number in 0..TABLES {
        INDICES
            .iter()
            .for_each(|index| ARENA.next(number).set(*index, random.entry()));
    }
    let mut roots = [lab.root; ROOTS];
    for root in &mut roots {
        *root = lab.new_root();
        ROOT_SLOTS
            .iter()
            .for_each(|slot| root.set(*slot, random.entry()));
        // At least one subtree with every right.
        root.set(
            ROOT_SLOTS[0],
            Entry::new(ARENA.next(random.below(TABLES)), PWU),
        );
    }
    for _ in 0..lab.line.number("steps").unwrap_or(4000) {
        match random.below(100) {
            0..55 => access(lab, &mut random)?,
            55..70 => change_and_reload(lab, &mut random, &roots),
            70..80 => change_on_the_way(lab, &mut random)?,
            80..90 => appear(lab, &mut random),
            90..96 => lab.switch(random.pick(&roots)),
            _ => change_control(lab, &mut random),
        }
    }
    Ok(())
}

/// An access, checked. If it overwrote an entry that was present, a CR3 load follows.
fn access(lab: &mut Lab, random: &mut Random) -> Check {
    let page = random.page();
    access_page(lab, random, page)
}

fn access_page(lab: &mut Lab, random: &mut Random, page: Va) -> Check {
    let privilege = random.pick(&[Privilege::User, Privilege::User, Privilege::Supervisor]);
    let kind = random.pick(&[Kind::Load, Kind::Store, Kind::Execute]);
    let target = lab
        .predict(kind, privilege, page)
        .result
        .ok()
        .map(|address| Frame::at(address & !0xfff));
    let in_table = target.is_some_and(|frame| frame < ARENA.next(TABLES));
    // Only data frames hold code.
    let kind = if kind == Kind::Execute && in_table {
        Kind::Load
    } else {
        kind
    };
    let index = match kind {
        Kind::Execute => 0,
        Kind::Load => random.pick(&INDICES),
        Kind::Store => random.pick(&[1, 2, 511]),
    };
    let at = page.plus(8 * index as u64);
    let flush_due = kind == Kind::Store && shows_present_entry(lab, privilege, at);
    lab.check_value(kind, privilege, at, random.entry().bits())?;
    if flush_due {
        lab.flush();
    }
    Ok(())
}

/// Whether a store to `at` overwrites a word that, as an entry, is present. Any frame may be in use as a table.
fn shows_present_entry(lab: &Lab, privilege: Privilege, at: Va) -> bool {
    let target = lab.predict(Kind::Store, privilege, at).result;
    target.is_ok_and(|address| word(address) & Entry::P != 0)
}

/// A few entries change; then a root is loaded.
fn change_and_reload(lab: &mut Lab, random: &mut Random, roots: &[Frame; ROOTS]) {
    for _ in 0..=random.below(4) {
        let (table, index) = random.table_slot();
        table.set(index, random.entry());
    }
    if random.chance(10) {
        let root = random.pick(roots);
        root.set(random.pick(&ROOT_SLOTS[1..]), random.entry());
    }
    if random.chance(30) {
        lab.switch(random.pick(roots));
    } else {
        lab.flush();
    }
}

/// An entry on an address's way changes; INVLPG makes it count for that address. The others get their CR3 load afterwards.
fn change_on_the_way(lab: &mut Lab, random: &mut Random) -> Check {
    let page = random.page();
    let walk = lab.predict(Kind::Load, Privilege::Supervisor, page);
    // The first word of data is code.
    let changeable =
        |table: Frame, index| table >= ARENA && (table < ARENA.next(TABLES) || index != 0);
    let last = walk
        .steps()
        .next_back()
        .filter(|step| changeable(step.table, step.index));
    if let Some(step) = last {
        step.table.set(step.index, random.entry());
        invalidate_page(page);
        for _ in 0..2 {
            let kind = random.pick(&[Kind::Load, Kind::Store]);
            let privilege = random.pick(&[Privilege::User, Privilege::Supervisor]);
            let at = page.plus(8 * random.pick(&[1, 2, 511]));
            let flush_due = kind == Kind::Store && shows_present_entry(lab, privilege, at);
            lab.check_value(kind, privilege, at, random.entry().bits())?;
            if flush_due {
                break;
            }
        }
        lab.flush();
    }
    Ok(())
}

/// Entries that are not present change: no flush is due.
fn appear(lab: &mut Lab, random: &mut Random) {
    for _ in 0..4 {
        let (table, index) = random.table_slot();
        if !table.get(index).has(Entry::P) {
            table.set(index, random.entry());
        }
    }
    let slot = random.pick(&ROOT_SLOTS);
    if !lab.root.get(slot).has(Entry::P) {
        lab.root.set(slot, random.entry());
    }
}

/// WP, SMEP, SMAP, NXE and RFLAGS.AC change. A change of EFER.NXE wants a flush of what was cached before.
fn change_control(lab: &mut Lab, random: &mut Random) {
    let mut control = lab.control();
    for (bit, percent) in [
        (Control::WP, 70),
        (Control::SMEP, 25),
        (Control::SMAP, 25),
        (Control::NXE, 85),
    ] {
        control.set(bit, random.chance(percent));
    }
    lab.set_control(control.intersection(lab.features.control));
    lab.ac = random.pick(&[AlignmentCheck::Clear, AlignmentCheck::Set]);
    lab.flush();
}
