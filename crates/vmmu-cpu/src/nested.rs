//! The second dimension: guest-physical to host-physical addresses through NPT or EPT.
//!
//! Neighbours: [`crate::walk`] asks for guest tables, [`crate::cpu`] for final pages; both come
//! back here for the nested walk itself.
//!
//! Invariants:
//! 1. Accesses to guest tables are writes under NPT (APM vol. 2, 15.25.5) and under EPT with A/D
//!    bits (Intel SDM vol. 3, 29.3.5); without those, reads until a bit must be set.
//! 2. Without nested paging guest-physical and host-physical are one: [`Cpu::complete`] and
//!    [`crate::walk`] say so, nobody else.

use crate::access::{Access, Kind, Privilege, Rights};
use crate::addr::{Gpa, Hpa, Va};
use crate::cpu::Cpu;
use crate::fault::{Fault, Misuse, NpfCode, Via, Violation};
use crate::format::Limits;
use crate::physical::Physical;
use crate::regs::NestedFlags;
use crate::tlb::{Tag, TlbEntry};
use crate::walk::{Job, Leaf, Purpose, Want};

impl<M: Physical> Cpu<M> {
    /// Joins a leaf of the tables at CR3 with the translation of its guest-physical address.
    pub(crate) fn complete(
        &mut self,
        va: Va,
        want: Want,
        tag: Tag,
        leaf: &Leaf,
    ) -> Result<TlbEntry, Fault> {
        let inside = va.get() & (leaf.size.bytes() - 1);
        let own = TlbEntry {
            tag: if leaf.global && self.globals_on() {
                tag.globally()
            } else {
                tag
            },
            page: va.base(leaf.size).get(),
            size: leaf.size,
            whole: leaf.size,
            hpa: Hpa::new(leaf.base),
            gpa: Gpa::new(leaf.base),
            rights: leaf.rights,
            nested: Rights::all(),
            key: leaf.key,
            dirty: leaf.dirty,
            root: self.root_frame(),
            since: leaf.since,
        };
        if self.nested.is_none() {
            return Ok(own);
        }
        let gpa = Gpa::new(leaf.base + inside);
        let host = self.translate_gpa(gpa, want.kind(), Purpose::Final, va)?;
        let size = leaf.size.min(host.size);
        Ok(TlbEntry {
            page: va.base(size).get(),
            size,
            hpa: host.translate(gpa.base(size).get()),
            gpa: gpa.base(size),
            nested: host.nested,
            dirty: leaf.dirty && host.dirty,
            // Only the host's frames are ever freed: the nested entry vouches for this one.
            since: host.since,
            ..own
        })
    }

    /// Translates a guest-physical address for `kind`.
    pub(crate) fn translate_gpa(
        &mut self,
        gpa: Gpa,
        kind: Kind,
        purpose: Purpose,
        va: Va,
    ) -> Result<TlbEntry, Fault> {
        let Some(nested) = self.nested else {
            return Err(Fault::EptMisconfig { gpa });
        };
        let job = Job {
            tag: Tag::physical(self.asid, self.ept),
            format: nested.format,
            limits: Limits::nested(self.model, nested.flags),
            address: gpa.get(),
            want: Want::Access(Access::new(kind, Privilege::User)),
            va,
            purpose,
        };
        if self.policy.use_tlb.hit(&mut self.rng)
            && let Some(entry) = self.tlb.pick(job.tag, job.address, &mut self.rng)
        {
            let allowed = entry.nested.allow_nested(kind);
            if allowed && (kind != Kind::Write || entry.dirty) {
                self.counters.nested_hits += 1;
                return Ok(entry);
            }
            if !allowed && self.policy.believe_denial.hit(&mut self.rng) {
                return Err(self.nested_fault(&job, NpfCode::PRESENT, entry.nested));
            }
        }
        self.walk_nested(&job)
    }

    fn walk_nested(&mut self, job: &Job) -> Result<TlbEntry, Fault> {
        self.counters.nested_walks += 1;
        let addressed = job.format.shift(job.format.top()) + 9;
        if job.address >> addressed != 0 {
            return Err(self.nested_fault(job, NpfCode::empty(), Rights::empty()));
        }
        let leaf = self.walk(job)?;
        let page = job.address & !(leaf.size.bytes() - 1);
        let entry = TlbEntry {
            tag: job.tag,
            page,
            size: leaf.size,
            whole: leaf.size,
            hpa: Hpa::new(leaf.base),
            gpa: Gpa::new(page),
            rights: Rights::all(),
            nested: leaf.rights,
            key: 0,
            dirty: leaf.dirty,
            root: self.root_frame(),
            since: leaf.since,
        };
        self.fill(entry);
        Ok(entry)
    }

    /// Translates the guest-physical address of a guest table for the walk `job`.
    pub(crate) fn translate_table(
        &mut self,
        job: &Job,
        table: u64,
        kind: Kind,
    ) -> Result<TlbEntry, Fault> {
        self.translate_gpa(Gpa::new(table), kind, Purpose::Table, job.va)
    }

    /// Returns how the walker accesses guest tables before it has to set a bit.
    pub(crate) fn table_kind(&self) -> Kind {
        match self.nested {
            Some(n) if n.format.is_ept() && !n.flags.contains(NestedFlags::ACCESSED_DIRTY) => {
                Kind::Read
            }
            _ => Kind::Write,
        }
    }

    /// Checks the page of an entry that is about to be used for `va`.
    pub(crate) fn check_page(&mut self, entry: &TlbEntry, va: Va, via: Via) -> Result<(), Fault> {
        let frame = entry.translate(va.get()).frame();
        self.mem.usable(frame, entry.since).map_err(|why| {
            self.violation(Violation {
                kind: Misuse::Page(why),
                frame,
                via,
                address: va.get(),
            })
        })
    }
}
