//! A processor in any state, on memory that is there, read-only, a device or absent as chance has it: for tests of what must never happen.
//!
//! Key types: [`Wild`], [`Tally`].

use core::panic::AssertUnwindSafe;
use std::collections::BTreeMap;
use std::panic::{catch_unwind, resume_unwind};

use fastrand::Rng;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use vmmu_emu::{
    Access, Control, Cpu, DecodeError, Delivery, Event, Exception, Flags, Fpu, Gpr, Invalidation,
    Mode, Segment, State, Stop, Table, Word, decode, raise, step,
};

const MEMORY: usize = 1 << 16;

/// A processor for any state and any bytes.
pub(crate) struct Wild {
    rng: Rng,
    state: State,
    memory: Vec<u8>,
    /// Decides what each page is.
    salt: u64,
    /// The number of stores, and of port accesses and other effects, that were granted.
    effects: u64,
    /// A write of a control register was left to the embedder.
    refused: bool,
}

/// What became of instructions.
#[derive(Default, Debug)]
pub(crate) struct Tally {
    pub(crate) executed: u64,
    /// By vector.
    pub(crate) exceptions: BTreeMap<u8, u64>,
    pub(crate) exits: u64,
    pub(crate) unsupported: u64,
    /// Of extensions, or too few bytes.
    pub(crate) beyond: u64,
    /// How often each was unsupported.
    pub(crate) unknown: BTreeMap<String, u64>,
    /// What an instruction that stopped had changed nevertheless, with an example of each.
    pub(crate) traces: BTreeMap<String, String>,
    /// Events delivered, and shutdowns that they ended in.
    pub(crate) delivered: u64,
    pub(crate) shutdowns: u64,
}

impl Wild {
    pub(crate) fn new(seed: u64) -> Self {
        let mut wild = Self {
            rng: Rng::with_seed(seed),
            state: State::reset(),
            memory: vec![0; MEMORY],
            salt: 0,
            effects: 0,
            refused: false,
        };
        wild.rng.fill(&mut wild.memory);
        wild
    }

    /// Executes random instructions, `count` of them, each in a state that is the last one's or new.
    pub(crate) fn run(&mut self, count: u64, tally: &mut Tally) {
        for _ in 0..count {
            if self.rng.u8(..) < 16 {
                self.scramble();
            }
            for _ in 0..2 {
                let value = self.value();
                self.state.set(Gpr::new(self.rng.u8(..)), value);
            }
            let bytes = self.bytes();
            self.one(&bytes, tally);
        }
    }

    fn one(&mut self, bytes: &[u8], tally: &mut Tally) {
        let before = self.state.clone();
        let effects = self.effects;
        self.refused = false;
        let result = catch_unwind(AssertUnwindSafe(|| step(self, bytes)));
        let result = result.unwrap_or_else(|panic| {
            eprintln!("{:?}: {bytes:02x?} in {before:?}", Mode::of(&before));
            resume_unwind(panic)
        });
        // With another task loaded a fault is that one's: the switch has happened. One that its CR3 stopped has saved the old task, and will again.
        if let Err(stop) = result
            && !repeats(bytes)
            && self.state.tr == before.tr
            && !self.refused
            && let Some(trace) = self.trace(&before, effects, stop)
        {
            let name = format!("{:?}: {trace}", mnemonic(bytes, Mode::of(&before)));
            let example = || format!("{:?} {bytes:02x?} {stop:?}", Mode::of(&before));
            tally.traces.entry(name).or_insert_with(example);
        }
        match result {
            Ok(_) => tally.executed += 1,
            Err(Stop::Exception(exception)) => {
                *tally.exceptions.entry(exception.vector).or_default() += 1;
                self.deliver(exception, tally);
            }
            Err(Stop::Exit) => tally.exits += 1,
            Err(Stop::Unsupported) if is_beyond(bytes, Mode::of(&before)) => tally.beyond += 1,
            Err(Stop::Unsupported) => {
                tally.unsupported += 1;
                let name = format!("{:?}", mnemonic(bytes, Mode::of(&before)));
                *tally.unknown.entry(name).or_default() += 1;
            }
        }
    }

    /// Delivers one exception in four: mostly into nonsense.
    fn deliver(&mut self, exception: Exception, tally: &mut Tally) {
        if self.rng.u8(..) >= 64 {
            return;
        }
        let event = Event::Exception {
            exception,
            address: self.state.fault_address,
        };
        tally.delivered += 1;
        if raise(self, event) == Delivery::Shutdown {
            tally.shutdowns += 1;
        }
    }

    /// Returns what an instruction that stopped has changed nevertheless, of what a guest sees.
    fn trace(&self, before: &State, effects: u64, stop: Stop) -> Option<&'static str> {
        let now = &self.state;
        let same_registers = (0..16).all(|n| now.get(Gpr::new(n)) == before.get(Gpr::new(n)));
        // A debug exception says in DR6 why it was raised.
        let detects = stop == Exception::DEBUG.into();
        let controls = |s: &State| [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.pkru.into()];
        let places = |s: &State| (s.segments, s.ldtr, s.tr, s.gdtr, s.idtr, s.cpl);
        let checks = [
            ("memory, or a port", effects == self.effects),
            ("a register", same_registers),
            ("RIP", now.rip() == before.rip()),
            ("flags", now.flags == before.flags),
            ("segments", places(now) == places(before)),
            ("control registers", controls(now) == controls(before)),
            ("debug registers", detects || now.dr == before.dr),
            ("MSRs", now.msrs == before.msrs),
            ("vectors", same_vectors(&now.fpu, &before.fpu, stop)),
        ];
        checks.iter().find(|check| !check.1).map(|check| check.0)
    }

    fn value(&mut self) -> u64 {
        match self.rng.u8(..4) {
            0 => self.rng.u64(..256),
            1 => 1 << self.rng.u32(..64),
            2 => self.rng.u64(..0x1_0000_0000),
            _ => self.rng.u64(..),
        }
    }

    /// Makes the state another one: a mode that exists, and everything else at random.
    fn scramble(&mut self) {
        let mut state = State::reset();
        for number in 0..16 {
            state.set(Gpr::new(number), self.value());
        }
        state.set_rip(self.value());
        state.flags =
            Flags::from_bits_retain(self.rng.u64(..) & 0x3f_7fd5 & !(1 << 17)) | Flags::ONE;
        for segment in &mut state.segments {
            *segment = segment_at_random(&mut self.rng);
        }
        state.ldtr = segment_at_random(&mut self.rng);
        state.tr = segment_at_random(&mut self.rng);
        state.gdtr = table_at_random(&mut self.rng);
        state.idtr = table_at_random(&mut self.rng);
        state.cpl = self.rng.u8(..4);
        state.cr0 = self.rng.u64(..) & 0xe005_003f;
        state.cr4 = self.rng.u64(..) & 0x37_0fff;
        state.efer = self.rng.u64(..) & 0xd01;
        state.dr[7] = self.rng.u64(..) & 0xffff_27ff;
        fill_at_random(&mut self.rng, &mut state.fpu);
        self.choose_mode(&mut state);
        self.state = state;
        self.salt = self.rng.u64(..);
    }

    fn choose_mode(&mut self, state: &mut State) {
        const LMA: u64 = 1 << 10;
        match self.rng.u8(..5) {
            0 => {
                (state.cr0, state.efer) = (state.cr0 & !(1 << 31 | 1), state.efer & !LMA);
                state.cpl = 0;
            }
            1 => {
                (state.cr0, state.efer) = (state.cr0 | 1, state.efer & !LMA);
                state.flags.insert(Flags::VM);
                state.cpl = 3;
                state.segments[1].attributes = 0xf3;
            }
            2 => (state.cr0, state.efer) = (state.cr0 | 1, state.efer & !LMA),
            _ => {
                (state.cr0, state.efer) = (state.cr0 | 1 << 31 | 1, state.efer | LMA | 1 << 8);
                state.cr4 |= 1 << 5;
                if self.rng.bool() {
                    state.segments[1].attributes = 0x29b | state.segments[1].attributes & 0x60;
                }
            }
        }
    }

    /// Returns bytes: nonsense, or an opcode with prefixes; sometimes too few.
    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.rng.u8(..3) == 0 {
            let prefixes = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x48, 0x4f, 0x41];
            bytes.push(prefixes[self.rng.usize(..prefixes.len())]);
        }
        match self.rng.u8(..8) {
            0..=2 => bytes.push(0x0f),
            3 => bytes.extend([0x0f, 0x38]),
            _ => {}
        }
        let mut rest = [0; 16];
        self.rng.fill(&mut rest);
        bytes.extend(rest);
        bytes.truncate(15);
        if self.rng.u8(..64) == 0 {
            bytes.truncate(self.rng.usize(..15));
        }
        bytes
    }

    /// Returns where an access goes, if its pages grant it.
    fn grant(&mut self, at: u64, len: usize, access: Access) -> Result<usize, Stop> {
        let writes = !matches!(access, Access::Read | Access::SystemRead);
        for page in [at >> 12, at.wrapping_add(len as u64 - 1) >> 12] {
            let mixed = (page ^ self.salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
            match mixed {
                0 => return Err(Stop::Exit),
                1 | 2 => return Err(self.page_fault(at, 0, writes)),
                3 if writes => return Err(self.page_fault(at, 1, writes)),
                _ => {}
            }
        }
        Ok(at as usize % MEMORY)
    }

    fn page_fault(&mut self, at: u64, present: u16, writes: bool) -> Stop {
        self.state.fault_address = at;
        Exception::with_code(14, present | u16::from(writes) << 1).into()
    }

    fn device(&mut self) -> Result<(), Stop> {
        if self.rng.bool() {
            self.effects += 1;
            Ok(())
        } else {
            Err(Stop::Exit)
        }
    }
}

fn segment_at_random(rng: &mut Rng) -> Segment {
    Segment {
        selector: rng.u16(..),
        attributes: rng.u16(..) & 0xfff | if rng.bool() { 0x93 } else { 0 },
        limit: if rng.bool() { u32::MAX } else { rng.u32(..) },
        base: if rng.bool() { 0 } else { rng.u64(..) },
    }
}

/// Fills vector and floating-point registers with what arithmetic may stumble over; often nothing is masked.
fn fill_at_random(rng: &mut Rng, fpu: &mut Fpu) {
    fpu.control = rng.u16(..) & 0xf3f | 0x40;
    fpu.mxcsr = rng.u32(..0x1_0000);
    if rng.bool() {
        fpu.control |= 0x3f;
        fpu.mxcsr |= 0x1f80;
    }
    fpu.in_use = rng.u8(..);
    fpu.status = rng.u16(..8) << 11;
    for register in &mut fpu.registers {
        let exponents = [0, 1, 0x3fff, 0x403e, 0x7ffe, 0x7fff, rng.u16(..0x8000)];
        register.sign_exponent = rng.u16(..2) << 15 | exponents[rng.usize(..7)];
        register.significand = rng.u64(..) | rng.u64(..) & 1 << 63;
    }
    for xmm in &mut fpu.xmm {
        *xmm = rng.u128(..) | if rng.bool() { 0x7ff << 52 } else { 0 };
    }
}

/// Compares vector registers. An unmasked exception of SSE leaves its flags in MXCSR, and x87 registers that the instruction made MMX registers.
fn same_vectors(now: &Fpu, before: &Fpu, stop: Stop) -> bool {
    let may_be_simd = stop == Exception::SIMD.into() || stop == Exception::UNDEFINED.into();
    if may_be_simd {
        now.xmm == before.xmm && now.registers == before.registers
    } else {
        now == before
    }
}

fn table_at_random(rng: &mut Rng) -> Table {
    Table {
        base: rng.u64(..),
        limit: rng.u16(..),
    }
}

/// Says whether the bytes are a repeated string instruction, whose elements count one by one.
fn repeats(bytes: &[u8]) -> bool {
    let prefixed = bytes.iter().any(|b| matches!(b, 0xf2 | 0xf3));
    prefixed
        && bytes
            .iter()
            .any(|b| matches!(b, 0xa4..=0xa7 | 0xaa..=0xaf | 0x6c..=0x6f))
}

fn is_beyond(bytes: &[u8], mode: Mode) -> bool {
    let error = decode::<Wild>(bytes, mode).err();
    matches!(error, Some(DecodeError::NotOffered | DecodeError::CutShort))
}

fn mnemonic(bytes: &[u8], mode: Mode) -> Mnemonic {
    let mut decoder = Decoder::new(mode.bits(), bytes, DecoderOptions::NONE);
    decoder.decode().mnemonic()
}

impl Cpu for Wild {
    fn state(&self) -> &State {
        &self.state
    }
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let start = self.grant(at, W::BYTES, access)?;
        let byte = |n| u64::from(self.memory[(start + n) % MEMORY]) << (8 * n);
        Ok(W::truncate((0..W::BYTES).map(byte).sum()))
    }
    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        let start = self.grant(at, W::BYTES, access)?;
        for (n, byte) in value.zero_extend().to_le_bytes()[..W::BYTES]
            .iter()
            .enumerate()
        {
            self.memory[(start + n) % MEMORY] = *byte;
        }
        self.effects += 1;
        Ok(())
    }
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let found = self.load(at, Access::Update)?;
        // Sometimes another processor is faster.
        if found == current && self.rng.u8(..4) != 0 {
            self.store(at, new, Access::Write)?;
            return Ok(found);
        }
        if found == current {
            let other = W::truncate(self.rng.u64(..));
            self.store(at, other, Access::Write)?;
            self.effects -= 1;
            return Ok(if other == current {
                W::truncate(!other.zero_extend())
            } else {
                other
            });
        }
        Ok(found)
    }
    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        assert!((1..=4096).contains(&len), "a range of at most a page");
        self.grant(at, len, access).map(drop)
    }
    fn port_in(&mut self, _: u16, _: usize) -> Result<u32, Stop> {
        self.device()?;
        Ok(self.rng.u32(..))
    }
    fn port_out(&mut self, _: u16, _: usize, _: u32) -> Result<(), Stop> {
        self.device()
    }
    fn read_msr(&mut self, _: u32) -> Result<u64, Stop> {
        Ok(self.rng.u64(..))
    }
    fn write_msr(&mut self, _: u32, _: u64) -> Result<(), Stop> {
        self.device()
    }
    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        self.refused = true;
        self.device()?;
        self.refused = false;
        match register {
            Control::Cr0 => self.state.cr0 = value,
            Control::Cr3 => self.state.cr3 = value,
            Control::Cr4 => self.state.cr4 = value,
            Control::Cr8 => self.state.cr8 = value,
        }
        Ok(())
    }
    fn invalidate(&mut self, _: Invalidation) -> Result<(), Stop> {
        self.device()
    }
    fn cpuid(&mut self, _: u32, _: u32) -> Result<[u32; 4], Stop> {
        Ok([self.rng.u32(..); 4])
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        Ok(self.rng.u64(..))
    }
    fn halt(&mut self) -> Result<(), Stop> {
        self.device()
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        self.device()
    }
}
