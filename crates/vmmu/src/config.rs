//! What a VM's MMU is made for.

use crate::Error;
use crate::addr::Level;
use crate::page::PageId;
use crate::paging::CpuModel;

/// Which tables the processor walks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Engine {
    /// Shadow page tables: guest virtual to host physical.
    Shadow,
    /// AMD nested page tables: guest physical to host physical (APM vol. 2, 15.25).
    Npt,
    /// Intel extended page tables, 4 levels (SDM vol. 3, 29.3).
    Ept,
}

/// When processors can see a write that the embedder makes to a guest table in the guest's name (an emulated instruction, a device of its own), and that it
/// does not announce ([`crate::Mmu::begin_write`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ForeignWrites {
    /// Before it is reported by [`crate::Mmu::guest_wrote`]: another processor may read the new entry and execute INVLPG in between. INVLPG looks at
    /// every level.
    SeenEarly,
    /// Not before: there are none, or no processor of the guest runs between store and report; or all are announced. INVLPG looks at pages that are not clean,
    /// and at what is announced.
    ReportedFirst,
}

/// The configuration of an [`crate::Mmu`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The engine.
    pub engine: Engine,
    /// How many vCPUs there can be.
    pub vcpus: u16,
    /// The limit on shadow pages (or nested tables): 4 KiB and about 2.8 KiB of bookkeeping each.
    pub max_pages: u32,
    /// How many locks guard the frame records, a power of two: one for each 2 MiB of guest memory, up to 128 GiB.
    pub stripes: u32,
    /// The guest's processor.
    pub cpu: CpuModel,
    /// The largest leaf that the processor takes.
    pub largest_leaf: Level,
    /// The highest level whose pages may become unsync. [`Level::L1`] suits an embedder that emulates the writes to other tables; one that cannot
    /// takes [`Level::L4`], so that every guest write makes progress (docs/architecture.md, "Unsync above level 1").
    pub unsync_level: Level,
    /// When the guest can see the embedder's own writes to its tables.
    pub foreign_writes: ForeignWrites,
    /// How many unsync pages there may be at once.
    pub unsync_limit: u16,
    /// After how many root loads in a row that find it unchanged an unsync table is protected again. One that the guest keeps writing is only compared
    /// at each; 0 protects every table every time.
    pub unsync_patience: u8,
    /// How many writes without a use make a table a table no more.
    pub flood_limit: u32,
    /// The most neighbours to prefetch with one fault; 0 turns it off.
    pub prefetch: u16,
}

impl Config {
    /// Makes a configuration with sensible values for a guest with `memory_frames` of memory.
    pub fn new(engine: Engine, vcpus: u16, memory_frames: u64, cpu: CpuModel) -> Self {
        let stripes = (memory_frames / 512).next_power_of_two().clamp(16, 1 << 16);
        Self {
            engine,
            vcpus,
            max_pages: (memory_frames / 16).clamp(2048, u64::from(PageId::MAX)) as u32,
            stripes: stripes as u32,
            cpu,
            largest_leaf: Level::L3,
            unsync_level: Level::L1,
            foreign_writes: ForeignWrites::SeenEarly,
            unsync_limit: 32,
            unsync_patience: 1,
            flood_limit: 3,
            prefetch: 128,
        }
    }

    /// Returns the smallest page limit with which every vCPU can make progress: its root, and all that one fault needs twice over.
    pub fn smallest_limit(&self) -> u32 {
        8 * u32::from(self.vcpus)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = if self.vcpus == 0 {
            "no vCPU"
        } else if !self.stripes.is_power_of_two() {
            "the number of stripes is not a power of two"
        } else if self.max_pages < self.smallest_limit() || self.max_pages > PageId::MAX {
            "the page limit is below 8 for each vCPU, or above four million"
        } else if self.largest_leaf > Level::L3 {
            "no leaf is larger than 1 GiB"
        } else if self.unsync_limit == 0 || self.unsync_limit > 64 {
            "the list of unsync pages has 1 to 64 places"
        } else {
            return Ok(());
        };
        Err(Error::Config(wrong))
    }
}
