//! The processor: registers, caches, and the way an access takes through them.
//!
//! Key types: [`Cpu`], [`Translation`], [`Source`]. The walk is in [`crate::walk`], invalidation
//! and register writes in [`crate::invalidate`], questions for tests in [`crate::query`].
//!
//! Invariants:
//! 1. After a fault nothing is cached that the same access would fault on again: a retry looks at
//!    memory (Intel SDM vol. 3, 4.10.4.1).
//! 2. A write through an entry that is not dirty walks first; through a dirty one it touches no
//!    table.
//! 3. One seed gives one run.

use std::sync::Arc;

use crate::access::{self, Access, Kind, Permits};
use crate::addr::{Asid, Frame, Gpa, Hpa, Level, PageSize, Va};
use crate::event::{Counters, Event, EventLog};
use crate::fault::{Fault, NpfCode, Via, Violation};
use crate::format::Limits;
use crate::mem::PhysMemory;
use crate::mem::pool::Moment;
use crate::physical::Physical;
use crate::policy::{Odds, Policy};
use crate::regs::{Cr4, Efer, Model, Nested, PagingMode, Registers};
use crate::structures::{StructureEntry, Structures};
use crate::tlb::{EptNumber, Tag, Tlb, TlbEntry};
use crate::walk::{Job, Purpose, Want};
use crate::whims::Whims;

/// How many entries of a kind are cached unless told: more than any processor has.
const CAPACITY: usize = 1 << 16;

/// How many violations are kept.
const VIOLATIONS: usize = 1024;

/// Where a translation came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The translation lookaside buffer, without a look at memory.
    Tlb,
    /// A walk (which may have begun at a paging-structure-cache entry).
    Walk,
}

/// A successful translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translation {
    /// The host-physical address.
    pub hpa: Hpa,
    /// The guest-physical address; equal to `hpa` without nested paging.
    pub gpa: Gpa,
    /// Where it came from.
    pub source: Source,
    /// The entry that was used or filled.
    pub entry: TlbEntry,
}

/// PDPTEs loaded with CR3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pdptes {
    pub(crate) entries: [u64; 4],
    pub(crate) since: Moment,
}

/// A logical processor on a memory.
#[derive(Debug)]
pub struct Cpu<M = PhysMemory> {
    pub(crate) mem: Arc<M>,
    pub(crate) model: Model,
    pub(crate) regs: Registers,
    pub(crate) asid: Asid,
    pub(crate) nested: Option<Nested>,
    /// Number of the EPT root in use; 0 without EPT.
    pub(crate) ept: EptNumber,
    /// Roots by number - 1.
    pub(crate) ept_roots: Vec<Hpa>,
    pub(crate) pdptes: Option<Pdptes>,
    /// When CR3 and the nested root were loaded.
    pub(crate) root_since: Moment,
    pub(crate) nested_since: Moment,
    pub(crate) tlb: Tlb,
    pub(crate) structures: Structures,
    pub(crate) policy: Policy,
    pub(crate) rng: fastrand::Rng,
    pub(crate) whims: Whims,
    capacity: usize,
    pub(crate) counters: Counters,
    events: Option<EventLog>,
    violations: Vec<Violation>,
}

impl<M: Physical> Cpu<M> {
    /// Makes a processor with paging off and empty caches.
    #[must_use]
    pub fn new(mem: Arc<M>, model: Model, policy: Policy, seed: u64) -> Self {
        Self {
            mem,
            model,
            regs: Registers::default(),
            asid: Asid::default(),
            nested: None,
            ept: EptNumber::default(),
            ept_roots: Vec::new(),
            pdptes: None,
            root_since: Moment::default(),
            nested_since: Moment::default(),
            tlb: Tlb::default(),
            structures: Structures::default(),
            policy,
            rng: fastrand::Rng::with_seed(seed),
            whims: Whims::default(),
            capacity: CAPACITY,
            counters: Counters::default(),
            events: None,
            violations: Vec::new(),
        }
    }

    /// Translates `va` for `access`, as the processor would just before it.
    ///
    /// # Errors
    /// The fault or exit that the access causes, or a [`Violation`]. What was cached for the
    /// address is dropped then, so that a retry looks at memory.
    pub fn translate(&mut self, va: Va, access: Access) -> Result<Translation, Fault> {
        self.counters.accesses += 1;
        self.disturb(va);
        let result = self
            .regs
            .linear(va)
            .and_then(|va| self.translate_linear(va, access));
        if let Err(fault) = result {
            self.settle(va, fault);
        }
        result
    }

    fn translate_linear(&mut self, va: Va, access: Access) -> Result<Translation, Fault> {
        // With paging off and nothing nested there is nothing to cache: entries of an earlier mode
        // don't apply (Intel SDM vol. 3, 4.10.2.2).
        let cached = self.nested.is_some() || self.regs.mode() != PagingMode::Off;
        if cached
            && self.policy.use_tlb.hit(&mut self.rng)
            && let Some(entry) = self.tlb.pick(self.linear_tag(), va.get(), &mut self.rng)
        {
            match self.judge(&entry, va, access) {
                Ok(()) if access.kind != Kind::Write || entry.dirty => {
                    self.check_page(&entry, va, Via::Tlb)?;
                    self.counters.hits += 1;
                    self.note(Event::Hit(va, entry));
                    return Ok(Translation::new(va, entry, Source::Tlb));
                }
                Err(fault) if self.policy.believe_denial.hit(&mut self.rng) => {
                    self.counters.believed_denials += 1;
                    return Err(fault);
                }
                _ => {}
            }
        }
        let entry = self.walk_linear(va, Want::Access(access))?;
        self.check_page(&entry, va, Via::Entry(leaf_level(entry.size)))?;
        Ok(Translation::new(va, entry, Source::Walk))
    }

    /// Caches a translation, unless the policy would never use it.
    pub(crate) fn fill(&mut self, entry: TlbEntry) {
        if self.policy.use_tlb != Odds::NEVER {
            if self.tlb.len() >= self.capacity {
                self.tlb.retain(|_| self.rng.bool());
            }
            self.tlb.insert(entry);
            self.note(Event::Filled(entry));
        }
    }

    /// Caches a structure entry, unless the policy would never use it.
    pub(crate) fn fill_structure(&mut self, entry: StructureEntry) {
        if self.policy.use_structures != Odds::NEVER {
            if self.structures.len() >= self.capacity {
                self.structures.retain(|_| self.rng.bool());
            }
            self.structures.insert(entry);
        }
    }

    /// Says whether a cached entry grants the access, with the registers of now.
    fn judge(&self, entry: &TlbEntry, va: Va, access: Access) -> Result<(), Fault> {
        access::check(access, entry.rights, entry.key, &self.regs)
            .map_err(|code| Fault::Page { va, code })?;
        let Some(nested) = self.nested else {
            return Ok(());
        };
        if entry.nested.allow_nested(access.kind) {
            return Ok(());
        }
        let job = Job {
            tag: entry.tag,
            format: nested.format,
            limits: Limits::nested(self.model, nested.flags),
            address: entry.gpa.plus(va.offset(entry.size)).get(),
            want: Want::Access(access),
            va,
            purpose: Purpose::Final,
        };
        Err(self.nested_fault(&job, NpfCode::PRESENT, entry.nested))
    }

    /// Drops what a fault drops.
    fn settle(&mut self, va: Va, fault: Fault) {
        self.counters.faults += 1;
        self.note(Event::Faulted(fault));
        let Ok(va) = self.regs.linear(va) else { return };
        let tag = self.linear_tag();
        self.tlb.drop_address(tag, va.get());
        self.structures.drop_address(tag, va.get());
        if let Fault::Nested { gpa, .. }
        | Fault::EptViolation { gpa, .. }
        | Fault::EptMisconfig { gpa } = fault
        {
            let tag = Tag::physical(self.asid, self.ept);
            self.tlb.drop_address(tag, gpa.get());
            self.structures.drop_address(tag, gpa.get());
        }
    }
}

impl Translation {
    fn new(va: Va, entry: TlbEntry, source: Source) -> Self {
        let gpa = entry.gpa.plus(va.offset(entry.size));
        Self {
            hpa: entry.translate(va.get()),
            gpa,
            source,
            entry,
        }
    }
}

/// Returns the level whose entries map pages of `size`.
fn leaf_level(size: PageSize) -> Level {
    match size {
        PageSize::Size4K => Level::L1,
        PageSize::Size2M | PageSize::Size4M => Level::L2,
        PageSize::Size1G => Level::L3,
    }
}

/// What an entry says with the registers of now.
impl<M: Physical> Cpu<M> {
    /// Returns which accesses go through `entry`, a cached translation of the present tag, without a walk: writes only if it is dirty.
    ///
    /// It holds until a register changes or an invalidation drops the entry.
    #[must_use]
    pub fn permits(&self, entry: &TlbEntry) -> Permits {
        Permits::filter(|access| {
            let through = access.kind != Kind::Write || entry.dirty;
            through
                && access::check(access, entry.rights, entry.key, &self.regs).is_ok()
                && (self.nested.is_none() || entry.nested.allow_nested(access.kind))
        })
    }
}

/// State.
impl<M: Physical> Cpu<M> {
    /// Returns the memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<M> {
        &self.mem
    }

    /// Returns the registers.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.regs
    }

    /// Returns the nested tables in use.
    #[must_use]
    pub fn nested(&self) -> Option<Nested> {
        self.nested
    }

    /// Returns the ASID or VPID in use.
    #[must_use]
    pub fn asid(&self) -> Asid {
        self.asid
    }

    /// Sets how many translations, and how many structure entries, are cached at most: with more, half of them, drawn by chance, are dropped.
    pub fn set_capacity(&mut self, entries: usize) {
        self.capacity = entries;
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Begins to record events, all of them.
    pub fn record_events(&mut self) {
        self.events.get_or_insert_with(EventLog::everything);
    }

    /// Begins to record the last `count` events that are no hits.
    pub fn record_last_events(&mut self, count: usize) {
        self.events = Some(EventLog::last(count));
    }

    /// Returns the events since the last call, or as many as are kept of them, oldest first.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.as_mut().map(EventLog::take).unwrap_or_default()
    }

    /// Returns the first 1,024 violations, those of speculative walks included.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub(crate) fn note(&mut self, event: Event) {
        if let Some(events) = self.events.as_mut() {
            events.push(event);
        }
    }

    pub(crate) fn violation(&mut self, violation: Violation) -> Fault {
        if self.violations.len() < VIOLATIONS {
            self.violations.push(violation);
        }
        Fault::Violation(violation)
    }

    pub(crate) fn linear_tag(&self) -> Tag {
        Tag::linear(self.asid, self.regs.pcid(), self.ept)
    }

    pub(crate) fn linear_limits(&self) -> Limits {
        Limits {
            model: self.model,
            nxe: self.regs.efer.contains(Efer::NXE),
            pse: self.regs.cr4.contains(Cr4::PSE),
            ept_ad: false,
        }
    }

    pub(crate) fn globals_on(&self) -> bool {
        self.regs.cr4.contains(Cr4::PGE)
    }

    /// Returns the frame of the root table that the host made.
    pub(crate) fn root_frame(&self) -> Frame {
        match self.nested {
            Some(nested) => nested.root.frame(),
            None => Hpa::new(self.regs.cr3.get() & 0x000f_ffff_ffff_f000).frame(),
        }
    }
}
