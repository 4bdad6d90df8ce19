//! The machine that the emulator's processor has: flat memory behind page tables, a ROM, and one port that ends the run.
//!
//! Key type: [`Machine`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderOptions};
use vmmu_cpu::{Access as Touch, Fault, Hpa, Kind, PhysMemory, Policy, Privilege, Va};
use vmmu_emu::system::{control, msr};
use vmmu_emu::{
    Access, Control, Cpu, DecodeError, Delivery, Event, Exception, Features, Instructions,
    Invalidation, LONGEST, Mode, Op, State, Stop, Word, decode, raise,
};

use crate::layout::{ALIAS, CODE, CURRENT, EXIT_PORT, MEMORY, PAGE, ROM};

/// Where the ROM begins.
const ROM_BASE: u64 = 0x1_0000_0000 - ROM;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The guest said so.
    Finished,
    /// It shut down, at this address.
    Shutdown(u64),
    /// The emulator did not know the instruction there.
    Unsupported(u64),
    /// It took too long, and was there.
    Endless(u64),
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    memory: Arc<PhysMemory>,
    mmu: vmmu_cpu::Cpu,
    rom: Vec<u8>,
    finished: bool,
    /// How often each instruction of the programs was executed.
    pub(crate) executed: BTreeMap<u16, u64>,
    /// Programs that a processor would not come back from: they halt it.
    pub(crate) halted: BTreeSet<u64>,
    /// All instructions, the monitor's included.
    pub(crate) instructions: u64,
}

impl Machine {
    /// What QEMU's processor offers, as it is started.
    const FEATURES: Features = Features {
        // VME to PCE but PVI's and VME's effects, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP.
        cr4: 0x0031_0ffc,
        efer: 0x4d01,
        physical_bits: 40,
        instructions: Instructions::RDTSCP,
    };

    /// Makes one with memory that begins with `image`, and a ROM.
    pub(crate) fn new(image: &BTreeMap<u64, Vec<u8>>, rom: Vec<u8>) -> Self {
        let memory = Arc::new(PhysMemory::new(MEMORY / PAGE));
        for (at, bytes) in image {
            memory.write_bytes(Hpa::new(*at), bytes);
        }
        let model = vmmu_cpu::Model {
            phys_bits: Self::FEATURES.physical_bits,
            ..vmmu_cpu::Model::STRICT
        };
        Self {
            state: State::reset(),
            mmu: vmmu_cpu::Cpu::new(memory.clone(), model, Policy::KEEP, 1),
            memory,
            rom,
            finished: false,
            executed: BTreeMap::new(),
            halted: BTreeSet::new(),
            instructions: 0,
        }
    }

    /// Reads physical memory.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) {
        self.memory.read_bytes(Hpa::new(at), bytes);
    }

    /// Runs until the guest ends it, or for a number of instructions.
    pub(crate) fn run(&mut self, most: u64) -> End {
        let mut last = None;
        while !self.finished {
            if self.instructions >= most {
                return End::Endless(self.state.rip());
            }
            self.instructions += 1;
            let rip = self.state.rip();
            let stopped = match self.one(&mut last) {
                Ok(None) => continue,
                Ok(Some(trap)) => Stop::Exception(trap),
                Err(stop) => stop,
            };
            last = None;
            let Stop::Exception(exception) = stopped else {
                return End::Unsupported(rip);
            };
            let event = Event::raised(&self.state, exception);
            match raise(self, event) {
                Delivery::Done => {}
                Delivery::Shutdown => return End::Shutdown(rip),
                Delivery::Stopped(..) => return End::Unsupported(rip),
            }
        }
        End::Finished
    }

    /// Executes one instruction. `last` is the one before: a repeated one stays where it is.
    fn one(&mut self, last: &mut Option<(u64, Op<Self>)>) -> Result<Option<Exception>, Stop> {
        if let Some(trap) = self.state.take_debug() {
            return Ok(Some(trap));
        }
        let rip = self.state.rip();
        let op = match last {
            Some((at, op)) if *at == rip => *op,
            _ => self.fetch_op()?,
        };
        *last = Some((rip, op));
        if self.state.is_watched() {
            return op.execute_watched(self);
        }
        op.execute(self)?;
        Ok(None)
    }

    /// Fetches and decodes the instruction at RIP.
    fn fetch_op(&mut self) -> Result<Op<Self>, Stop> {
        let mode = Mode::of(&self.state);
        let mut bytes = [0; LONGEST];
        let (count, fault) = self.fetch(&mut bytes)?;
        self.count(&bytes[..count], mode);
        match decode(&bytes[..count], mode) {
            Ok(op) => Ok(op),
            Err(DecodeError::Invalid | DecodeError::NotOffered) => Err(Exception::UNDEFINED.into()),
            Err(DecodeError::TooLong) => Err(Exception::GENERAL_PROTECTION.into()),
            Err(DecodeError::CutShort) => Err(fault.unwrap_or(Stop::Unsupported)),
            Err(DecodeError::Unsupported) => Err(Stop::Unsupported),
        }
    }

    /// Notes which instruction of the program is executed.
    fn count(&mut self, bytes: &[u8], mode: Mode) {
        let in_program = (self.state.rip() & !ALIAS).wrapping_sub(CODE) < PAGE;
        if in_program {
            let mut decoder = Decoder::new(mode.bits(), bytes, DecoderOptions::NONE);
            let code: Code = decoder.decode().code();
            *self.executed.entry(code as u16).or_default() += 1;
        }
    }

    /// Fetches as many bytes as there are up to a fault, which it returns too.
    fn fetch(&mut self, bytes: &mut [u8; LONGEST]) -> Result<(usize, Option<Stop>), Stop> {
        let state = &self.state;
        let cs = state.segments[1];
        let wide = state.is_64_bit();
        let mut count = 0;
        while count < LONGEST {
            let offset = self.state.rip().wrapping_add(count as u64);
            let at = if wide {
                offset
            } else {
                cs.base.wrapping_add(offset) & 0xffff_ffff
            };
            let beyond = !wide && offset > u64::from(cs.limit);
            let found = if beyond {
                Err(Exception::GENERAL_PROTECTION.into())
            } else {
                self.translate(
                    at,
                    Kind::Execute,
                    Self::privilege(&self.state, Access::Read),
                )
            };
            let found = match found {
                Ok(found) => found,
                Err(stop) if count == 0 => return Err(stop),
                Err(stop) => return Ok((count, Some(stop))),
            };
            let rest = (PAGE - at % PAGE).min((LONGEST - count) as u64) as usize;
            let rest = if wide {
                rest
            } else {
                rest.min((u64::from(cs.limit) - offset + 1).min(16) as usize)
            };
            self.read_physical(found, &mut bytes[count..count + rest]);
            count += rest;
        }
        Ok((count, None))
    }

    fn read_physical(&self, at: Hpa, bytes: &mut [u8]) {
        match at.get().checked_sub(ROM_BASE) {
            Some(offset) => {
                let end = (offset as usize + bytes.len()).min(self.rom.len());
                let part = &self.rom[offset as usize..end];
                bytes[..part.len()].copy_from_slice(part);
            }
            None => self.memory.read_bytes(at, bytes),
        }
    }

    const fn privilege(state: &State, access: Access) -> Privilege {
        match access {
            Access::SystemRead | Access::SystemWrite => Privilege::Implicit,
            _ if state.cpl == 3 => Privilege::User,
            _ if state.flags.contains(vmmu_emu::Flags::AC) => Privilege::SupervisorAc,
            _ => Privilege::Supervisor,
        }
    }

    /// Translates a linear address.
    fn translate(&mut self, at: u64, kind: Kind, privilege: Privilege) -> Result<Hpa, Stop> {
        if self.state.cr0 >> 31 == 0 {
            return Ok(Hpa::new(at & 0xffff_ffff));
        }
        match self.mmu.translate(Va::new(at), Touch { kind, privilege }) {
            Ok(found) => Ok(found.hpa),
            Err(Fault::Page { va, code }) => {
                self.state.fault_address = va.get();
                Err(Exception::with_code(14, code.bits() as u16).into())
            }
            Err(_) => Err(Exception::GENERAL_PROTECTION.into()),
        }
    }

    /// Translates a range of at most a page: where it lies, and how much of it in the first page.
    fn range(&mut self, at: u64, len: usize, access: Access) -> Result<[(Hpa, usize); 2], Stop> {
        let kind = match access {
            Access::Read | Access::SystemRead => Kind::Read,
            _ => Kind::Write,
        };
        let privilege = Self::privilege(&self.state, access);
        let first = ((PAGE - at % PAGE) as usize).min(len);
        let low = self.translate(at, kind, privilege)?;
        let mut pieces = [(low, first), (low, 0)];
        if first < len {
            let mut beyond = at.wrapping_add(first as u64);
            if !self.state.is_long() {
                beyond &= 0xffff_ffff;
            }
            pieces[1] = (self.translate(beyond, kind, privilege)?, len - first);
        }
        Ok(pieces)
    }

    /// Tells the MMU what the registers are now.
    fn tell(&mut self) {
        let state = &self.state;
        let regs = vmmu_cpu::Registers {
            cr0: vmmu_cpu::Cr0::from_bits_truncate(state.cr0),
            cr3: vmmu_cpu::Cr3::new(state.cr3),
            cr4: vmmu_cpu::Cr4::from_bits_truncate(state.cr4),
            efer: vmmu_cpu::Efer::from_bits_truncate(state.efer),
            pkru: vmmu_cpu::Pkru::default(),
        };
        let world = vmmu_cpu::World {
            regs,
            asid: vmmu_cpu::Asid::default(),
            nested: None,
        };
        // PDPTEs that can't be loaded fault when they are used.
        let _ = self.mmu.enter(&world, vmmu_cpu::Flush::All);
    }
}

impl Cpu for Machine {
    fn state(&self) -> &State {
        &self.state
    }
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
    fn features(&self) -> Features {
        Self::FEATURES
    }
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let [(low, first), (high, second)] = self.range(at, W::BYTES, access)?;
        let mut bytes = [0; 8];
        self.read_physical(low, &mut bytes[..first]);
        self.read_physical(high, &mut bytes[first..first + second]);
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }
    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        let [(low, first), (high, second)] = self.range(at, W::BYTES, access)?;
        let bytes = value.zero_extend().to_le_bytes();
        self.memory.write_bytes(low, &bytes[..first]);
        self.memory.write_bytes(high, &bytes[first..first + second]);
        Ok(())
    }
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let found = self.load(at, Access::Update)?;
        if found == current {
            self.store(at, new, Access::Write)?;
        }
        Ok(found)
    }
    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        let access = match access {
            Access::SystemRead | Access::SystemWrite => Access::SystemWrite,
            _ => Access::Write,
        };
        self.range(at, len, access).map(drop)
    }
    fn port_in(&mut self, _: u16, bytes: usize) -> Result<u32, Stop> {
        Ok(u32::MAX >> (32 - 8 * bytes))
    }
    fn port_out(&mut self, port: u16, _: usize, _: u32) -> Result<(), Stop> {
        self.finished |= port == EXIT_PORT;
        Ok(())
    }
    fn read_msr(&mut self, number: u32) -> Result<u64, Stop> {
        Ok(msr::read(&self.state, number)?)
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        msr::write(&mut self.state, &Self::FEATURES, number, value)?;
        if number == 0xc000_0080 {
            self.tell();
        }
        Ok(())
    }
    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        control::set(&mut self.state, register, value);
        if register != Control::Cr8 {
            self.tell();
        }
        Ok(())
    }
    fn invalidate(&mut self, what: Invalidation) -> Result<(), Stop> {
        match what {
            Invalidation::Page(at) => self.mmu.invlpg(Va::new(at)),
            Invalidation::Caches => {}
            _ => self.mmu.flush(vmmu_cpu::Flush::All),
        }
        Ok(())
    }
    fn cpuid(&mut self, _: u32, _: u32) -> Result<[u32; 4], Stop> {
        Ok([0; 4])
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        Ok(0)
    }
    fn halt(&mut self) -> Result<(), Stop> {
        let mut current = [0; 8];
        self.read(CURRENT, &mut current);
        self.halted.insert(u64::from_le_bytes(current));
        Ok(())
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        Err(Exception::UNDEFINED.into())
    }
}
