//! Random programs: what a guest, its hypervisor and its host may do, one step at a time.
//!
//! Key types: [`Step`], [`Program`] (the steps, and what they run on), [`run`].
//!
//! Tables are guest frames [`TABLES`]`..`[`TABLES`]` + `[`TABLE_COUNT`]; all of them serve as roots and at any level, so that trees share tables and contain
//! themselves. Addresses use slots 0 and 1 of each level. Every root maps the window, through which the kernel edits tables.
//!
//! Invariants:
//! 1. A step means something in every state, so that any part of a program is a program: failures shrink.

use vmmu::addr::{Gfn, Level};
use vmmu::paging::{Cr0, Cr4, Efer};
use vmmu::{Config, Engine, Event, ForeignWrites, SlotFlags, SlotId};
use vmmu_cpu::Policy;
use vmmu_spec::Access;

use crate::guest::{
    A, D, G, NX, P, PS, RESERVED, U, W, WRITE, entry, long4, map_window, slot, window,
};
use crate::machine::{Judged, Machine, Seen, Setup, Writes};

/// The first guest frame of the tables.
pub const TABLES: u64 = 16;
/// How many there are.
pub const TABLE_COUNT: u64 = 8;
/// The first data frame; as many as tables.
pub const DATA: u64 = 64;
/// The first frame of the slot that comes and goes: its ends are not aligned to 2 MiB.
pub const OTHER: u64 = 1100;
/// Its length.
pub const OTHER_FRAMES: u64 = 600;
/// The first frame of the slot that shows the data frames once more.
pub const ALIAS: u64 = 0x1_0000_0040;
/// How many such places there are.
pub const ALIASES: u64 = 4;
/// How far apart they are: each takes a branch of nested tables of its own.
pub const ALIAS_STRIDE: u64 = 1 << 27;
/// Where main memory lies in the host.
const MAIN_HOST: u64 = 0x4000;
/// Where the other slot lies: not aligned as it is in the guest.
const OTHER_HOST: u64 = 0x8123;

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// An access by the guest; writes store an entry.
    Access {
        /// The processor.
        cpu: u8,
        /// Chooses the address.
        at: u8,
        /// Chooses the access.
        access: u8,
        /// Chooses what is stored.
        value: u16,
    },
    /// The kernel edits a table through the window.
    Edit {
        /// The processor.
        cpu: u8,
        /// The table.
        table: u8,
        /// The slot, 0 or 1.
        slot: u8,
        /// Chooses the entry.
        value: u16,
    },
    /// An emulated write to a table, reported.
    Emulated {
        /// The table.
        table: u8,
        /// The slot.
        slot: u8,
        /// Chooses the entry.
        value: u16,
    },
    /// A write to a table that nobody reports.
    Unseen {
        /// The table.
        table: u8,
        /// The slot.
        slot: u8,
        /// Chooses the entry.
        value: u16,
    },
    /// A report of everything in a table: of one that was written unseen, if there is one.
    Report {
        /// The table.
        table: u8,
    },
    /// INVLPG.
    Invlpg {
        /// The processor.
        cpu: u8,
        /// Chooses the address.
        at: u8,
    },
    /// MOV to CR3.
    LoadCr3 {
        /// The processor.
        cpu: u8,
        /// The table that is the root.
        table: u8,
    },
    /// A flush of everything.
    Flush {
        /// The processor.
        cpu: u8,
    },
    /// Other control registers.
    Controls {
        /// The processor.
        cpu: u8,
        /// WP, SMEP, SMAP, NXE, PGE from bit 0 on.
        bits: u8,
    },
    /// The host takes frames back.
    TakeBack {
        /// Chooses the frame.
        frame: u8,
        /// How many.
        frames: u8,
    },
    /// The host shares a frame: read-only until it is written.
    Share {
        /// Chooses the frame.
        frame: u8,
    },
    /// The host grants large frames or not.
    Size {
        /// Odd: it does.
        large: u8,
    },
    /// The other slot is removed, or added anew.
    Slot,
    /// The other slot's or main memory's flags change.
    Flags {
        /// Odd: the other slot's; then bits of flags.
        bits: u8,
    },
    /// A frame is unprotected.
    Unprotect {
        /// The processor.
        cpu: u8,
        /// The table.
        table: u8,
    },
    /// The dirty log of a slot is taken.
    Harvest {
        /// Odd: the other slot's.
        which: u8,
    },
    /// An interrupt: the processor leaves its guest.
    Exit {
        /// The processor.
        cpu: u8,
    },
}

/// What a program runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ground {
    /// The engine.
    pub engine: Engine,
    /// How many processors.
    pub cpus: u8,
    /// What they keep.
    pub policy: Policy,
    /// How writes to tables are served.
    pub writes: Writes,
    /// The highest level that becomes unsync.
    pub unsync_level: Level,
    /// The limit on pages; 0: none of note.
    pub max_pages: u32,
    /// When the guest can see emulated writes.
    pub foreign_writes: ForeignWrites,
    /// The most neighbours prefetched.
    pub prefetch: u16,
    /// The places of the list of unsync pages.
    pub unsync_limit: u16,
    /// Main memory's flags.
    pub flags: SlotFlags,
    /// Whether the data frames have a second name.
    pub alias: Alias,
}

/// Whether the data frames have a second name: another slot on the same host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alias {
    /// They have: exactness is then promised for tables elsewhere only.
    Shown,
    /// They have not.
    None,
}

/// A program in the state after some steps.
#[derive(Debug)]
pub struct Program {
    /// The machine that it runs on.
    pub machine: Machine,
    main: SlotId,
    main_flags: SlotFlags,
    other: Option<SlotId>,
    /// Frames written since the log was last taken, of frames whose slot has logged since.
    written: std::collections::BTreeSet<u64>,
    ground: Ground,
}

/// Returns the address that a number chooses: slots 0 or 1 at each level; half of the time at the lower two only.
#[must_use]
pub fn address(at: u8) -> u64 {
    let bit = |level: u32| ((at >> (level - 1) & 1) as u64) << (12 + 9 * (level - 1));
    let near = bit(1) | bit(2);
    if at & 0x80 == 0 {
        near | bit(3) | bit(4)
    } else {
        near
    }
}

/// Returns the entry that a number chooses for a table (a frame of [`TABLES`]): mostly what a kernel would store there.
///
/// Tables 0 and 4 are roots by nature, 1 and 5 the level below, and so on; 3 and 7 hold pages.
#[must_use]
pub const fn value(choice: u16, table: u64) -> u64 {
    let which = (choice >> 4 & 7) as u64;
    let flags = match choice >> 7 & 31 {
        0 => P | U | A | D,
        1 => P | W | A | D,
        2 => P | W | U,
        3 => P | W | U | A,
        4 => P | U | A,
        5 => P | W | U | A | D | NX,
        6 => P | W | U | A | D | G,
        7 => P | A | D,
        8 => P | U,
        _ => P | W | U | A | D,
    };
    let height = table % 4;
    match choice & 15 {
        0 => 0,
        1 if height == 2 => entry(0, flags | PS),
        2 if height == 2 => entry(512, flags | PS),
        3 => entry(OTHER + which * 37, flags),
        4 if height == 2 => entry(1024, flags | PS),
        5 if which == 0 => entry(which, flags | RESERVED),
        6 => entry(ALIAS + (which / 2) * ALIAS_STRIDE + which, flags),
        7 if which < 4 => entry(900 + which * 100, flags),
        8 => entry(TABLES + which, flags),
        9 => entry(DATA + which, flags),
        _ if height == 3 => entry(DATA + which, flags),
        _ => entry(TABLES + (which & 4) + height + 1, flags),
    }
}

impl Program {
    /// Makes a guest with a tree, and its processors on the first root.
    #[must_use]
    pub fn new(ground: Ground) -> Self {
        let mut setup = Setup {
            policy: ground.policy,
            writes: ground.writes,
            ..Setup::new(ground.engine, u16::from(ground.cpus))
        };
        setup.config.unsync_level = ground.unsync_level;
        setup.config.foreign_writes = ground.foreign_writes;
        setup.config.prefetch = ground.prefetch;
        setup.config.unsync_limit = ground.unsync_limit;
        if ground.max_pages != 0 {
            setup.config.max_pages = least_pages(&setup.config).max(ground.max_pages);
        }
        let mut machine = Machine::new(&setup);
        let main = machine.add_slot(0, 1024, MAIN_HOST, ground.flags);
        let other = machine.add_slot(OTHER, OTHER_FRAMES, OTHER_HOST, SlotFlags::empty());
        if ground.alias == Alias::Shown {
            for i in 0..ALIASES {
                let base = ALIAS + i * ALIAS_STRIDE;
                machine.add_slot(base, TABLE_COUNT, MAIN_HOST + DATA, SlotFlags::empty());
            }
        }
        for table in TABLES..TABLES + TABLE_COUNT {
            map_window(&mut machine, table);
        }
        for level in 0..3 {
            machine.poke(
                slot(TABLES + level, 0),
                entry(TABLES + level + 1, P | W | U),
            );
        }
        machine.poke(slot(TABLES + 3, 0), entry(DATA, P | W | U));
        machine.poke(slot(TABLES + 3, 1), entry(DATA + 1, P | W | U | A | D));
        for cpu in 0..usize::from(ground.cpus) {
            machine.set_state(cpu, long4(TABLES));
        }
        Self {
            machine,
            main,
            main_flags: ground.flags,
            other: Some(other),
            written: std::collections::BTreeSet::new(),
            ground,
        }
    }

    /// Takes one step.
    pub fn step(&mut self, step: Step) {
        let cpus = usize::from(self.ground.cpus);
        let cpu = |cpu: u8| usize::from(cpu) % cpus;
        // Half of the time the level-1 table of the first tree.
        let table = |table: u8| {
            TABLES
                + if table & 0x80 == 0 {
                    u64::from(table) % TABLE_COUNT
                } else {
                    3
                }
        };
        let at = |t: u8, s: u8| slot(table(t), u64::from(s) % 2);
        match step {
            Step::Access {
                cpu: c,
                at,
                access,
                value: v,
            } => {
                self.access(cpu(c), at, access, v);
            }
            Step::Edit {
                cpu: c,
                table: t,
                slot: s,
                value: v,
            } => {
                let seen = self
                    .machine
                    .write(cpu(c), window(at(t, s)), value(v, table(t)), WRITE);
                self.wrote(seen);
            }
            Step::Emulated {
                table: t,
                slot: s,
                value: v,
            } => {
                self.machine.emulated_write(at(t, s), value(v, table(t)));
            }
            Step::Unseen {
                table: t,
                slot: s,
                value: v,
            } => {
                self.machine.poke_unseen(at(t, s), value(v, table(t)));
            }
            Step::Report { table: t } => {
                let odd = self.machine.tainted.first().copied();
                self.machine.report(odd.unwrap_or(table(t)));
            }
            Step::Invlpg { cpu: c, at } => self.machine.invlpg(cpu(c), address(at)),
            Step::LoadCr3 { cpu: c, table: t } => {
                // Mostly a table that is a root by nature.
                let root = if t & 0x30 == 0 {
                    table(t)
                } else {
                    table(t & 4)
                };
                self.machine.load_cr3(cpu(c), root << 12);
            }
            Step::Flush { cpu: c } => self.machine.flush(cpu(c)),
            Step::Controls { cpu: c, bits } => self.controls(cpu(c), bits),
            Step::TakeBack { frame, frames } => {
                let frame = chosen_frame(frame);
                self.machine.take_back(frame, 1 + u64::from(frames % 8));
            }
            Step::Share { frame } => self.share(chosen_frame(frame)),
            Step::Size { large } => {
                let limit = if large & 1 == 0 {
                    Some(Level::L1)
                } else {
                    None
                };
                // A host that splits its large frames takes them back first.
                let all = self
                    .machine
                    .mmu
                    .invalidate_begin(Gfn::new(0), OTHER + OTHER_FRAMES);
                self.machine.host.limit_size(limit);
                drop(all);
            }
            Step::Slot => self.toggle_slot(),
            Step::Flags { bits } => self.flags(bits),
            Step::Unprotect { cpu: c, table: t } => {
                let _ = self.machine.unprotect(cpu(c), table(t));
            }
            Step::Harvest { which } => self.harvest(which),
            Step::Exit { cpu: c } => self.machine.host.exit(cpu(c)),
        }
        self.machine.check();
    }

    fn access(&mut self, cpu: usize, at: u8, access: u8, stored: u16) {
        let access = Access::ALL[usize::from(access) % 12];
        let va = address(at) + u64::from(stored >> 15) * 8;
        if access.is_write() {
            let seen = self
                .machine
                .write(cpu, va, value(stored, u64::from(at)), access);
            self.wrote(seen);
        } else {
            let _ = self.machine.access(cpu, va, access);
        }
    }

    fn wrote(&mut self, seen: Seen) {
        if let Seen::Memory(hpa) = seen {
            // Several guest frames may show it; the one written through is among them, and only a single one is certain.
            if let [gpa] = self.machine.gpas(hpa)[..] {
                self.written.insert(gpa >> 12);
            }
        }
    }

    fn controls(&mut self, cpu: usize, bits: u8) {
        let mut state = self.machine.cpus[cpu].state;
        let on = |bit: u8| bits >> bit & 1 != 0;
        state.cr0.set(Cr0::WP, on(0));
        state.cr4.set(Cr4::SMEP, on(1));
        state.cr4.set(Cr4::SMAP, on(2));
        state.efer.set(Efer::NXE, on(3));
        state.cr4.set(Cr4::PGE, on(4));
        self.machine.set_state(cpu, state);
    }

    fn share(&mut self, gfn: u64) {
        let Some(slot) = self
            .machine
            .slot_of(vmmu::AddressSpace::Normal, gfn)
            .copied()
        else {
            return;
        };
        let invalidation = self.machine.mmu.invalidate_begin(Gfn::new(gfn), 1);
        let frame = gfn - slot.config.base.get();
        self.machine.host.share(slot.config.token, frame);
        drop(invalidation);
    }

    fn toggle_slot(&mut self) {
        match self.other.take() {
            Some(id) => {
                self.machine.remove_slot(id);
                self.written.retain(|gfn| *gfn < OTHER);
            }
            None => {
                let flags = SlotFlags::empty();
                let id = self
                    .machine
                    .add_slot(OTHER, OTHER_FRAMES, OTHER_HOST, flags);
                self.other = Some(id);
            }
        }
    }

    fn flags(&mut self, bits: u8) {
        let log = if bits & 2 != 0 {
            SlotFlags::LOG_DIRTY
        } else {
            SlotFlags::empty()
        };
        if bits & 1 == 0 {
            self.main_flags = log;
            self.machine.set_slot_flags(self.main, log);
            self.written.clear();
        } else if let Some(id) = self.other {
            let read_only = if bits & 4 != 0 {
                SlotFlags::READ_ONLY
            } else {
                SlotFlags::empty()
            };
            self.machine.set_slot_flags(id, log | read_only);
            self.written.clear();
        }
    }

    /// Takes a dirty log: every frame written since has to be in it.
    fn harvest(&mut self, which: u8) {
        let id = if which & 1 == 0 {
            Some(self.main)
        } else {
            self.other
        };
        let Some(id) = id else { return };
        let Some(slot) = self.machine.slots.iter().find(|s| s.id == id).copied() else {
            return;
        };
        let mut taken = std::collections::BTreeSet::new();
        let result = self.machine.mmu.harvest_dirty(id, |gfn| {
            taken.insert(gfn.get());
        });
        if !slot.config.flags.contains(SlotFlags::LOG_DIRTY) {
            assert!(result.is_err());
            return;
        }
        result.expect("the slot logs");
        let range = slot.config.base.get()..slot.config.base.get() + slot.config.frames;
        for gfn in self.written.range(range.clone()) {
            assert!(
                taken.contains(gfn),
                "frame {gfn:#x} was written and is not in the log"
            );
        }
        self.written.retain(|gfn| !range.contains(gfn));
    }
}

fn chosen_frame(choice: u8) -> u64 {
    match choice % 4 {
        0 => TABLES + u64::from(choice >> 2) % TABLE_COUNT,
        1 => OTHER + u64::from(choice >> 2) * 37 % OTHER_FRAMES,
        2 => 512 + u64::from(choice >> 2),
        _ => DATA + u64::from(choice >> 2) % TABLE_COUNT,
    }
}

fn least_pages(config: &Config) -> u32 {
    config.smallest_limit()
}

/// Runs a program from the start; checks after each step, and that nothing is left when the machine goes.
pub fn run(ground: Ground, steps: &[Step]) -> Judged {
    let mut program = Program::new(ground);
    for step in steps {
        program.step(*step);
    }
    let host = program.machine.host.clone();
    let mut judged = program.machine.judged;
    judged.reclaimed = program.machine.mmu.stats().get(Event::Reclaim);
    drop(program);
    assert_eq!(host.tables(), 0, "tables are left after teardown");
    judged
}
