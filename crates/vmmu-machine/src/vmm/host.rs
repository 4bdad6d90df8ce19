//! The library's embedder: table frames, guest memory, kicks.
//!
//! A memory slot's token is the number of its first frame ([`GuestFrames`]).
//!
//! Invariants:
//! 1. What is read of a guest frame counts only if the frame was at its place before and after.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmmu::addr::{Index, Pfn};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use vmmu_cpu::{Frame, Hpa};

use crate::check::Observer;
use crate::cpu::Kick;
use crate::gate::{ChosenGate, GateChoice};
use crate::memory::{FrameState, Memory};
use crate::vmm::guest::GuestFrames;

/// Frames below 4 GiB.
const BELOW_4_GIB: u64 = 1 << 20;

/// Host frames that are nobody's.
#[derive(Debug)]
pub struct Spare {
    frames: Mutex<VecDeque<Frame>>,
}

impl Spare {
    /// Keeps frames.
    #[must_use]
    pub fn new(frames: Vec<Frame>) -> Self {
        Self {
            frames: Mutex::new(frames.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the frame that has been here longest; below 4 GiB if told.
    #[must_use]
    pub fn take(&self, place: TablePlace) -> Option<Frame> {
        let mut frames = self.lock();
        match place {
            TablePlace::Anywhere => frames.pop_front(),
            TablePlace::Below4Gib => {
                let at = frames.iter().position(|frame| frame.get() < BELOW_4_GIB)?;
                frames.remove(at)
            }
        }
    }

    /// Takes a frame in.
    pub fn give(&self, frame: Frame) {
        self.lock().push_back(frame);
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The embedder.
#[derive(Debug)]
pub struct MachineHost<O> {
    /// Host memory.
    pub memory: Arc<Memory>,
    /// Guest memory.
    pub guest: Arc<GuestFrames>,
    /// Free frames.
    pub spare: Spare,
    /// By vCPU.
    pub kicks: Box<[Kick]>,
    /// Who watches stores to guest tables.
    pub observer: Arc<O>,
    /// How guest writes are ordered with new shadow pages.
    pub gate: GateChoice,
}

impl<O: Observer> MachineHost<O> {
    #[inline(always)]
    fn entry(table: Pfn, slot: Index) -> Hpa {
        Hpa::new(table.address().get() + slot.get() as u64 * 8)
    }

    /// Reads of a guest frame that stays at its place meanwhile.
    #[inline]
    fn while_settled<T>(
        &self,
        frame: BackedFrame,
        read: impl FnOnce(Frame) -> T,
    ) -> Result<T, GuestMemoryError> {
        let number = frame.token.0 + frame.frame;
        if number >= self.guest.len() {
            return Err(GuestMemoryError::OutOfRange);
        }
        let place = self
            .guest
            .frame(number)
            .ok_or(GuestMemoryError::NotResident)?;
        let value = read(place);
        // A frame is poisoned after it left its place, and `read` loads with Acquire: whoever read poison sees the frame gone.
        if self.guest.frame(number) == Some(place) {
            Ok(value)
        } else {
            Err(GuestMemoryError::NotResident)
        }
    }
}

impl<O: Observer> TableMemory for MachineHost<O> {
    #[inline]
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        self.memory.load(Self::entry(table, slot))
    }
    #[inline]
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.memory.store(Self::entry(table, slot), entry);
    }
    #[inline]
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        self.memory.exchange(Self::entry(table, slot), entry)
    }
    #[inline]
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let found = self
            .memory
            .exchange_if(Self::entry(table, slot), current, new);
        if found == current {
            Ok(found)
        } else {
            Err(found)
        }
    }
}

impl<O: Observer> TableAllocator for MachineHost<O> {
    fn allocate_table(&self, place: TablePlace) -> Result<Pfn, OutOfTables> {
        let frame = self.spare.take(place).ok_or(OutOfTables)?;
        self.memory.fill(frame, 0);
        self.memory.hand_out(frame, FrameState::Table);
        Ok(Pfn::new(frame.get()))
    }
    fn free_table(&self, table: Pfn) {
        let frame = Frame::new(table.get());
        self.memory.take_back(frame, FrameState::Free);
        self.spare.give(frame);
    }
}

impl<O: Observer> GuestMemory for MachineHost<O> {
    #[inline]
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        self.while_settled(frame, |place| {
            let at = place.hpa().plus(u64::from(offset));
            match width {
                GpteWidth::Bytes8 => self.memory.load::<u64>(at),
                GpteWidth::Bytes4 => u64::from(self.memory.load::<u32>(at)),
            }
        })
    }

    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        // The library holds invalidation off: the frame stays.
        self.while_settled(frame, |place| {
            let at = place.hpa().plus(u64::from(offset));
            let (bytes, exchange): (usize, &dyn Fn() -> u64) = match width {
                GpteWidth::Bytes8 => (8, &|| self.memory.exchange_if(at, current, new)),
                GpteWidth::Bytes4 => (4, &|| {
                    u64::from(self.memory.exchange_if(at, current as u32, new as u32))
                }),
            };
            let found = self.observer.store(at, bytes, exchange);
            self.memory.wrote(at);
            if found == current {
                Ok(found)
            } else {
                Err(found)
            }
        })
    }

    fn diff_table(
        &self,
        frame: BackedFrame,
        copy: &[u64; 512],
        mask: u64,
    ) -> Result<[u64; 8], GuestMemoryError> {
        self.while_settled(frame, |place| {
            let mut differing = [0; 8];
            for (i, old) in copy.iter().enumerate() {
                let new: u64 = self.memory.load(place.hpa().plus(i as u64 * 8));
                if (new ^ old) & mask != 0 {
                    differing[i / 64] |= 1 << (i % 64);
                }
            }
            differing
        })
    }
}

impl<O: Observer> FrameLookup for MachineHost<O> {
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        let number = frame.token.0 + frame.frame;
        let place = loop {
            if number >= self.guest.len() {
                return Err(LookupError::Hole);
            }
            match self.guest.frame(number) {
                Some(place) => break place,
                // On the move: that takes no longer than a copy.
                None => std::thread::yield_now(),
            }
        };
        Ok(HostFrame {
            pfn: Pfn::new(place.get()),
            largest: self.guest.largest(number),
            writable: true,
        })
    }
}

impl<O: Observer> Processors for MachineHost<O> {
    type Gate = ChosenGate;
    fn gate(&self) -> ChosenGate {
        self.gate.strategy()
    }

    fn kick(&self, vcpu: VcpuId) {
        if let Some(kick) = self.kicks.get(usize::from(vcpu.0)) {
            kick.kick();
        }
    }
    fn relax(&self, round: u32) {
        if round % 64 == 63 {
            std::thread::yield_now();
        } else {
            core::hint::spin_loop();
        }
    }
}
