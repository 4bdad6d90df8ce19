//! The processor: interprets a guest until something makes it leave.
//!
//! | part | file |
//! |---|---|
//! | running: blocks, events, when to leave | here |
//! | what instructions work on | `core`, `access` |
//! | arrays in front of the MMU | `front` |
//! | decoded instructions | `block` |
//! | why it left | [`exit`] |
//!
//! Key type: [`Processor`]. It knows guest registers, the tables in force and their TLB (`vmmu-cpu`), and nothing of the library: the other half,
//! [`crate::vmm`], enters it as VMRUN does and is told why it left.
//!
//! Invariants:
//! 1. Interrupts, kicks and the budget are looked at between blocks; a block is at most a page long.
//! 2. An exit leaves the state before the instruction that caused it.

mod access;
mod block;
mod core;
pub mod exit;
mod front;
mod kick;
mod walked;

use ::core::time::Duration;
use std::sync::Arc;

use vmmu::gate::HeavyBarrier;
use vmmu::host::VcpuId;
use vmmu_cpu::{Cpu as MmuCpu, Flush, Hpa, Model, Policy, Schedule, World};
use vmmu_emu::system::event::{Delivery, Event, raise};
use vmmu_emu::system::features::Features;
use vmmu_emu::{DecodeError, Exception, Flags, Mode, SegmentName, State, Stop};

use crate::check::Observer;
use crate::clock::Clock;
use crate::membarrier::Membarrier;
use crate::memory::Memory;

use self::block::{Blocks, Key};
use self::core::Core;
use self::exit::{Exit, Pause};
use self::front::{Class, Front};

pub use self::core::Dimensions;
pub use self::kick::Kick;
pub use self::walked::Walked;

/// How often a block that leads to itself runs before anything else is looked at.
const REPEATS: u32 = 64;

/// What the processor does where the architecture lets it choose.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// It keeps translations in the arrays in front of the MMU only.
    Plain,
    /// It keeps everything in a TLB as long as it may, forgets at random, walks at random.
    Hostile(Schedule),
}

/// What a processor is made of.
#[derive(Debug)]
pub struct Setup<O> {
    /// Host memory.
    pub memory: Arc<Memory>,
    /// Whose tables it walks.
    pub dimensions: Dimensions,
    /// Its MMU.
    pub model: Model,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// The seed of its choices.
    pub seed: u64,
    /// What instructions and register writes depend on.
    pub features: Features,
    /// Its clock.
    pub clock: Clock,
    /// Who watches.
    pub observer: Arc<O>,
    /// What makes it leave its guest.
    pub kick: Kick,
    /// Its number.
    pub vcpu: VcpuId,
    /// Other threads run guests on the same memory.
    pub shared: Sharing,
}

/// Whether other threads run guests on the same memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// No.
    Alone,
    /// Yes.
    Shared,
}

/// What a processor did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Instructions, each element of a repeated string instruction being one.
    pub instructions: u64,
    /// Blocks that were executed, a block that leads to itself once.
    pub blocks: u64,
    /// Blocks that were decoded, because none was kept or its code had changed.
    pub blocks_decoded: u64,
    /// Translations that were needed: one for each block and each access to data.
    pub translations: u64,
    /// Those of them that the front arrays had no answer for.
    pub front_misses: u64,
}

/// A processor.
#[derive(Debug)]
pub struct Processor<O: Observer> {
    core: Core<O>,
    blocks: Blocks<Core<O>>,
    /// How many blocks were executed.
    executed: u64,
    kick: Kick,
    /// To be delivered before the next instruction.
    inject: Option<Event>,
    /// Was being delivered when the guest was left.
    undelivered: Option<Event>,
    /// Leave as soon as interrupts are enabled.
    window: bool,
    sharing: Sharing,
    barrier: Option<Membarrier>,
}

impl<O: Observer> Processor<O> {
    /// Makes a processor after a reset.
    #[must_use]
    pub fn new(setup: Setup<O>) -> Self {
        let plain = matches!(setup.behaviour, Behaviour::Plain);
        let walked = Walked::new(Arc::clone(&setup.memory), Arc::clone(&setup.observer));
        let mut mmu = MmuCpu::new(Arc::new(walked), setup.model, Policy::NONE, setup.seed);
        if let Behaviour::Hostile(schedule) = setup.behaviour {
            mmu.set_schedule(schedule);
        }
        Self {
            core: Core {
                state: State::reset(),
                front: Front::new(plain),
                mmu,
                memory: setup.memory,
                dimensions: setup.dimensions,
                features: setup.features,
                exit: None,
                stale: false,
                granted: Vec::new(),
                clock: setup.clock,
                timestamp_offset: 0,
                done: 0,
                done_before: 0,
                epoch: setup.observer.epoch(setup.vcpu),
                observer: setup.observer,
                vcpu: setup.vcpu,
                accesses: 0,
                misses: 0,
            },
            blocks: Blocks::new(),
            executed: 0,
            kick: setup.kick,
            inject: None,
            undelivered: None,
            window: false,
            sharing: setup.shared,
            barrier: Membarrier::register(),
        }
    }

    /// Returns the registers.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.core.state
    }

    /// Returns the registers, to change them. What decides translation is in force with the next world.
    pub const fn state_mut(&mut self) -> &mut State {
        &mut self.core.state
    }

    /// Resets it, as INIT does.
    pub fn reset(&mut self) {
        self.core.state = State::reset();
        (self.inject, self.undelivered) = (None, None);
    }

    /// Returns the MMU.
    #[must_use]
    pub const fn mmu(&self) -> &MmuCpu<Walked<O>> {
        &self.core.mmu
    }

    /// Returns what it did.
    #[must_use]
    pub const fn work(&self) -> Work {
        Work {
            instructions: self.core.done,
            blocks: self.executed,
            blocks_decoded: self.blocks.decoded,
            translations: self.executed + self.core.accesses,
            front_misses: self.core.misses,
        }
    }

    /// Returns how far the time-stamp counter is ahead of the clock: what TSC_ADJUST holds.
    #[must_use]
    pub const fn timestamp_offset(&self) -> u64 {
        self.core.timestamp_offset
    }

    /// Sets how far the time-stamp counter is ahead of the clock.
    pub const fn set_timestamp_offset(&mut self, offset: u64) {
        self.core.timestamp_offset = offset;
    }

    /// Counts instructions that somebody else executed for it.
    pub const fn count(&mut self, instructions: u64) {
        self.core.done += instructions;
    }

    /// Has an event delivered before the next instruction.
    pub const fn inject(&mut self, event: Event) {
        self.inject = Some(event);
    }

    /// Says whether an event waits to be delivered.
    #[must_use]
    pub const fn injects(&self) -> bool {
        self.inject.is_some()
    }

    /// Takes the event that was being delivered when the guest was left.
    pub const fn take_undelivered(&mut self) -> Option<Event> {
        self.undelivered.take()
    }

    /// Says whether to leave as soon as interrupts are enabled.
    pub const fn set_window(&mut self, window: bool) {
        self.window = window;
    }

    /// Loads the world to run in, and drops cached translations if `flush` says so.
    pub fn load(&mut self, world: &World, flush: Flush) {
        let mmu = &mut self.core.mmu;
        let same = *mmu.registers() == world.regs
            && mmu.nested() == world.nested
            && mmu.asid() == world.asid;
        // PDPTEs that are refused: the guest faults when it needs them.
        let _ = mmu.enter(world, flush);
        if flush != Flush::Nothing || !same {
            self.core.clear_front();
        }
    }

    /// Runs the guest for about as many instructions, unless something makes it leave before.
    pub fn run(&mut self, budget: u64) -> Exit {
        let mut limit = self.core.done.saturating_add(budget);
        self.core.done_before = self.core.done;
        loop {
            if let Some(exit) = self.attend(limit) {
                return exit;
            }
            if let Some(event) = self.inject.take() {
                if let Some(exit) = self.deliver(event) {
                    return exit;
                }
                // A handler that faults at once, for ever, comes to an end too.
                limit = limit.saturating_sub(1);
            } else if let Err(stop) = self.run_block(limit)
                && let Some(exit) = self.stopped(stop)
            {
                return exit;
            }
        }
    }

    /// Looks at everything that ends a run between two instructions.
    #[inline(always)]
    fn attend(&mut self, limit: u64) -> Option<Exit> {
        if self.kick.is_due() && self.kick.take() {
            return Some(Exit::Pause(Pause::Kick));
        }
        if self.core.observer.watches() {
            let epoch = self.core.observer.epoch(self.core.vcpu);
            if epoch != self.core.epoch {
                self.core.epoch = epoch;
                self.core.clear_front();
            }
        }
        if self.core.done >= limit {
            return Some(Exit::Pause(Pause::Budget));
        }
        if self.window && self.inject.is_none() && self.takes_interrupts() {
            return Some(Exit::Pause(Pause::Window));
        }
        None
    }

    /// Says whether an interrupt would be taken now.
    #[must_use]
    pub const fn takes_interrupts(&self) -> bool {
        self.core.state.flags.contains(Flags::IF) && !self.core.state.interrupt_shadow
    }

    /// Turns a stop into an exit, or into an exception to deliver.
    #[cold]
    fn stopped(&mut self, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Exception(exception) => {
                self.inject = Some(Event::raised(&self.core.state, exception));
                None
            }
            Stop::Exit => self.core.exit.take().or(Some(Exit::Unsupported)),
            Stop::Unsupported => Some(Exit::Unsupported),
        }
    }

    /// Delivers an event; returns why the guest is left instead.
    fn deliver(&mut self, event: Event) -> Option<Exit> {
        self.core.granted.clear();
        match raise(&mut self.core, event) {
            Delivery::Done => {
                self.core.state.interrupt_shadow = false;
                None
            }
            Delivery::Stopped(event, _) => {
                self.undelivered = Some(event);
                // Without an exit of its own: handlers that fault for ever, which are looked at again after a pause.
                self.core.exit.take().or(Some(Exit::Pause(Pause::Budget)))
            }
            Delivery::Shutdown => Some(Exit::Shutdown),
        }
    }

    /// Executes a block, or its first instruction if something may come after it.
    #[inline(always)]
    fn run_block(&mut self, limit: u64) -> Result<(), Stop> {
        let watched = self.core.state.is_watched();
        if watched && let Some(exception) = self.core.state.take_debug() {
            return Err(exception.into());
        }
        let place = self.find_block()?;
        self.executed += 1;
        if watched {
            return self.run_one(place);
        }
        let block = self.blocks.at(place);
        let core = &mut self.core;
        let first = core.state.rip();
        core.stale = false;
        for _ in 0..REPEATS {
            for (i, op) in block.ops.iter().enumerate() {
                if !core.granted.is_empty() {
                    core.granted.clear();
                }
                if let Err(stop) = op.execute(core) {
                    core.done += i as u64;
                    return Err(stop);
                }
                if core.stale {
                    core.done += i as u64 + 1;
                    return Ok(());
                }
            }
            core.done += block.ops.len() as u64;
            let again = core.state.rip() == first
                && !core.state.is_watched()
                && core.done < limit
                && !self.kick.is_due()
                && block.tail.is_none();
            if !again {
                break;
            }
        }
        Ok(())
    }

    /// Executes the first instruction of a block, where something may come before or after it.
    #[cold]
    fn run_one(&mut self, place: usize) -> Result<(), Stop> {
        let core = &mut self.core;
        let Some(op) = self.blocks.at(place).ops.first() else {
            return Err(Stop::Unsupported);
        };
        core.granted.clear();
        let trap = op.execute_watched(core)?;
        core.done += 1;
        trap.map_or(Ok(()), |exception| Err(exception.into()))
    }

    /// Finds the block at the instruction pointer.
    #[inline(always)]
    fn find_block(&mut self) -> Result<usize, Stop> {
        let at = self.fetch_address()?;
        let wanted = self.core.code();
        let hpa = match self
            .core
            .front
            .get_byte(Class::new(wanted.kind, wanted.privilege), at)
        {
            Some(hpa) => hpa,
            None => self.core.find(at, wanted, None)?,
        };
        let mode = Mode::of(&self.core.state);
        let key = Key::new(hpa, mode);
        match self.blocks.get(key, &self.core.memory, hpa) {
            Some(place) if self.blocks.at(place).tail.is_none() => Ok(place),
            found => self.make_block(key, at, hpa, mode, found),
        }
    }

    /// Returns the linear address of the next instruction.
    #[inline(always)]
    fn fetch_address(&self) -> Result<u64, Stop> {
        let state = &self.core.state;
        let rip = state.rip();
        if state.is_64_bit() {
            // Bits 63 to 47 equal, with four-level tables; a wider address space is checked by the MMU.
            const LA57: u64 = 1 << 12;
            let upper = (rip as i64) >> 47;
            if upper == 0 || upper == -1 || state.cr4 & LA57 != 0 {
                return Ok(rip);
            }
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let code = state.segment(SegmentName::Cs);
        if rip > u64::from(code.limit) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        Ok(code.base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// Decodes a block, or checks the end of one that goes on in the next page.
    #[cold]
    #[inline(never)]
    fn make_block(
        &mut self,
        key: Key,
        at: u64,
        hpa: Hpa,
        mode: Mode,
        found: Option<usize>,
    ) -> Result<usize, Stop> {
        let (sharing, barrier) = (self.sharing, self.barrier);
        let announce = move || {
            if sharing == Sharing::Shared {
                // Pairs with the absence of a barrier between a store and the look at the frame's version, on every other thread: either the
                // store is seen by the reading of the bytes, or the version's mark by the store's thread.
                heavy(barrier);
            }
        };
        if found.is_none() {
            match self
                .blocks
                .make(key, &self.core.memory, hpa, mode, announce)
            {
                Ok(place) => return Ok(place),
                Err(DecodeError::CutShort) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        let next = (at & !0xfff).wrapping_add(4096);
        let tail = self.core.find(next, self.core.code(), None)?;
        let memory = &self.core.memory;
        if let Some(place) = found
            && self.blocks.at(place).tail == Some((tail, memory.version(tail.frame())))
        {
            return Ok(place);
        }
        self.blocks
            .make_across(key, memory, hpa, tail, mode, announce)
            .map_err(refusal)
    }
}

/// Returns after every thread of the process has executed a full barrier.
fn heavy(barrier: Option<Membarrier>) {
    /// Long enough for every processor to have emptied its store buffer.
    const LONG: Duration = Duration::from_millis(1);
    match barrier {
        Some(barrier) => barrier.heavy(),
        // Stores become visible within nanoseconds anyway, though nothing promises when.
        None => std::thread::sleep(LONG),
    }
}

fn refusal(error: DecodeError) -> Stop {
    match error {
        // What CPUID does not show, a processor does not have.
        DecodeError::Invalid | DecodeError::NotOffered => Exception::UNDEFINED.into(),
        DecodeError::TooLong => Exception::GENERAL_PROTECTION.into(),
        DecodeError::CutShort | DecodeError::Unsupported => Stop::Unsupported,
    }
}
