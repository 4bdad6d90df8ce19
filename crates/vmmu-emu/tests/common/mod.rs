//! A processor on flat memory, without paging: for tests of single instructions.

use vmmu_emu::system::{control, msr};
use vmmu_emu::{Access, Control, Cpu, Exception, Invalidation, State, Stop, Word};

/// A processor whose linear addresses from [`Flat::BASE`] on are its memory.
pub(crate) struct Flat {
    pub(crate) state: State,
    pub(crate) memory: Vec<u8>,
    /// How often another processor adds 1 just before a compare-exchange.
    pub(crate) rivals: u32,
}

impl Flat {
    /// Where memory begins.
    pub(crate) const BASE: u64 = 0x10_0000;

    /// Makes one in 64-bit mode, at privilege level 3.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut state = State::reset();
        state.cr0 = 0x8005_0033;
        state.cr4 = 0x620;
        state.efer = 0xd01;
        for segment in &mut state.segments {
            segment.attributes = 0xcf3;
            segment.limit = u32::MAX;
            segment.base = 0;
        }
        state.segments[1].attributes = 0xafb;
        state.cpl = 3;
        state.set_rip(Self::BASE);
        Self {
            state,
            memory: vec![0; bytes],
            rivals: 0,
        }
    }

    fn range(&mut self, at: u64, len: usize, write: u16) -> Result<core::ops::Range<usize>, Stop> {
        let start = at.wrapping_sub(Self::BASE);
        match start.checked_add(len as u64) {
            Some(end) if end <= self.memory.len() as u64 => Ok(start as usize..end as usize),
            _ => {
                self.state.fault_address = at;
                Err(Exception::with_code(14, 4 | write).into())
            }
        }
    }
}

impl Cpu for Flat {
    #[inline(always)]
    fn state(&self) -> &State {
        &self.state
    }
    #[inline(always)]
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
    #[inline(always)]
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let write = if access == Access::Read { 0 } else { 2 };
        let range = self.range(at, W::BYTES, write)?;
        let mut bytes = [0; 8];
        bytes[..W::BYTES].copy_from_slice(&self.memory[range]);
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }
    #[inline(always)]
    fn store<W: Word>(&mut self, at: u64, value: W, _: Access) -> Result<(), Stop> {
        let range = self.range(at, W::BYTES, 2)?;
        let bytes = value.zero_extend().to_le_bytes();
        self.memory[range].copy_from_slice(&bytes[..W::BYTES]);
        Ok(())
    }
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let mut found: W = self.load(at, Access::Update)?;
        if self.rivals > 0 {
            self.rivals -= 1;
            found = W::truncate(found.zero_extend().wrapping_add(1));
            self.store(at, found, Access::Write)?;
        }
        if found == current {
            self.store(at, new, Access::Write)?;
        }
        Ok(found)
    }
    fn check_write(&mut self, at: u64, len: usize, _: Access) -> Result<(), Stop> {
        self.range(at, len, 2).map(drop)
    }
    fn port_in(&mut self, _: u16, _: usize) -> Result<u32, Stop> {
        Err(Stop::Exit)
    }
    fn port_out(&mut self, _: u16, _: usize, _: u32) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn read_msr(&mut self, number: u32) -> Result<u64, Stop> {
        Ok(msr::read(&self.state, number)?)
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        let features = self.features();
        Ok(msr::write(&mut self.state, &features, number, value)?)
    }
    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        control::set(&mut self.state, register, value);
        Ok(())
    }
    fn invalidate(&mut self, _: Invalidation) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn cpuid(&mut self, _: u32, _: u32) -> Result<[u32; 4], Stop> {
        Err(Stop::Exit)
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        Err(Stop::Exit)
    }
    fn halt(&mut self) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
}
