//! Invalidation, and the register writes and world switches that imply it.
//!
//! Key types: [`Flush`], [`World`]. As the manuals demand and no more: whatever an operation may
//! leave cached, this processor keeps (Intel SDM vol. 3, 4.10.4.1 and 29.4.3; APM vol. 2, 5.5.3
//! and 15.16).
//!
//! Invariants:
//! 1. Nothing but these operations, faults and evictions removes an entry.

use crate::addr::{Asid, Hpa, Level, Pcid, Va};
use crate::cpu::{Cpu, Pdptes};
use crate::event::Event;
use crate::fault::{Fault, Misuse, Via, Violation};
use crate::format::{Format, Step};
use crate::mem::pool::Moment;
use crate::physical::Physical;
use crate::regs::{Cr0, Cr3, Cr4, Efer, Features, Nested, PagingMode, Registers};
use crate::structures::StructureEntry;
use crate::tlb::{EptNumber, Stage, TlbEntry};
use crate::walk::{Job, Purpose, Want};

/// What an invalidation drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// Everything of every guest (TLB_CONTROL 1; INVEPT and INVVPID all-context together).
    All,
    /// Everything of an ASID, global and guest-physical translations included (TLB_CONTROL 3).
    Asid(Asid),
    /// Everything of an ASID but global translations (TLB_CONTROL 7).
    AsidNonGlobal(Asid),
    /// Linear translations of a VPID; guest-physical ones stay (INVVPID single-context).
    Vpid(Asid),
    /// The translations of one PCID that are not global (MOV to CR3, INVPCID type 1).
    Pcid(Asid, Pcid),
    /// Linear translations of an ASID that are not global, for every PCID (INVPCID type 3).
    NonGlobal(Asid),
    /// Everything that came through the EPT with this root (INVEPT single-context).
    Ept(Hpa),
    /// Translations of an address for a PCID, global ones included (INVLPG).
    Address(Asid, Pcid, Va),
    /// Translations of an address for a PCID but global ones (INVPCID type 0).
    AddressNonGlobal(Asid, Pcid, Va),
    /// Translations of an address for an ASID, whatever the PCID (INVLPGA, INVVPID type 0).
    AddressOfAsid(Asid, Va),
}

/// What a world switch (VMRUN, VM entry, VM exit) loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The registers.
    pub regs: Registers,
    /// The ASID or VPID.
    pub asid: Asid,
    /// The nested tables, if there are.
    pub nested: Option<Nested>,
}

impl<M: Physical> Cpu<M> {
    /// Switches worlds, dropping only what `flush` says (VMRUN with TLB_CONTROL; APM vol. 2,
    /// 15.16.1). With PAE paging, loads the PDPTE registers, if the processor has them.
    ///
    /// # Errors
    /// [`Fault::BadPdpte`], and what reading the PDPTEs may cause. The world is loaded all the
    /// same; the entry has failed.
    pub fn enter(&mut self, world: &World, flush: Flush) -> Result<(), Fault> {
        self.regs = world.regs;
        self.asid = world.asid;
        self.nested = world.nested;
        self.ept = self.ept_number(world.nested);
        self.root_since = self.mem.moment();
        self.nested_since = self.root_since;
        self.flush(flush);
        self.load_pdptes()
    }

    /// Executes MOV to CR3: drops the PCID's translations but global ones, unless CR4.PCIDE and
    /// [`Cr3::NO_FLUSH`] are set.
    ///
    /// # Errors
    /// As [`Cpu::enter`]; CR3 keeps its value then.
    pub fn mov_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let tagged = self.regs.cr4.contains(Cr4::PCIDE);
        let keep = tagged && value & Cr3::NO_FLUSH != 0;
        let old = self.regs.cr3;
        self.regs.cr3 = Cr3::new(if tagged {
            value & !Cr3::NO_FLUSH
        } else {
            value
        });
        if let Err(fault) = self.load_pdptes() {
            self.regs.cr3 = old;
            return Err(fault);
        }
        self.root_since = self.mem.moment();
        if !keep {
            self.flush(Flush::Pcid(self.asid, self.regs.pcid()));
        }
        Ok(())
    }

    /// Executes MOV to CR0: a change of PG drops everything linear.
    ///
    /// # Errors
    /// As [`Cpu::enter`]; CR0 keeps its value then.
    pub fn mov_cr0(&mut self, value: Cr0) -> Result<(), Fault> {
        let old = self.regs;
        self.regs.cr0 = value;
        self.regs.efer.set(
            Efer::LMA,
            value.contains(Cr0::PG) && old.efer.contains(Efer::LME),
        );
        let changed = old.cr0 ^ value;
        self.after_control(old, changed.contains(Cr0::PG), changed.contains(Cr0::PG))
    }

    /// Executes MOV to CR4: a change of PGE, PSE or PAE, PCIDE cleared or SMEP set drop
    /// everything linear (Intel SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.3).
    ///
    /// # Errors
    /// As [`Cpu::enter`]; CR4 keeps its value then.
    pub fn mov_cr4(&mut self, value: Cr4) -> Result<(), Fault> {
        let old = self.regs;
        self.regs.cr4 = value;
        let changed = old.cr4 ^ value;
        let any = Cr4::PGE | Cr4::PSE | Cr4::PAE | Cr4::LA57;
        let flushes = changed.intersects(any)
            || old.cr4.difference(value).contains(Cr4::PCIDE)
            || value.difference(old.cr4).contains(Cr4::SMEP);
        // Changes of these reload the PDPTEs (Intel SDM vol. 3, 4.4.1).
        self.after_control(
            old,
            flushes,
            changed.intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP),
        )
    }

    /// Executes WRMSR to EFER: flushes nothing.
    pub fn set_efer(&mut self, value: Efer) {
        self.regs.efer = value;
    }

    /// Executes WRPKRU: flushes nothing.
    pub fn set_pkru(&mut self, value: crate::regs::Pkru) {
        self.regs.pkru = value;
    }

    /// Executes INVLPG in the current world.
    pub fn invlpg(&mut self, va: Va) {
        self.flush(Flush::Address(self.asid, self.regs.pcid(), va));
    }

    /// Drops what `flush` says.
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::Nothing => return,
            Flush::All => {
                self.tlb.clear();
                self.structures.clear();
            }
            Flush::Address(asid, pcid, va)
                if asid == self.asid && pcid == self.regs.pcid() && self.one_ept() =>
            {
                // The frequent case, without a look at every entry.
                let tag = self.linear_tag();
                self.tlb.drop_address(tag, va.get());
                self.structures.retain(|entry| entry.tag != tag);
            }
            _ => {
                let number = self.flushed_ept(flush);
                self.tlb.retain(|entry| !flush.drops(entry, number));
                self.structures
                    .retain(|entry| !flush.drops_structure(entry, number));
            }
        }
        self.counters.flushes += 1;
        self.note(Event::Flushed(flush));
    }

    fn one_ept(&self) -> bool {
        self.ept_roots.len() <= 1
    }

    fn flushed_ept(&self, flush: Flush) -> Option<EptNumber> {
        let Flush::Ept(root) = flush else { return None };
        let index = self.ept_roots.iter().position(|known| *known == root)?;
        u16::try_from(index + 1).ok().map(EptNumber)
    }

    fn ept_number(&mut self, nested: Option<Nested>) -> EptNumber {
        let Some(nested) = nested.filter(|n| n.format.is_ept()) else {
            return EptNumber::default();
        };
        let known = self.ept_roots.iter().position(|root| *root == nested.root);
        let index = known.unwrap_or_else(|| {
            self.ept_roots.push(nested.root);
            self.ept_roots.len() - 1
        });
        // A processor that has seen 65,535 EPT roots in one test shares the last number.
        EptNumber(u16::try_from(index + 1).unwrap_or(u16::MAX))
    }

    fn after_control(&mut self, old: Registers, flushes: bool, reloads: bool) -> Result<(), Fault> {
        if reloads && let Err(fault) = self.load_pdptes() {
            self.regs = old;
            return Err(fault);
        }
        if flushes {
            self.flush(Flush::Vpid(self.asid));
        }
        Ok(())
    }

    /// Loads the PDPTE registers if the mode and the processor have them.
    fn load_pdptes(&mut self) -> Result<(), Fault> {
        self.pdptes = None;
        let on_demand = self.nested.is_some_and(|n| !n.format.is_ept());
        let has = self.model.features.contains(Features::PDPTE_REGISTERS) && !on_demand;
        if !has || self.regs.mode() != PagingMode::Tables(Format::Pae) {
            return Ok(());
        }
        let address = Format::Pae.root_address(self.regs.cr3.get());
        let (table, since) = self.pdpte_table(address)?;
        let frame = table.frame();
        let unusable = |cpu: &mut Self, why| {
            cpu.violation(Violation {
                kind: Misuse::Table(why),
                frame,
                via: Via::Root,
                address,
            })
        };
        let mut entries = [0; 4];
        for (index, entry) in (0..).zip(entries.iter_mut()) {
            let loaded = self.mem.walk_load(table.plus(u64::from(index) * 8), since);
            *entry = loaded.map_err(|why| unusable(self, why))?;
            if Format::Pae.decode(*entry, Level::L3, &self.linear_limits()) == Step::Reserved {
                return Err(Fault::BadPdpte(index));
            }
        }
        self.pdptes = Some(Pdptes {
            entries,
            since: self.mem.moment(),
        });
        Ok(())
    }

    fn pdpte_table(&mut self, address: u64) -> Result<(Hpa, Moment), Fault> {
        if self.nested.is_none() {
            return Ok((Hpa::new(address), self.mem.moment()));
        }
        let (tag, limits) = (self.linear_tag(), self.linear_limits());
        let (want, va) = (Want::Guess, Va::new(0));
        let job = Job {
            tag,
            format: Format::Pae,
            limits,
            address,
            want,
            va,
            purpose: Purpose::Final,
        };
        let kind = self.table_kind();
        let page = self.translate_table(&job, address, kind)?;
        Ok((page.translate(address), page.since))
    }
}

impl Flush {
    fn drops(self, entry: &TlbEntry, ept: Option<EptNumber>) -> bool {
        let tag = entry.tag;
        let (linear, own) = (tag.stage() == Stage::Linear, |asid| tag.asid() == asid);
        let without_ept = tag.ept() == EptNumber::default();
        let pcid = |pcid| tag.pcid() == Some(pcid);
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Asid(asid) => own(asid) && (linear || without_ept),
            Self::AsidNonGlobal(asid) => own(asid) && (linear || without_ept) && !tag.is_global(),
            Self::Vpid(asid) => linear && own(asid),
            Self::NonGlobal(asid) => linear && own(asid) && !tag.is_global(),
            Self::Pcid(asid, id) => linear && own(asid) && pcid(id),
            Self::Ept(_) => ept == Some(tag.ept()),
            Self::Address(asid, id, va) => {
                linear && own(asid) && (pcid(id) || tag.is_global()) && entry.is_part_of(va.get())
            }
            Self::AddressNonGlobal(asid, id, va) => {
                linear && own(asid) && pcid(id) && entry.is_part_of(va.get())
            }
            Self::AddressOfAsid(asid, va) => linear && own(asid) && entry.is_part_of(va.get()),
        }
    }

    /// As [`Flush::drops`]. Whoever drops one address drops all cached structure entries of the
    /// PCID, whatever their address (Intel SDM vol. 3, 4.10.4.1, INVLPG).
    fn drops_structure(self, entry: &StructureEntry, ept: Option<EptNumber>) -> bool {
        let tag = entry.tag;
        let (linear, own) = (tag.stage() == Stage::Linear, |asid| tag.asid() == asid);
        let without_ept = tag.ept() == EptNumber::default();
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Asid(asid) | Self::AsidNonGlobal(asid) => own(asid) && (linear || without_ept),
            Self::Vpid(asid) | Self::NonGlobal(asid) | Self::AddressOfAsid(asid, _) => {
                linear && own(asid)
            }
            Self::Pcid(asid, id)
            | Self::Address(asid, id, _)
            | Self::AddressNonGlobal(asid, id, _) => linear && own(asid) && tag.pcid() == Some(id),
            Self::Ept(_) => ept == Some(tag.ept()),
        }
    }
}
