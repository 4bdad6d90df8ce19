//! The emulator in the sandbox's place: the same registers, the same data pages.
//!
//! Key function: [`emulate`].

use core::ops::Range;

use vmmu_emu::{
    Access, Control, Cpu, Exception, Extended, Flags, Fpu, Gpr, Invalidation, State, Stop, Word,
    step,
};

use crate::registers::{CodeMode, End, Fx, Registers};
use crate::trampoline::{DATA, DATA_LEN, GS_BASE};

/// Executes an instruction as [`Sandbox::run`](crate::Sandbox::run) does, by the emulator. Data pages are the only memory.
///
/// Returns `None` if the emulator does not know it, or wants to leave it to an embedder.
pub fn emulate(code: &[u8], data: &mut [u8; DATA_LEN], registers: &mut Registers) -> Option<End> {
    let mut machine = Machine {
        state: state(registers),
        data,
    };
    let end = match step(&mut machine, code) {
        Ok(_) => End::Completed,
        Err(Stop::Exception(exception)) => exception_end(&machine.state, exception),
        Err(_) => return None,
    };
    for (number, value) in registers.gpr.iter_mut().enumerate() {
        *value = machine.state.get(Gpr::new(number as u8));
    }
    registers.rip = machine.state.rip();
    registers.flags = machine.state.flags.bits() & Registers::FLAGS;
    registers.fx = Fx::of(&machine.state.fpu);
    Some(end)
}

fn exception_end(state: &State, exception: Exception) -> End {
    End::Exception {
        vector: exception.vector,
        code: exception.code.unwrap_or(0).into(),
        address: if exception.vector == 14 {
            state.fault_address
        } else {
            0
        },
    }
}

/// Returns the state of a process on 64-bit Linux with these registers.
fn state(registers: &Registers) -> State {
    let mut state = State::reset();
    state.cr0 = 0x8005_0033;
    state.cr4 = 0x620;
    state.efer = 0xd01;
    state.cpl = 3;
    let (code, data, limit) = match registers.mode {
        CodeMode::Bits64 => (0xafb, 0xcf3, u32::MAX),
        CodeMode::Bits32 => (0xcfb, 0xcf3, u32::MAX),
        CodeMode::Bits16 => (0x0fb, 0x0f3, 0xffff),
    };
    for segment in &mut state.segments {
        segment.attributes = data;
        segment.limit = limit;
        segment.base = registers.mode.data_base();
    }
    state.segments[1].attributes = code;
    if registers.mode == CodeMode::Bits64 {
        state.segments[5].base = GS_BASE;
    }
    state.segments[1].base = registers.mode.code_base();
    for (number, value) in registers.gpr.iter().enumerate() {
        state.set(Gpr::new(number as u8), *value);
    }
    state.set_rip(registers.rip);
    state.flags =
        Flags::from_bits_retain(registers.flags & Registers::FLAGS) | Flags::ONE | Flags::IF;
    state.fpu = registers.fx.to_fpu();
    state
}

impl Fx {
    /// Returns bytes of the image.
    ///
    /// # Panics
    /// They reach beyond it.
    #[must_use]
    pub fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..at + N);
        bytes
            .and_then(|b| b.try_into().ok())
            .expect("a place in the image")
    }

    /// Replaces bytes of the image.
    ///
    /// # Panics
    /// They reach beyond it.
    pub fn set_bytes<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    /// Returns what the emulator makes of the image.
    #[must_use]
    pub fn to_fpu(&self) -> Fpu {
        let mut fpu = Fpu::reset();
        fpu.control = u16::from_le_bytes(self.bytes(0));
        fpu.status = u16::from_le_bytes(self.bytes(2));
        fpu.in_use = self.0[4];
        fpu.mxcsr = u32::from_le_bytes(self.bytes(24));
        for i in 0..8 {
            let physical = (usize::from(fpu.top()) + i) % 8;
            fpu.registers[physical] = Extended {
                significand: u64::from_le_bytes(self.bytes(32 + 16 * i)),
                sign_exponent: u16::from_le_bytes(self.bytes(40 + 16 * i)),
            };
        }
        for (i, xmm) in fpu.xmm.iter_mut().enumerate() {
            *xmm = u128::from_le_bytes(self.bytes(160 + 16 * i));
        }
        fpu
    }

    /// Returns the image of the emulator's registers.
    #[must_use]
    pub fn of(fpu: &Fpu) -> Self {
        let mut fx = Self([0; 512]);
        fx.set_bytes(0, fpu.control.to_le_bytes());
        fx.set_bytes(2, fpu.status.to_le_bytes());
        fx.0[4] = fpu.in_use;
        fx.set_bytes(6, fpu.opcode.to_le_bytes());
        fx.set_bytes(8, fpu.instruction.1.to_le_bytes());
        fx.set_bytes(16, fpu.data.1.to_le_bytes());
        fx.set_bytes(24, fpu.mxcsr.to_le_bytes());
        for i in 0..8 {
            let register = fpu.st(i);
            let at = 32 + 16 * usize::from(i);
            fx.set_bytes(at, register.significand.to_le_bytes());
            fx.set_bytes(at + 8, register.sign_exponent.to_le_bytes());
        }
        for (i, xmm) in fpu.xmm.iter().enumerate() {
            fx.set_bytes(160 + 16 * i, xmm.to_le_bytes());
        }
        fx
    }
}

/// A processor whose only memory are the data pages.
struct Machine<'a> {
    state: State,
    data: &'a mut [u8; DATA_LEN],
}

impl Machine<'_> {
    fn range(&mut self, at: u64, len: usize, write: u16) -> Result<Range<usize>, Stop> {
        let start = at.wrapping_sub(DATA);
        match start.checked_add(len as u64) {
            Some(end) if end <= DATA_LEN as u64 => Ok(start as usize..end as usize),
            _ => {
                // The first byte that is not there.
                self.state.fault_address = if start < DATA_LEN as u64 {
                    DATA + DATA_LEN as u64
                } else {
                    at
                };
                Err(Exception::with_code(14, 4 | write).into())
            }
        }
    }
}

impl Cpu for Machine<'_> {
    fn state(&self) -> &State {
        &self.state
    }
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let write = if matches!(access, Access::Update) {
            2
        } else {
            0
        };
        let range = self.range(at, W::BYTES, write)?;
        let mut bytes = [0; 8];
        bytes[..W::BYTES].copy_from_slice(&self.data[range]);
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }
    fn store<W: Word>(&mut self, at: u64, value: W, _: Access) -> Result<(), Stop> {
        let range = self.range(at, W::BYTES, 2)?;
        let bytes = value.zero_extend().to_le_bytes();
        self.data[range].copy_from_slice(&bytes[..W::BYTES]);
        Ok(())
    }
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let found = self.load(at, Access::Update)?;
        if found == current {
            self.store(at, new, Access::Write)?;
        }
        Ok(found)
    }
    fn copy(&mut self, from: u64, to: u64, len: usize) -> bool {
        let (Ok(from), Ok(to)) = (self.range(from, len, 0), self.range(to, len, 2)) else {
            return false;
        };
        self.data.copy_within(from, to.start);
        true
    }
    fn fill(&mut self, at: u64, pattern: u64, len: usize) -> bool {
        let Ok(range) = self.range(at, len, 2) else {
            return false;
        };
        let bytes = pattern.to_le_bytes().into_iter().cycle();
        for (byte, new) in self.data[range].iter_mut().zip(bytes) {
            *byte = new;
        }
        true
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
    fn read_msr(&mut self, _: u32) -> Result<u64, Stop> {
        Err(Stop::Exit)
    }
    fn write_msr(&mut self, _: u32, _: u64) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn write_control(&mut self, _: Control, _: u64) -> Result<(), Stop> {
        Err(Stop::Exit)
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
