//! The operations: how each is set up and played, how often, and what others need for it.
//!
//! Key types: [`Operation`], [`Played`]. Counts are smaller than the peer's where each repetition is alike.

use vmmu::addr::{Gpa, Level};
use vmmu::walk::AccessKind;
use vmmu::{Engine, Event};

use crate::guest::{BASE, BOOT_ROOT, DATA, FRESH, Guest, READ_ONLY, Repair, USED, bootstrap};
use crate::machine::{Machine, Trouble, new_mmu};
use crate::meter::Reading;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Nothing, to be subtracted.
    Empty,
    /// Touching fresh pages in order, A and D set.
    FreshUsed,
    /// Touching fresh pages in order, A and D clear.
    FreshClear,
    /// Touching one fresh page in eight.
    FreshSparse,
    /// Touching known pages by new addresses.
    KnownPage,
    /// Loading the CR3 that is loaded.
    SameRoot,
    /// Switching among eight roots.
    EightRoots,
    /// INVLPG of a page that has not changed.
    Invlpg,
    /// A leaf write, INVLPG, a touch.
    LeafInvlpg,
    /// A leaf write, CR3, a touch; one entry in the table.
    LeafCr3Lonely,
    /// A leaf write, CR3, a touch; 512 entries in the table.
    LeafCr3Full,
    /// A PDE write, INVLPG, a touch.
    PdeInvlpg,
    /// Rewriting a table, CR3, touching all: per page.
    Rewrite,
    /// A copy-on-write fault.
    CopyOnWrite,
    /// A demand fault.
    Demand,
    /// The life of an address space of 64 pages.
    Life,
    /// Nested paging: fresh pages in order.
    NestedFresh,
    /// Nested paging: one fresh page in eight.
    NestedSparse,
}

/// What playing an operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Played {
    /// How often it was played.
    pub count: u64,
    /// What the meter read.
    pub reading: Reading,
    /// What the library did.
    pub events: Vec<(Event, u64)>,
}

impl Operation {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 18] = [
        Self::Empty,
        Self::FreshUsed,
        Self::FreshClear,
        Self::FreshSparse,
        Self::KnownPage,
        Self::SameRoot,
        Self::EightRoots,
        Self::Invlpg,
        Self::LeafInvlpg,
        Self::LeafCr3Lonely,
        Self::LeafCr3Full,
        Self::PdeInvlpg,
        Self::Rewrite,
        Self::CopyOnWrite,
        Self::Demand,
        Self::Life,
        Self::NestedFresh,
        Self::NestedSparse,
    ];

    /// Returns the operation's name on the command line and in the table, and the instructions that the MMU of Linux 6.1's KVM takes for it.
    pub const fn names(self) -> (&'static str, &'static str, Option<u32>) {
        match self {
            Self::Empty => ("empty", "nothing", None),
            Self::FreshUsed => ("fresh-used", "fresh page, in order, A/D set", Some(1_040)),
            Self::FreshClear => ("fresh-clear", "fresh page, A/D clear", Some(3_190)),
            Self::FreshSparse => ("fresh-sparse", "fresh page, one in eight", Some(8_374)),
            Self::KnownPage => ("known-page", "known page by a new address", Some(3_385)),
            Self::SameRoot => ("same-root", "CR3 reload, same root", Some(65)),
            Self::EightRoots => ("eight-roots", "CR3 switch, 8 roots + touch", Some(688)),
            Self::Invlpg => ("invlpg", "INVLPG only", Some(575)),
            Self::LeafInvlpg => ("leaf-invlpg", "leaf write + INVLPG + touch", Some(2_674)),
            Self::LeafCr3Lonely => ("leaf-cr3-1", "leaf write + CR3 + touch, 1", Some(13_529)),
            Self::LeafCr3Full => (
                "leaf-cr3-512",
                "leaf write + CR3 + touch, 512",
                Some(237_418),
            ),
            Self::PdeInvlpg => ("pde-invlpg", "PDE write + INVLPG + touch", Some(6_972)),
            Self::Rewrite => ("rewrite", "rewrite 512 + CR3 + touch, a page", Some(1_364)),
            Self::CopyOnWrite => ("cow", "copy-on-write fault (2 INVLPG)", Some(7_797)),
            Self::Demand => ("demand", "demand fault (1 INVLPG)", Some(5_783)),
            Self::Life => ("life", "address-space life, 64 pages", Some(346_908)),
            Self::NestedFresh => ("npt-fresh", "NPT: fresh page, in order", None),
            Self::NestedSparse => ("npt-sparse", "NPT: fresh page, one in eight", None),
        }
    }

    /// Finds an operation by its name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.names().0 == name)
    }

    /// Plays the operation on a new machine.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn play(self) -> Result<Played, Trouble> {
        let engine = match self {
            Self::NestedFresh | Self::NestedSparse => Engine::Npt,
            _ => Engine::Shadow,
        };
        let mmu = new_mmu(engine, Level::L1)?;
        bootstrap(mmu.host());
        let machine = Machine::new(&mmu, Gpa::new(BOOT_ROOT))?;
        let mut play = Play {
            guest: Guest::new(machine),
            root: BOOT_ROOT,
        };
        let (count, reading) = play.run(self)?;
        Ok(Played {
            count,
            reading,
            events: play.guest.machine.events(),
        })
    }
}

/// An operation under way.
struct Play<'m> {
    guest: Guest<'m>,
    root: u64,
}

type Result2 = Result<(u64, Reading), Trouble>;

impl Play<'_> {
    fn run(&mut self, operation: Operation) -> Result2 {
        match operation {
            Operation::NestedFresh => return self.nested(1),
            Operation::NestedSparse => return self.nested(8),
            _ => {}
        }
        self.guest.load_cr3(BOOT_ROOT)?;
        self.root = self.guest.new_root()?;
        self.guest.load_cr3(self.root)?;
        match operation {
            Operation::Empty => self.repeat(1000, |guest, _| {
                guest.machine.nothing();
                Ok(())
            }),
            Operation::FreshUsed => self.fresh(1024, 1, USED),
            Operation::FreshClear => self.fresh(1024, 1, FRESH),
            Operation::FreshSparse => self.fresh(512, 8, USED),
            Operation::KnownPage => self.known(),
            Operation::SameRoot => {
                let root = self.root;
                self.repeat(1000, |guest, _| guest.load_cr3(root))
            }
            Operation::EightRoots => self.eight_roots(),
            Operation::LeafCr3Lonely => self.lonely(),
            Operation::Life => self.life(),
            other => self.with_full_table(other),
        }
    }

    fn repeat(
        &mut self,
        count: u64,
        mut work: impl FnMut(&mut Guest<'_>, u64) -> Result<(), Trouble>,
    ) -> Result2 {
        self.guest.machine.start();
        for i in 0..count {
            work(&mut self.guest, i)?;
        }
        Ok((count, self.guest.machine.stop()))
    }

    fn nested(&mut self, stride: u64) -> Result2 {
        self.repeat(1024, |guest, i| {
            let gpa = Gpa::new(DATA + i * stride * 4096);
            guest.machine.access_nested(gpa, AccessKind::Write)
        })
    }

    fn fresh(&mut self, pages: u64, stride: u64, flags: u64) -> Result2 {
        let all = pages * stride;
        self.guest.map_run(self.root, BASE, DATA, all, flags)?;
        self.guest.load_cr3(self.root)?;
        self.guest.touch(BASE + (all - 1) * 4096)?;
        self.repeat(pages, |guest, i| guest.touch(BASE + i * stride * 4096))
    }

    fn known(&mut self) -> Result2 {
        let (first, second) = (BASE, BASE + (1 << 32));
        self.guest.map_run(self.root, first, DATA, 1024, USED)?;
        self.guest.load_cr3(self.root)?;
        self.guest.touch_run(first, 1024, 1)?;
        self.guest.map_run(self.root, second, DATA, 1024, FRESH)?;
        self.guest.load_cr3(self.root)?;
        self.guest.touch(second + 1023 * 4096)?;
        self.repeat(1023, |guest, i| guest.touch(second + i * 4096))
    }

    fn eight_roots(&mut self) -> Result2 {
        let mut roots = [0; 8];
        for (i, root) in roots.iter_mut().enumerate() {
            *root = self.guest.new_root()?;
            self.guest
                .map_run(*root, BASE, DATA + i as u64 * 16 * 4096, 16, USED)?;
        }
        for root in roots {
            self.guest.load_cr3(root)?;
            self.guest.touch_run(BASE, 16, 1)?;
        }
        for root in roots {
            self.guest.load_cr3(root)?;
            self.guest.touch(BASE)?;
        }
        self.repeat(1000, |guest, i| {
            guest.load_cr3(roots[i as usize % 8])?;
            guest.touch(BASE)
        })
    }

    fn lonely(&mut self) -> Result2 {
        let root = self.root;
        self.guest.map(root, BASE, DATA, USED)?;
        let entry = self.guest.entry_of(root, BASE, Level::L1)?;
        self.guest.load_cr3(root)?;
        self.guest.touch(BASE)?;
        self.repeat(1000, |guest, i| {
            guest.write(entry, (DATA + (i & 1) * 4096) | USED)?;
            guest.load_cr3(root)?;
            guest.touch(BASE)
        })
    }

    fn life(&mut self) -> Result2 {
        let (root, keep) = (self.root, self.guest.pool);
        let life = |guest: &mut Guest<'_>, _| {
            guest.pool = keep;
            let new = guest.new_root()?;
            guest.map_run(new, BASE, DATA, 64, FRESH)?;
            guest.load_cr3(new)?;
            guest.touch_run(BASE, 64, 1)?;
            guest.load_cr3(root)
        };
        self.repeat(10, life)?;
        self.repeat(30, life)
    }

    fn with_full_table(&mut self, operation: Operation) -> Result2 {
        let root = self.root;
        self.guest.map_run(root, BASE, DATA, 512, USED)?;
        let table = self.guest.entry_of(root, BASE, Level::L1)?;
        self.guest.load_cr3(root)?;
        self.guest.touch_run(BASE, 512, 1)?;
        self.guest.load_cr3(root)?;
        match operation {
            Operation::Invlpg => self.repeat(1000, |guest, _| guest.invlpg(BASE)),
            Operation::LeafInvlpg => self.repeat(1000, |guest, i| {
                guest.write(table, (DATA + (i & 1) * 4096) | USED)?;
                guest.invlpg(BASE)?;
                guest.touch(BASE)
            }),
            Operation::LeafCr3Full => self.repeat(1000, |guest, i| {
                guest.write(table, (DATA + (i & 1) * 4096) | USED)?;
                guest.load_cr3(root)?;
                guest.touch(BASE)
            }),
            Operation::Rewrite => self.rewrite(table),
            Operation::PdeInvlpg => self.pde(),
            Operation::CopyOnWrite => self.guest_fault(table, DATA | READ_ONLY, true),
            _ => self.guest_fault(table, 0, false),
        }
    }

    fn pde(&mut self) -> Result2 {
        let pde = self.guest.entry_of(self.root, BASE, Level::L2)?;
        let old = self.guest.machine.peek(Gpa::new(pde));
        let other = self.guest.new_table()?;
        for i in 0..512 {
            self.guest
                .write(other + i * 8, (DATA + (512 + i) * 4096) | USED)?;
        }
        self.repeat(500, |guest, i| {
            guest.write(pde, if i & 1 == 0 { other | USED } else { old })?;
            guest.invlpg(BASE)?;
            guest.touch(BASE)
        })
    }

    fn rewrite(&mut self, table: u64) -> Result2 {
        let root = self.root;
        let (rounds, reading) = self.repeat(8, |guest, round| {
            for i in 0..512 {
                let frame = (i + round * 7) & 4095;
                guest.write(table + i * 8, (DATA + frame * 4096) | USED)?;
            }
            guest.load_cr3(root)?;
            guest.touch_run(BASE, 512, 1)
        })?;
        Ok((rounds * 512, reading))
    }

    /// Writes an entry that makes the guest's own handler run: copy-on-write, or demand.
    fn guest_fault(&mut self, table: u64, entry: u64, invalidates: bool) -> Result2 {
        let (at, address) = (table + 3 * 8, BASE + 3 * 4096);
        self.guest.repair = Some(Repair {
            at,
            value: (DATA + 3 * 4096) | USED,
            invalidates,
        });
        let entry = if entry == 0 { 0 } else { entry + 3 * 4096 };
        self.repeat(500, |guest, _| {
            guest.write(at, entry)?;
            guest.invlpg(address)?;
            guest.touch(address)
        })
    }
}
