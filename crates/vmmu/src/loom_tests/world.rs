//! The fixture: a VM in a known state, built before loom begins to explore, and the runner that counts executions.

use super::host::LoomHost;
use crate::addr::{Gfn, Gpa, Gva, Index, Level, Pfn};
use crate::config::{Config, Engine};
use crate::debt::Debt;
use crate::edge::{Installed, Leaf, Purpose, Refused};
use crate::host::MemoryToken;
use crate::mmu::{Call, Mmu};
use crate::page::{Flags, PageId, SpteRef};
use crate::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
use crate::role::Role;
use crate::shadow::Way;
use crate::slots::{AddressSpace, SlotConfig, SlotFlags};
use crate::sync::{Locks, Ordering};
use crate::walk::{
    Access, AccessKind, CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, Privilege, Rights,
    Walk, Walker,
};
use core::sync::atomic::AtomicUsize;
use std::println;
use std::sync::Arc;
use std::time::Instant;

pub(super) type LoomMmu = Mmu<LoomHost>;
pub(super) type LoomCall<'m> = Call<'m, LoomHost, ()>;

/// The guest table whose shadow the tests work on; its gfn lock is not that of [`D`].
pub(super) const TABLE: Gfn = Gfn::new(1);
/// The guest table above it.
pub(super) const UPPER: Gfn = Gfn::new(2);
/// A frame of data.
pub(super) const D: Gfn = Gfn::new(0x201);
/// Another, in another stripe.
pub(super) const E: Gfn = Gfn::new(5);
/// Everything that a guest entry of these tests allows.
pub(super) const ALL: Rights = Rights::all();
/// The same without writing.
pub(super) const READ: Rights = Rights::USER.union(Rights::EXECUTE);
/// The first slot.
pub(super) const SLOT: Index = Index::truncate(0);

const GPTE_BITS: u64 = 0b110_0111;

/// Returns a guest entry that maps `gfn`: present, writable, user, accessed, dirty.
pub(super) const fn gpte(gfn: Gfn) -> u64 {
    gfn.address().get() | GPTE_BITS
}

/// Explores `model` with three preemptions, and prints how many executions that took.
pub(super) fn explore(name: &str, model: impl Fn() + Send + Sync + 'static) {
    explore_with(0, name, model);
}

/// As [`explore`], for a model that is too large for that: with one preemption less.
pub(super) fn explore_less(name: &str, model: impl Fn() + Send + Sync + 'static) {
    explore_with(1, name, model);
}

fn explore_with(less: usize, name: &str, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    // The builder has what LOOM_MAX_PREEMPTIONS says.
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(3) - less);
    builder.max_branches = 4_000;
    builder.max_threads = 4;
    builder.expect_explicit_explore = true;
    let start = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let n = executions.load(Ordering::Relaxed);
    println!(
        "{name}: {n} executions in {:.1} s",
        start.elapsed().as_secs_f32()
    );
}

fn cpu_model() -> CpuModel {
    CpuModel {
        phys_bits: PhysBits::new(48).unwrap(),
        features: CpuFeatures::empty(),
    }
}

pub(super) fn paging() -> PagingState {
    PagingState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: Cr3::new(0x4000),
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        ..PagingState::reset(cpu_model())
    }
}

/// Returns the role of a page that stands for a guest table of `level`.
pub(super) fn role(level: Level, rights: Rights) -> Role {
    Role::indirect(paging().mode(), AddressSpace::Normal, level, rights)
}

/// Guest tables as they were when the installer walked: every level leads to [`TABLE`], whose first entry maps `0`.
#[derive(Debug)]
struct Before(Gfn);

impl GpteMemory for Before {
    fn read(&self, at: Gpa, _width: GpteWidth) -> Result<Gpte, GpteError> {
        Ok(Gpte::new(match at.get() >> 12 {
            4 => gpte(Gfn::new(3)),
            3 => gpte(UPPER),
            2 => gpte(TABLE),
            _ => gpte(self.0),
        }))
    }
    fn compare_exchange(
        &self,
        _at: Gpa,
        _width: GpteWidth,
        _current: Gpte,
        _new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        Ok(CasOutcome::Lost)
    }
}

/// Returns the walk of an access whose address [`TABLE`] maps to `gfn`.
pub(super) fn walk_to(gfn: Gfn) -> Walk {
    let access = Access::new(
        AccessKind::Read,
        Privilege::new(3, crate::paging::Rflags::empty()),
    );
    Walker::new(paging())
        .walk(&Before(gfn), Gva::new(0), access)
        .unwrap()
}

/// Returns the attempt of a fault that walked `walk`.
pub(super) fn way(walk: &Walk, root: PageId, kind: AccessKind) -> Way<'_> {
    Way {
        gva: Gva::new(0),
        access: Access::new(kind, Privilege::new(3, crate::paging::Rflags::empty())),
        walk,
        root,
        pinned: [root; 5],
        depth: 1,
    }
}

/// A VM whose stripes, heads and pool are provided for.
pub(super) fn world(flags: SlotFlags) -> Arc<LoomMmu> {
    world_of(Engine::Shadow, flags)
}

/// A VM with an engine of choice.
pub(super) fn world_of(engine: Engine, flags: SlotFlags) -> Arc<LoomMmu> {
    world_with(engine, flags, |_| {})
}

/// A VM with an engine of choice; `adjust` may change its configuration.
pub(super) fn world_with(
    engine: Engine,
    flags: SlotFlags,
    adjust: impl FnOnce(&mut Config),
) -> Arc<LoomMmu> {
    let frames = if engine == Engine::Shadow {
        0x400
    } else {
        0x4_0000
    };
    world_of_slots(engine, &[(0, frames)], flags, adjust)
}

/// A VM with slots of choice, each by its first frame and its length.
pub(super) fn world_of_slots(
    engine: Engine,
    slots: &[(u64, u64)],
    flags: SlotFlags,
    adjust: impl FnOnce(&mut Config),
) -> Arc<LoomMmu> {
    let mut config = Config {
        max_pages: 8,
        stripes: 2,
        largest_leaf: if engine == Engine::Shadow {
            Level::L1
        } else {
            Level::L3
        },
        unsync_limit: 2,
        unsync_patience: 0,
        prefetch: 0,
        ..Config::new(engine, 1, 0, cpu_model())
    };
    adjust(&mut config);
    let mmu = Arc::new(Mmu::new(LoomHost::new(), config).unwrap());
    mmu.host.mmu.set(Arc::downgrade(&mmu)).unwrap();
    for (base, frames) in slots {
        mmu.add_slot(&SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(*base),
            frames: *frames,
            token: MemoryToken(0),
            flags,
        })
        .unwrap();
    }
    let call = bare_call(&mmu);
    for gfn in [TABLE, D] {
        call.provide(crate::frames::Missing::Region(gfn)).unwrap();
        call.provide(crate::frames::Missing::Heads(gfn)).unwrap();
    }
    drop(call);
    mmu
}

/// A call without a guard, for tests where nothing is freed.
pub(super) fn bare_call(mmu: &LoomMmu) -> LoomCall<'_> {
    Call {
        mmu,
        locks: Locks::default(),
        guard: None,
        counters: &mmu.counters,
        hint: None,
    }
}

impl LoomMmu {
    /// Makes the page of a guest table.
    pub(super) fn make_page(&self, gfn: Gfn, role: Role) -> PageId {
        let call = bare_call(self);
        let mut debt = Debt::new(&call);
        call.find_or_create(gfn, role, &[], &mut debt).unwrap()
    }

    /// Makes a page that is clean.
    pub(super) fn make_clean_page(&self, gfn: Gfn, role: Role) -> PageId {
        let id = self.make_page(gfn, role);
        let call = bare_call(self);
        let mut debt = Debt::new(&call);
        assert_eq!(call.make_clean(id, &mut debt), crate::clean::Cleaned::Clean);
        debt.pay();
        id
    }

    /// Maps `gfn` by a slot of a page.
    pub(super) fn map(&self, id: PageId, slot: Index, gfn: Gfn, rights: Rights, bits: u64) {
        let call = bare_call(self);
        let leaf = Leaf {
            bits,
            ..call.leaf(gfn, rights)
        };
        loop {
            let state = self.pool.get(id).lock.lock(&call.locks);
            let installed = call.install_leaf(id, slot, &leaf, Purpose::Any);
            drop(state);
            match installed {
                Err(Refused::Missing(missing)) => call.provide(missing).unwrap(),
                done => return assert_eq!(done, Ok(Installed::New)),
            }
        }
    }

    /// Links a child below the first slot of a page.
    pub(super) fn link(&self, id: PageId, child: PageId) {
        self.link_at(id, SLOT, child);
    }

    /// Links a child below a slot of a page.
    pub(super) fn link_at(&self, id: PageId, slot: Index, child: PageId) {
        let call = bare_call(self);
        let _state = self.pool.get(id).lock.lock(&call.locks);
        let below = self.pool.get(child);
        assert_eq!(
            call.link(id, slot, child, below.gfn(), below.role()),
            Ok(Installed::New)
        );
    }

    /// Zaps a page in a call of its own, whose end frees what nobody uses; tells whether this call ended it.
    pub(super) fn zap(&self, id: PageId) -> bool {
        let call = self.call();
        let mut debt = Debt::new(&call);
        let zapped = call.zap(id, &mut debt);
        debt.pay();
        zapped
    }

    /// Returns an entry.
    pub(super) fn spte(&self, id: PageId, slot: Index) -> u64 {
        use crate::host::TableMemory;
        self.host.load(self.pool.get(id).table(), slot)
    }

    /// Sets a guest entry, unseen.
    pub(super) fn poke(&self, table: Gfn, slot: Index, value: u64) {
        self.host.gptes[table.get() as usize][slot.get()].store(value, Ordering::Release);
    }

    /// Tells what the TLB would use if the processor touched a slot.
    pub(super) fn touch(&self, id: PageId, slot: Index) -> u64 {
        self.host.touch(self.pool.get(id).table(), slot)
    }

    /// Lets the processor run its guest, with a TLB entry.
    pub(super) fn run_guest(&self, tlb: u64) {
        let mut cpu = self.host.cpus[0].lock().unwrap();
        cpu.in_guest = true;
        cpu.tlb = tlb;
        self.vcpus[0].pretend_in_guest();
    }
}

/// Returns the frame that an entry maps, if it maps one.
pub(super) fn frame_of(entry: u64) -> Option<Pfn> {
    let entry = crate::spte::Spte::new(entry);
    entry.is_present().then(|| entry.pfn())
}

impl LoomCall<'_> {
    /// Snapshot, then look-up: what an installer does before it takes a lock.
    pub(super) fn leaf(&self, gfn: Gfn, rights: Rights) -> Leaf {
        self.leaf_in_slot(gfn, rights).unwrap()
    }

    /// The same where the slot may have gone, or be read-only.
    pub(super) fn leaf_in_slot(&self, gfn: Gfn, rights: Rights) -> Option<Leaf> {
        use crate::host::{FrameLookup, Need};
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L2, &self.mmu.slots);
        let slot = self.mmu.slots.find(AddressSpace::Normal, gfn)?;
        let host = self.mmu.host.look_up(slot.backed(gfn), Need::Read).unwrap();
        let withheld = if slot.flags.contains(SlotFlags::READ_ONLY) {
            Rights::WRITE
        } else {
            Rights::empty()
        };
        Some(Leaf {
            gfn,
            pfn: host.pfn,
            rights: rights - withheld,
            bits: 0,
            snapshot,
        })
    }

    /// Tells whether the reverse map of a gfn names a slot.
    pub(super) fn maps(&self, gfn: Gfn, edge: SpteRef) -> bool {
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        stripe
            .region(gfn)
            .is_some_and(|(region, nodes)| nodes.contains(region.small(gfn), edge))
    }

    /// Returns a page's flags under its gfn lock.
    pub(super) fn flags_of(&self, id: PageId) -> Flags {
        let page = self.page(id);
        let _stripe = self.mmu.frames.lock(&self.locks, page.gfn());
        page.flags()
    }
}
