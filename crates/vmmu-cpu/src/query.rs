//! Questions that tests ask a processor: what could it still reach, and does it contradict itself?
//!
//! Key types: [`Reach`], [`Conflict`].
//!
//! Invariants:
//! 1. Asking changes nothing and draws no random number.

use bitflags::bitflags;

use crate::addr::{Frame, Hpa, Level, PageSize};
use crate::cpu::Cpu;
use crate::format::{Format, Step};
use crate::physical::Physical;
use crate::structures::StructureEntry;
use crate::tlb::{Tag, TlbEntry};

bitflags! {
    /// The ways in which a processor can reach a frame without reading memory again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Reach: u8 {
        /// A cached translation maps it.
        const PAGE = 1 << 0;
        /// A cached translation maps it writable.
        const WRITABLE = 1 << 1;
        /// A cached translation maps it writable and dirty: writes leave no trace in any table.
        const WRITABLE_DIRTY = 1 << 2;
        /// A cached structure entry or PDPTE register walks it as a table.
        const TABLE = 1 << 3;
        /// It is the root table in CR3 or of the nested tables.
        const ROOT = 1 << 4;
    }
}

/// Two cached translations that disagree about an address of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conflict {
    /// The smaller page's, or one of two of the same size.
    pub small: TlbEntry,
    /// The other.
    pub large: TlbEntry,
}

impl Conflict {
    /// Says whether the two differ in the frame they lead to, not only in size.
    #[must_use]
    pub fn differs_in_frame(&self) -> bool {
        self.large.translate(self.small.page) != self.small.hpa
    }
}

impl<M: Physical> Cpu<M> {
    /// Says how this processor can still reach `frame`.
    #[must_use]
    pub fn reach(&self, frame: Frame) -> Reach {
        let mut reach = Reach::empty();
        for entry in self.tlb.iter().filter(|entry| maps(entry, frame)) {
            reach |= Reach::PAGE;
            reach.set(
                Reach::WRITABLE,
                reach.contains(Reach::WRITABLE) || entry.is_writable(),
            );
            if entry.is_writable() && entry.dirty {
                reach |= Reach::WRITABLE_DIRTY;
            }
        }
        if self
            .structures
            .iter()
            .any(|entry| entry.hpa.frame() == frame)
            || self.pdpte_reaches(frame)
        {
            reach |= Reach::TABLE;
        }
        let root = self.nested.is_some() || self.regs.cr0.contains(crate::regs::Cr0::PG);
        reach.set(Reach::ROOT, root && self.root_frame() == frame);
        reach
    }

    /// Returns the cached translations, in no particular order.
    pub fn tlb_entries(&self) -> impl Iterator<Item = &TlbEntry> {
        self.tlb.iter()
    }

    /// Returns the cached structure entries, in no particular order.
    pub fn structure_entries(&self) -> impl Iterator<Item = &StructureEntry> {
        self.structures.iter()
    }

    /// Returns every pair of cached translations that the same access could use and that differ
    /// in page size or frame. The host's doing, unless the guest changed its own tables without
    /// invalidating (Intel SDM vol. 3, 4.10.2.3; APM vol. 2, 5.5.3).
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut found = Vec::new();
        for small in self.tlb.iter() {
            for tag in tags_beside(small.tag, self) {
                self.tlb.each(tag, small.page, |large| {
                    let differs =
                        large.size != small.size || large.translate(small.page) != small.hpa;
                    let first = (small.size, small.hpa) < (large.size, large.hpa);
                    if differs
                        && first
                        && !found.contains(&Conflict {
                            small: *small,
                            large: *large,
                        })
                    {
                        found.push(Conflict {
                            small: *small,
                            large: *large,
                        });
                    }
                });
            }
        }
        found
    }

    fn pdpte_reaches(&self, frame: Frame) -> bool {
        let Some(pdptes) = self.pdptes.filter(|_| self.nested.is_none()) else {
            return false;
        };
        let limits = self.linear_limits();
        pdptes.entries.iter().any(
            |entry| match Format::Pae.decode(*entry, Level::L3, &limits) {
                Step::Table(table) => Hpa::new(table).frame() == frame,
                _ => false,
            },
        )
    }
}

/// Returns the tags under which an access could meet an entry of `tag`.
fn tags_beside<M: Physical>(tag: Tag, cpu: &Cpu<M>) -> Vec<Tag> {
    if !tag.is_global() {
        return vec![tag];
    }
    let same = |other: &Tag| other.globally() == tag;
    let mut tags: Vec<Tag> = cpu.tlb.iter().map(|entry| entry.tag).filter(same).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn maps(entry: &TlbEntry, frame: Frame) -> bool {
    let first = entry.hpa.frame().get();
    let frames = entry.size.bytes() >> PageSize::Size4K.shift();
    (first..first + frames).contains(&frame.get())
}
