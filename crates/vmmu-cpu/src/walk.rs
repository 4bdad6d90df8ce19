//! The walker: from an address through table entries in memory to a leaf, setting A and D.
//!
//! One loop serves every format and both dimensions. In a walk of linear addresses under nested
//! paging, each table's own address is translated first ([`crate::nested`]).
//!
//! Key types: [`Job`] (what to walk), [`Leaf`] (what came out).
//!
//! Invariants:
//! 1. An entry is read once; what is used of it is what was read, or the walk looks again.
//! 2. A and D are set by compare-exchange against the value that was decoded: an entry that
//!    changed meanwhile is decoded anew (Intel SDM vol. 3, 4.8; APM vol. 2, 5.4.2).
//! 3. Nothing is cached whose accessed bit is not set, and D only for a granted write.
//! 4. What is read from a frame that is not usable as a table is never decoded.

use crate::access::{self, Access, Kind, Rights};
use crate::addr::{Gpa, Hpa, Level, PageSize, Va};
use crate::cpu::Cpu;
use crate::event::Event;
use crate::fault::{EptQualification, Fault, Misuse, NpfCode, PfCode, Via, Violation};
use crate::format::{Format, Limits, Step};
use crate::mem::pool::Moment;
use crate::physical::Physical;
use crate::policy::Odds;
use crate::regs::PagingMode;
use crate::structures::{self, StructureEntry};
use crate::tlb::{Stage, Tag, TlbEntry};

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// An access: rights are checked, D is set for a write.
    Access(Access),
    /// A guess: the caches are filled, A is set (but in a guest's own tables below nested ones, where it ends), no right is checked.
    Guess,
}

impl Want {
    /// Returns the access that the nested tables see for the final address.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Access(access) => access.kind,
            Self::Guess => Kind::Read,
        }
    }
}

/// What a guest-physical address is that nested tables translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The page that the access goes to.
    Final,
    /// A table of the guest.
    Table,
}

/// A walk to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) tag: Tag,
    pub(crate) format: Format,
    pub(crate) limits: Limits,
    /// Linear or, in the second dimension, guest-physical.
    pub(crate) address: u64,
    pub(crate) want: Want,
    /// The linear address behind it.
    pub(crate) va: Va,
    /// Only for the second dimension.
    pub(crate) purpose: Purpose,
}

/// The end of a successful walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    /// First byte of the page: guest-physical in a linear walk, host-physical in a nested one.
    pub(crate) base: u64,
    pub(crate) size: PageSize,
    pub(crate) rights: Rights,
    pub(crate) key: u8,
    pub(crate) global: bool,
    pub(crate) dirty: bool,
    pub(crate) since: Moment,
}

/// Where a table is.
#[derive(Clone, Copy, Debug)]
struct Table {
    hpa: Hpa,
    /// The nested tables allow the processor to write it.
    writable: bool,
    since: Moment,
}

/// How far a walk has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    level: Level,
    /// The table's address as the walk knows it.
    address: u64,
    table: Option<Table>,
    rights: Rights,
    via: Via,
    since: Moment,
}

impl<M: Physical> Cpu<M> {
    /// Walks to the leaf for `job`, filling the paging-structure caches on the way.
    pub(crate) fn walk(&mut self, job: &Job) -> Result<Leaf, Fault> {
        let mut at = self.start(job)?;
        loop {
            let table = self.resolve(job, &mut at)?;
            let slot = table
                .hpa
                .plus(job.format.entry_offset(at.level, job.address));
            let entry = self.load_entry(job, &at, slot, table.since)?;
            // After the load: see `PhysMemory::moment`.
            let since = self.mem.moment();
            let status = job.format.status_bits(at.level, &job.limits);
            match job.format.decode(entry, at.level, &job.limits) {
                Step::NotPresent => return Err(self.absent(job, at.rights)),
                Step::Reserved => return Err(self.reserved(job)),
                Step::Table(next) => {
                    if !self.mark(job, &at, slot, entry, status.accessed)? {
                        continue;
                    }
                    let rights = at.rights & job.format.rights(entry, at.level);
                    at = self.descend(job, &at, next, rights, since)?;
                }
                Step::Page(base, size) => {
                    let rights = at.rights & job.format.rights(entry, at.level);
                    let key = job.format.key(entry);
                    self.check_leaf(job, rights, key)?;
                    let writes = job.want.kind() == Kind::Write;
                    let dirty = if writes { status.dirty } else { 0 };
                    if !self.mark(job, &at, slot, entry, status.accessed | dirty)? {
                        continue;
                    }
                    return Ok(Leaf {
                        base,
                        size,
                        rights,
                        key,
                        global: job.format.global(entry),
                        dirty: (entry | dirty) & status.dirty == status.dirty,
                        since,
                    });
                }
            }
        }
    }

    /// Chooses where to begin: a cached structure entry, a PDPTE register, or the root.
    fn start(&mut self, job: &Job) -> Result<Cursor, Fault> {
        let mut level = Level::L2;
        loop {
            if self.policy.use_structures.hit(&mut self.rng)
                && let Some(entry) =
                    self.structures
                        .pick(job.tag, job.format, level, job.address, &mut self.rng)
            {
                self.counters.structure_hits += 1;
                return Ok(Cursor::from_cache(&entry));
            }
            if level == job.format.top() {
                return self.start_at_root(job);
            }
            level = match level {
                Level::L2 => Level::L3,
                Level::L3 => Level::L4,
                _ => Level::L5,
            };
        }
    }

    fn start_at_root(&mut self, job: &Job) -> Result<Cursor, Fault> {
        let (raw, since) = match job.tag.stage() {
            Stage::Linear => (self.regs.cr3.get(), self.root_since),
            Stage::Physical => (self.nested.map_or(0, |n| n.root.get()), self.nested_since),
        };
        let root = Cursor {
            level: job.format.top(),
            address: job.format.root_address(raw),
            table: None,
            rights: Rights::all(),
            via: Via::Root,
            since,
        };
        let Some(pdptes) = self.pdptes.filter(|_| job.format == Format::Pae) else {
            return Ok(root);
        };
        let entry = pdptes.entries[(job.address >> 30 & 3) as usize];
        match job.format.decode(entry, Level::L3, &job.limits) {
            Step::Table(address) => Ok(Cursor {
                level: Level::L2,
                address,
                since: pdptes.since,
                ..root
            }),
            _ => Err(self.absent(job, Rights::all())),
        }
    }

    /// Finds the table in host-physical memory.
    fn resolve(&mut self, job: &Job, at: &mut Cursor) -> Result<Table, Fault> {
        let table = match at.table {
            Some(table) => table,
            None if job.tag.stage() == Stage::Linear && self.nested.is_some() => {
                let kind = self.table_kind();
                let page = self.translate_table(job, at.address, kind)?;
                let hpa = page.translate(at.address);
                Table {
                    hpa,
                    writable: kind == Kind::Write,
                    since: page.since,
                }
            }
            None => Table {
                hpa: Hpa::new(at.address),
                writable: true,
                since: at.since,
            },
        };
        at.table = Some(table);
        Ok(table)
    }

    /// Moves to the next table, and caches the way there.
    fn descend(
        &mut self,
        job: &Job,
        at: &Cursor,
        address: u64,
        rights: Rights,
        since: Moment,
    ) -> Result<Cursor, Fault> {
        let Some(level) = at.level.below() else {
            // A level-1 entry is always a leaf; a decoder that says otherwise ends the walk.
            return Err(self.reserved(job));
        };
        let mut next = Cursor {
            level,
            address,
            table: None,
            rights,
            via: Via::Entry(at.level),
            since,
        };
        let table = self.resolve(job, &mut next)?;
        if self.policy.use_structures == Odds::NEVER {
            return Ok(next);
        }
        self.fill_structure(StructureEntry {
            tag: job.tag,
            format: job.format,
            level: at.level,
            base: structures::base(job.format, at.level, job.address),
            table: address,
            hpa: table.hpa,
            writable: table.writable,
            rights,
            root: self.root_frame(),
            since: table.since,
        });
        Ok(next)
    }

    /// Sets the bits of `mask` in an entry that was read as `entry`. Says whether the walk may go
    /// on; if not, the entry changed and must be read again.
    fn mark(
        &mut self,
        job: &Job,
        at: &Cursor,
        slot: Hpa,
        entry: u64,
        mask: u64,
    ) -> Result<bool, Fault> {
        if entry & mask == mask {
            return Ok(true);
        }
        if job.want == Want::Guess && job.tag.stage() == Stage::Linear && self.nested.is_some() {
            // No processor has to guess. A guest that counts its own accesses by its accessed bits goes on doing so.
            return Err(self.absent(job, at.rights));
        }
        let slot = if at.table.is_none_or(|table| table.writable) {
            slot
        } else {
            // The table was only read so far: the write asks the nested tables again.
            let address = at.address + job.format.entry_offset(at.level, job.address);
            let page = self.translate_table(job, address, Kind::Write)?;
            page.translate(address)
        };
        let done = if job.format.entry_bytes() == 4 {
            self.mem
                .compare_exchange32(slot, entry as u32, (entry | mask) as u32)
                .is_ok()
        } else {
            self.mem.compare_exchange(slot, entry, entry | mask).is_ok()
        };
        if done {
            self.counters.marks += 1;
            self.note(Event::Marked {
                hpa: slot,
                old: entry,
                new: entry | mask,
            });
        }
        Ok(done)
    }

    /// Reads an entry, and makes sure that it is in a table.
    fn load_entry(
        &mut self,
        job: &Job,
        at: &Cursor,
        slot: Hpa,
        since: Moment,
    ) -> Result<u64, Fault> {
        let loaded = if job.format.entry_bytes() == 4 {
            self.mem.walk_load32(slot, since).map(u64::from)
        } else {
            self.mem.walk_load(slot, since)
        };
        loaded.map_err(|why| {
            self.violation(Violation {
                kind: Misuse::Table(why),
                frame: slot.frame(),
                via: at.via,
                address: job.address,
            })
        })
    }

    fn check_leaf(&self, job: &Job, rights: Rights, key: u8) -> Result<(), Fault> {
        let Want::Access(access) = job.want else {
            return Ok(());
        };
        if job.tag.stage() == Stage::Linear {
            access::check(access, rights, key, &self.regs)
                .map_err(|code| Fault::Page { va: job.va, code })
        } else if rights.allow_nested(access.kind) {
            Ok(())
        } else {
            Err(self.nested_fault(job, NpfCode::PRESENT, rights))
        }
    }

    /// The fault for an entry that is not present.
    fn absent(&self, job: &Job, rights: Rights) -> Fault {
        match job.tag.stage() {
            Stage::Linear => self.page_fault(job, PfCode::empty()),
            Stage::Physical => self.nested_fault(job, NpfCode::empty(), rights & Rights::USER),
        }
    }

    /// The fault for an entry with a reserved bit set.
    fn reserved(&self, job: &Job) -> Fault {
        match job.tag.stage() {
            Stage::Linear => self.page_fault(job, PfCode::PRESENT | PfCode::RESERVED),
            Stage::Physical if job.format.is_ept() => Fault::EptMisconfig {
                gpa: Gpa::new(job.address),
            },
            Stage::Physical => {
                self.nested_fault(job, NpfCode::PRESENT | NpfCode::RESERVED, Rights::empty())
            }
        }
    }

    fn page_fault(&self, job: &Job, cause: PfCode) -> Fault {
        let request = match job.want {
            Want::Access(access) => access::request_code(access, &self.regs),
            Want::Guess => PfCode::empty(),
        };
        Fault::Page {
            va: job.va,
            code: cause | request,
        }
    }

    /// The fault of the second dimension; `rights` are those of the entries used.
    pub(crate) fn nested_fault(&self, job: &Job, cause: NpfCode, rights: Rights) -> Fault {
        let (gpa, kind) = (Gpa::new(job.address), job.want.kind());
        let last = job.purpose == Purpose::Final;
        if !job.format.is_ept() {
            let mut code = cause | NpfCode::USER;
            code.set(NpfCode::WRITE, kind == Kind::Write);
            code.set(NpfCode::FETCH, kind == Kind::Execute && job.limits.nxe);
            code |= if last { NpfCode::FINAL } else { NpfCode::TABLE };
            return Fault::Nested { gpa, code };
        }
        let mut qualification = EptQualification::LINEAR_VALID;
        // Writes to guest tables are read-modify-writes, and reported as both.
        qualification.set(
            EptQualification::READ,
            kind == Kind::Read || (kind == Kind::Write && !last),
        );
        qualification.set(EptQualification::WRITE, kind == Kind::Write);
        qualification.set(EptQualification::FETCH, kind == Kind::Execute);
        qualification.set(EptQualification::READABLE, rights.contains(Rights::READ));
        qualification.set(EptQualification::WRITABLE, rights.contains(Rights::WRITE));
        qualification.set(
            EptQualification::EXECUTABLE,
            rights.contains(Rights::EXECUTE),
        );
        qualification.set(EptQualification::FINAL, last);
        Fault::EptViolation {
            gpa,
            va: job.va,
            qualification,
        }
    }

    /// Walks the tables at CR3 for `va`.
    pub(crate) fn walk_linear(&mut self, va: Va, want: Want) -> Result<TlbEntry, Fault> {
        let tag = self.linear_tag();
        let leaf = match self.regs.mode() {
            PagingMode::Off => Leaf {
                base: va.base(PageSize::Size1G).get(),
                size: PageSize::Size1G,
                rights: Rights::all(),
                key: 0,
                global: false,
                dirty: true,
                since: Moment::LATEST,
            },
            PagingMode::Tables(format) => {
                self.counters.walks += 1;
                let limits = self.linear_limits();
                let address = va.get();
                self.walk(&Job {
                    tag,
                    format,
                    limits,
                    address,
                    want,
                    va,
                    purpose: Purpose::Final,
                })?
            }
        };
        let entry = self.complete(va, want, tag, &leaf)?;
        if self.nested.is_some() || self.regs.mode() != PagingMode::Off {
            self.fill(entry);
        }
        Ok(entry)
    }
}

impl Cursor {
    fn from_cache(entry: &StructureEntry) -> Self {
        Self {
            level: entry.level.below().unwrap_or(Level::L1),
            address: entry.table,
            table: Some(Table {
                hpa: entry.hpa,
                writable: entry.writable,
                since: entry.since,
            }),
            rights: entry.rights,
            via: Via::StructureCache(entry.level),
            since: entry.since,
        }
    }
}
