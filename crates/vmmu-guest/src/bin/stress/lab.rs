//! A root, frames to build tables and data from, and checked accesses through them.
//!
//! 1. Every root maps the image (entry 0) and the user's instructions; checks use other addresses.
//! 2. A frame from [`Lab::data`] begins with its [`tag`]: code that returns the frame's number. Stores of checks go
//!    elsewhere in it.
//! 3. The register [`Control`] is as `Lab::control` says; [`Lab::set_control`] is the only one to change either.

use vmmu_guest::machine::register::{self, Control};
use vmmu_guest::machine::{CommandLine, Entry, Frame, FramePool, Level, Va};

use crate::access::{ALL_ACCESSES, Check, Kind, Outcome, Privilege, same, same_outcome};
use crate::model::{self, Rules, Walk};
use crate::probe::{self, AlignmentCheck, USER_CODE};

/// Present, writable, user: what a table's entry usually has.
pub(crate) const PWU: u64 = Entry::P | Entry::W | Entry::U;
/// Present, writable, for the supervisor.
pub(crate) const PW: u64 = Entry::P | Entry::W;

/// Where tables come from.
const TABLES: (Frame, Frame) = (Frame::at(0x20_0000), Frame::at(0x100_0000));
/// The first data frame; a multiple of 2 MiB.
pub(crate) const DATA: Frame = Frame::at(0x100_0000);
/// The root's entry for the image: the bootstrap page-directory-pointer table.
const IMAGE_ENTRY: Entry = Entry::raw(0x2000 | PWU | Entry::A);

/// What the processor can do beyond the common ground.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Which bits of `Control` exist.
    pub(crate) control: Control,
    pub(crate) gigabyte_pages: bool,
    pub(crate) physical_bits: u32,
}

impl Features {
    /// What CPUID says (AMD APM vol. 3, appendix E).
    pub(crate) fn detect() -> Self {
        let structured = register::cpuid(7);
        let extended = register::cpuid(0x8000_0001);
        let widths = register::cpuid(0x8000_0008);
        let mut control = Control::WP | Control::PGE;
        control.set(Control::NXE, extended.edx & 1 << 20 != 0);
        control.set(Control::SMEP, structured.ebx & 1 << 7 != 0);
        control.set(Control::SMAP, structured.ebx & 1 << 20 != 0);
        Self {
            control,
            gigabyte_pages: extended.edx & 1 << 26 != 0,
            physical_bits: widths.eax & 0xff,
        }
    }
}

/// The root in use, and everything to build below it.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) features: Features,
    /// The guest's command line.
    pub(crate) line: &'static CommandLine,
    pub(crate) root: Frame,
    pub(crate) pool: FramePool,
    pub(crate) ac: AlignmentCheck,
    control: Control,
    user_tables: Entry,
    /// A root outside `pool`, for the time when no other root's frames may be in use.
    resting: Frame,
    stored: u64,
    /// Probes so far.
    pub(crate) accesses: u64,
    /// How many of them faulted.
    pub(crate) faults: u64,
}

impl Lab {
    /// A laboratory with a root of its own, loaded.
    pub(crate) fn new(features: Features, line: &'static CommandLine) -> Self {
        let mut pool = FramePool::new(TABLES.0, TABLES.1);
        let (code, resting) = (pool.take(), pool.take());
        resting.set(0, IMAGE_ENTRY);
        probe::write_user_code(code);
        let (table, index) = resting.slot(USER_CODE, Level::Pt, &mut pool, PWU);
        table.set(index, Entry::new(code, Entry::P | Entry::U));
        let user_tables = resting.get(USER_CODE.index(Level::Pml4));
        let mut lab = Self {
            features,
            line,
            root: resting,
            resting,
            pool,
            ac: AlignmentCheck::Clear,
            control: Control::WP | Control::NXE,
            user_tables,
            stored: 0,
            accesses: 0,
            faults: 0,
        };
        lab.restart();
        lab
    }

    /// A new root, loaded, and the usual control bits. Frames of earlier tables come back into use.
    pub(crate) fn restart(&mut self) {
        const KEPT: u64 = 8;
        self.set_control(Self::usual_control(self.features));
        self.ac = AlignmentCheck::Clear;
        self.switch(self.resting);
        self.pool = FramePool::new(TABLES.0.next(KEPT), TABLES.1);
        let root = self.new_root();
        self.switch(root);
    }

    /// WP and NXE, the rest off.
    pub(crate) fn usual_control(features: Features) -> Control {
        (Control::WP | Control::NXE) & features.control
    }

    /// A root that maps the image and the user's instructions only.
    pub(crate) fn new_root(&mut self) -> Frame {
        let root = self.pool.take();
        root.set(0, IMAGE_ENTRY);
        root.set(USER_CODE.index(Level::Pml4), self.user_tables);
        root
    }

    /// Loads `root`.
    pub(crate) fn switch(&mut self, root: Frame) {
        self.root = root;
        self.flush();
    }

    /// Loads the root again.
    pub(crate) fn flush(&self) {
        register::load_root(self.root);
    }

    /// Changes the control bits.
    pub(crate) fn set_control(&mut self, control: Control) {
        control.load();
        self.control = control;
    }

    pub(crate) fn control(&self) -> Control {
        self.control
    }

    /// Data frame `number`, tagged.
    pub(crate) fn data(&self, number: u64) -> Frame {
        let frame = DATA.next(number);
        frame.set(0, Entry::raw(tag(frame)));
        frame
    }

    /// The table of `level` and the index in it that `va`'s walk uses, tables on the way made as needed.
    pub(crate) fn slot(&mut self, va: Va, level: Level) -> (Frame, usize) {
        self.root.slot(va, level, &mut self.pool, PWU)
    }

    /// Sets `va`'s entry in the table of `level`.
    pub(crate) fn set(&mut self, va: Va, level: Level, entry: Entry) {
        let (table, index) = self.slot(va, level);
        table.set(index, entry);
    }

    /// `va`'s entry in the table of `level`.
    pub(crate) fn get(&mut self, va: Va, level: Level) -> Entry {
        let (table, index) = self.slot(va, level);
        table.get(index)
    }

    /// Maps the page at `va` to `frame`.
    pub(crate) fn map(&mut self, va: Va, frame: Frame, bits: u64) {
        self.set(va, Level::Pt, Entry::new(frame, bits));
    }

    /// Maps the page at `va` to a tagged data frame.
    pub(crate) fn map_data(&mut self, va: Va, number: u64, bits: u64) {
        let frame = self.data(number);
        self.map(va, frame, bits);
    }

    fn rules(&self) -> Rules {
        Rules {
            control: self.control,
            ac: self.ac,
            physical_bits: self.features.physical_bits,
            gigabyte_pages: self.features.gigabyte_pages,
        }
    }

    /// What the tables in memory say about an access.
    pub(crate) fn predict(&self, kind: Kind, privilege: Privilege, va: Va) -> Walk {
        model::walk(self.root, self.rules(), kind, privilege, va)
    }

    /// Performs an access.
    pub(crate) fn access(
        &mut self,
        kind: Kind,
        privilege: Privilege,
        va: Va,
        value: u64,
    ) -> Outcome {
        self.accesses += 1;
        let outcome = probe::run(kind, privilege, self.ac, va.value(), value);
        self.faults += u64::from(!matches!(outcome, Outcome::Done(_)));
        outcome
    }

    /// A value that no check has stored before.
    fn fresh_value(&mut self) -> u64 {
        self.stored += 1;
        0x5701_ed00_0000_0000 | self.stored << 1
    }

    /// Performs an access and demands what the tables in memory say: data, error code, CR2, accessed and dirty bits.
    #[track_caller]
    pub(crate) fn check(&mut self, kind: Kind, privilege: Privilege, va: Va) -> Check {
        let value = self.fresh_value();
        self.check_value(kind, privilege, va, value)
    }

    /// As [`check`](Self::check); a store stores `value`.
    #[track_caller]
    pub(crate) fn check_value(
        &mut self,
        kind: Kind,
        privilege: Privilege,
        va: Va,
        value: u64,
    ) -> Check {
        let walk = self.predict(kind, privilege, va);
        let before = walk.result.map(word);
        let got = self.access(kind, privilege, va, value);
        let want = match (walk.result, kind) {
            (Err(code), _) => Outcome::PageFault {
                code,
                address: va.value(),
            },
            // The word as it is now: the walk itself may have set A and D in a table that is read as data.
            (Ok(address), Kind::Load) => Outcome::Done(word(address)),
            (Ok(_), Kind::Execute) => Outcome::Done(before.unwrap_or(0) >> 8 & 0xffff_ffff),
            (Ok(_), Kind::Store) => Outcome::Done(value),
        };
        let got = match (got, kind, walk.result) {
            (Outcome::Done(_), Kind::Store, Ok(address)) => Outcome::Done(word(address)),
            (other, ..) => other,
        };
        same_outcome(what(kind, privilege), va.value(), got, want)?;
        check_bits(&walk, kind)
    }

    /// Checks every kind of access by everybody. Stores go to `va` + 8, the others to the tag at `va`.
    #[track_caller]
    pub(crate) fn check_all(&mut self, va: Va) -> Check {
        for (kind, privilege) in ALL_ACCESSES {
            let at = if kind == Kind::Store { va.plus(8) } else { va };
            self.check(kind, privilege, at)?;
        }
        Ok(())
    }

    /// Performs an access and demands `want`.
    #[track_caller]
    pub(crate) fn expect(
        &mut self,
        kind: Kind,
        privilege: Privilege,
        va: Va,
        want: Outcome,
    ) -> Check {
        let got = self.access(kind, privilege, va, 0);
        let want = if kind == Kind::Store && matches!(want, Outcome::Done(_)) {
            Outcome::Done(0)
        } else {
            want
        };
        let got = if kind == Kind::Store && matches!(got, Outcome::Done(_)) {
            Outcome::Done(0)
        } else {
            got
        };
        same_outcome(what(kind, privilege), va.value(), got, want)
    }

    /// Performs an access and demands a page fault with error code `code`.
    #[track_caller]
    pub(crate) fn expect_fault(
        &mut self,
        kind: Kind,
        privilege: Privilege,
        va: Va,
        code: u64,
    ) -> Check {
        self.expect(
            kind,
            privilege,
            va,
            Outcome::PageFault {
                code,
                address: va.value(),
            },
        )
    }

    /// Demands that a supervisor's load of `va`, where a page begins, finds data frame `number`'s tag.
    #[track_caller]
    pub(crate) fn expect_frame(&mut self, va: Va, number: u64) -> Check {
        let got = self.access(Kind::Load, Privilege::Supervisor, va, 0);
        same_outcome(
            "frame",
            va.value(),
            got,
            Outcome::Done(tag(DATA.next(number))),
        )
    }
}

/// Code that returns the frame's number: `mov eax, number; int3`. As an entry it is not present.
pub(crate) const fn tag(frame: Frame) -> u64 {
    0xcc00_0000_00b8 | frame.address() >> 12 << 8
}

/// The word at the physical address `address`.
pub(crate) fn word(address: u64) -> u64 {
    Frame::at(address & !0xfff)
        .get((address & 0xfff) as usize / 8)
        .bits()
}

/// Demands of the entries that an access used: A set on the way, D set in the leaf exactly if it was or if this was a
/// store, all else as before. After a fault only D is looked at: the walk may or may not have set A.
#[track_caller]
fn check_bits(walk: &Walk, kind: Kind) -> Check {
    const A_D: u64 = Entry::A | Entry::D;
    for (depth, step) in walk.steps().rev().enumerate() {
        let now = step.table.get(step.index).bits();
        let slot = step.table.address() + 8 * step.index as u64;
        // A store to a table of its own walk.
        if kind == Kind::Store && walk.result == Ok(slot) {
            continue;
        }
        let old = step.entry.bits();
        let want = match (walk.result, depth, kind) {
            (Err(_), ..) => old | now & Entry::A,
            (Ok(_), 0, Kind::Store) => old | A_D,
            // A table may be used twice in a walk, once as the leaf of a store.
            (Ok(_), ..) => {
                old | Entry::A
                    | if is_leaf_too(walk, slot) {
                        now & Entry::D
                    } else {
                        0
                    }
            }
        };
        same("entry after the access", slot, now, want)?;
    }
    Ok(())
}

/// Whether the walk's leaf entry is the one at `slot`.
fn is_leaf_too(walk: &Walk, slot: u64) -> bool {
    walk.steps()
        .next_back()
        .is_some_and(|leaf| leaf.table.address() + 8 * leaf.index as u64 == slot)
}

/// A name for an access.
fn what(kind: Kind, privilege: Privilege) -> &'static str {
    match (kind, privilege) {
        (Kind::Load, Privilege::Supervisor) => "supervisor load",
        (Kind::Store, Privilege::Supervisor) => "supervisor store",
        (Kind::Execute, Privilege::Supervisor) => "supervisor execute",
        (Kind::Load, Privilege::User) => "user load",
        (Kind::Store, Privilege::User) => "user store",
        (Kind::Execute, Privilege::User) => "user execute",
    }
}
