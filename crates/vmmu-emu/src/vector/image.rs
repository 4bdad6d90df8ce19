//! The whole state in memory: FXSAVE, FXRSTOR, FNSAVE, FRSTOR, FNSTENV, FLDENV (AMD APM vol. 2, section 11.4; vol. 1, section 6.2.5).
//!
//! Key types: [`Layout`], of the two older formats. An image is put together in a buffer and stored, or loaded and taken apart, so that a fault
//! half-way changes nothing.

use iced_x86::{Code, Instruction};

use super::guard;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::fpu::{Extended, Fpu};
use crate::op::{Op, Run};
use crate::state::State;

/// Bytes of FXSAVE's image.
const FXSAVE: usize = 512;
/// Bytes of it that are written outside 64-bit mode.
const LEGACY_XMM_END: usize = 160 + 8 * 16;

fn store_bytes<C: Cpu>(cpu: &mut C, at: u64, bytes: &[u8]) -> Result<(), Stop> {
    let mut at = at;
    let (words, rest) = bytes.as_chunks();
    for word in words {
        cpu.store(at, u64::from_le_bytes(*word), Access::Write)?;
        at = at.wrapping_add(8);
    }
    let (words, _) = rest.as_chunks();
    for word in words {
        cpu.store(at, u16::from_le_bytes(*word), Access::Write)?;
        at = at.wrapping_add(2);
    }
    Ok(())
}

fn load_bytes<C: Cpu>(cpu: &mut C, at: u64, bytes: &mut [u8]) -> Result<(), Stop> {
    let mut at = at;
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = cpu.load::<u64>(at, Access::Read)?.to_le_bytes();
        at = at.wrapping_add(8);
    }
    let (words, _) = rest.as_chunks_mut();
    for word in words {
        *word = cpu.load::<u16>(at, Access::Read)?.to_le_bytes();
        at = at.wrapping_add(2);
    }
    Ok(())
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..at + N) {
        place.copy_from_slice(&value);
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let place = bytes.get(at..at + N);
    place.and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

/// Puts the x87 registers in the order of the stack, `stride` bytes apart.
fn put_registers(fpu: &Fpu, bytes: &mut [u8], at: usize, stride: usize) {
    for i in 0..8 {
        let register = fpu.st(i);
        let place = at + usize::from(i) * stride;
        put(bytes, place, register.significand.to_le_bytes());
        put(bytes, place + 8, register.sign_exponent.to_le_bytes());
    }
}

fn take_registers(fpu: &mut Fpu, bytes: &[u8], at: usize, stride: usize) {
    for i in 0..8 {
        let place = at + usize::from(i) * stride;
        fpu.registers[fpu.physical(i) as usize] = Extended {
            significand: u64::from_le_bytes(take(bytes, place)),
            sign_exponent: u16::from_le_bytes(take(bytes, place + 8)),
        };
    }
}

/// How FXSAVE keeps the last instruction's and its operand's address.
trait Pointers {
    fn put(pointer: (u16, u64)) -> [u8; 8];
    fn take(bytes: [u8; 8]) -> (u16, u64);
}

/// With REX.W: 64 bits of offset.
struct Long;
impl Pointers for Long {
    fn put(pointer: (u16, u64)) -> [u8; 8] {
        pointer.1.to_le_bytes()
    }
    fn take(bytes: [u8; 8]) -> (u16, u64) {
        (0, u64::from_le_bytes(bytes))
    }
}

/// Without: 32 bits of offset and the selector.
struct Short;
impl Pointers for Short {
    fn put(pointer: (u16, u64)) -> [u8; 8] {
        (pointer.1 & 0xffff_ffff | u64::from(pointer.0) << 32).to_le_bytes()
    }
    fn take(bytes: [u8; 8]) -> (u16, u64) {
        let value = u64::from_le_bytes(bytes);
        ((value >> 32) as u16, value & 0xffff_ffff)
    }
}

/// Returns where the XMM registers end that take part: none under EFER.FFXSR in the 64-bit kernel, 8 outside 64-bit mode.
const fn xmm_end(state: &State) -> usize {
    if !state.is_64_bit() {
        LEGACY_XMM_END
    } else if state.efer & 1 << 14 != 0 && state.cpl == 0 {
        160
    } else {
        160 + 16 * 16
    }
}

/// Returns the image's linear address.
fn place<C: Cpu>(cpu: &C, op: &Op<C>, access: Access) -> Result<u64, Stop> {
    guard::x87_control(cpu)?;
    let at = op.linear(cpu, FXSAVE, access)?;
    if at.is_multiple_of(16) {
        Ok(at)
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

fn fxsave<P: Pointers, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let at = place(cpu, op, Access::Write)?;
    let state = cpu.state();
    let fpu = &state.fpu;
    let mut image = [0; FXSAVE];
    put(&mut image, 0, fpu.control.to_le_bytes());
    put(&mut image, 2, fpu.status.to_le_bytes());
    put(&mut image, 4, [fpu.in_use]);
    put(&mut image, 6, fpu.opcode.to_le_bytes());
    put(&mut image, 8, P::put(fpu.instruction));
    put(&mut image, 16, P::put(fpu.data));
    put(&mut image, 24, fpu.mxcsr.to_le_bytes());
    put(&mut image, 28, Fpu::MXCSR_MASK.to_le_bytes());
    put_registers(fpu, &mut image, 32, 16);
    for (i, xmm) in fpu.xmm.iter().enumerate() {
        put(&mut image, 160 + 16 * i, xmm.to_le_bytes());
    }
    let end = xmm_end(state);
    cpu.check_write(at, FXSAVE, Access::Write)?;
    store_bytes(cpu, at, &image[..end])
}

fn fxrstor<P: Pointers, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let at = place(cpu, op, Access::Read)?;
    let mut image = [0; FXSAVE];
    load_bytes(cpu, at, &mut image)?;
    let mxcsr = u32::from_le_bytes(take(&image, 24));
    if mxcsr & !Fpu::MXCSR_MASK != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let registers = (xmm_end(cpu.state()) - 160) / 16;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.set_control(u16::from_le_bytes(take(&image, 0)));
    fpu.set_status(u16::from_le_bytes(take(&image, 2)));
    fpu.in_use = image[4];
    fpu.opcode = u16::from_le_bytes(take(&image, 6)) & 0x7ff;
    fpu.instruction = P::take(take(&image, 8));
    fpu.data = P::take(take(&image, 16));
    fpu.mxcsr = mxcsr;
    take_registers(fpu, &image, 32, 16);
    for (i, xmm) in fpu.xmm.iter_mut().take(registers).enumerate() {
        *xmm = u128::from_le_bytes(take(&image, 160 + 16 * i));
    }
    Ok(())
}

/// A layout of the environment: the seven words that FNSTENV stores, and FNSAVE before the registers.
trait Layout {
    /// Bytes of the environment.
    const BYTES: usize;
    fn put(bytes: &mut [u8], word: usize, value: u32);
    fn take(bytes: &[u8], word: usize) -> u32;
    /// Puts a pointer, and in real mode what shares its second word.
    fn put_pointer(bytes: &mut [u8], word: usize, pointer: (u16, u64), opcode: u16, real: bool) {
        let offset = pointer.1 as u32;
        if !real {
            Self::put(bytes, word, offset);
            Self::put(bytes, word + 1, Self::beside(pointer.0, opcode));
            return;
        }
        let offset = offset.wrapping_add(u32::from(pointer.0) << 4);
        Self::put(bytes, word, offset & 0xffff);
        let above = offset >> 16 << 12 | u32::from(opcode);
        Self::put(bytes, word + 1, above);
    }
    fn take_pointer(bytes: &[u8], word: usize, real: bool) -> (u16, u64) {
        let (low, high) = (Self::take(bytes, word), Self::take(bytes, word + 1));
        if real {
            (0, u64::from(low & 0xffff | high >> 12 << 16))
        } else {
            (high as u16, u64::from(low))
        }
    }
    /// Returns the word with a selector outside real mode.
    fn beside(selector: u16, opcode: u16) -> u32;
    /// Returns the opcode, where the layout has one.
    fn opcode(bytes: &[u8], real: bool) -> u16;
}

/// Words of 16 bits.
struct Words;
impl Layout for Words {
    const BYTES: usize = 14;
    fn put(bytes: &mut [u8], word: usize, value: u32) {
        put(bytes, word * 2, (value as u16).to_le_bytes());
    }
    fn take(bytes: &[u8], word: usize) -> u32 {
        u32::from(u16::from_le_bytes(take(bytes, word * 2)))
    }
    fn beside(selector: u16, _: u16) -> u32 {
        u32::from(selector)
    }
    fn opcode(bytes: &[u8], real: bool) -> u16 {
        if real {
            Self::take(bytes, 4) as u16 & 0x7ff
        } else {
            0
        }
    }
}

/// Words of 32 bits; what is reserved reads as ones.
struct DoubleWords;
impl Layout for DoubleWords {
    const BYTES: usize = 28;
    fn put(bytes: &mut [u8], word: usize, value: u32) {
        put(bytes, word * 4, value.to_le_bytes());
    }
    fn take(bytes: &[u8], word: usize) -> u32 {
        u32::from_le_bytes(take(bytes, word * 4))
    }
    fn beside(selector: u16, opcode: u16) -> u32 {
        u32::from(opcode) << 16 | u32::from(selector)
    }
    fn opcode(bytes: &[u8], real: bool) -> u16 {
        let word = Self::take(bytes, 4);
        (if real { word } else { word >> 16 }) as u16 & 0x7ff
    }
}

/// The largest image of FNSAVE.
const FNSAVE: usize = 108;

const fn is_real(state: &State) -> bool {
    state.is_real() || state.flags.contains(Flags::VM)
}

fn environment<L: Layout>(state: &State) -> [u8; FNSAVE] {
    let fpu = &state.fpu;
    let mut image = [0; FNSAVE];
    let reserved = 0xffff_0000;
    L::put(&mut image, 0, u32::from(fpu.control) | reserved);
    L::put(&mut image, 1, u32::from(fpu.status) | reserved);
    L::put(&mut image, 2, u32::from(fpu.tag_word()) | reserved);
    let real = is_real(state);
    L::put_pointer(&mut image, 3, fpu.instruction, fpu.opcode, real);
    let beside_data = if real { 0 } else { 0xffff };
    L::put_pointer(&mut image, 5, fpu.data, beside_data, real);
    image
}

fn set_environment<L: Layout>(state: &mut State, image: &[u8]) {
    let real = is_real(state);
    let fpu = &mut state.fpu;
    fpu.set_control(L::take(image, 0) as u16);
    fpu.set_status(L::take(image, 1) as u16);
    fpu.set_tag_word(L::take(image, 2) as u16);
    fpu.opcode = L::opcode(image, real);
    fpu.instruction = L::take_pointer(image, 3, real);
    fpu.data = L::take_pointer(image, 5, real);
}

fn fnstenv<L: Layout, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    let at = op.linear(cpu, L::BYTES, Access::Write)?;
    let image = environment::<L>(cpu.state());
    cpu.check_write(at, L::BYTES, Access::Write)?;
    store_bytes(cpu, at, &image[..L::BYTES])?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.set_control(fpu.control | 0x3f);
    Ok(())
}

fn fldenv<L: Layout, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let at = op.linear(cpu, L::BYTES, Access::Read)?;
    let mut image = [0; FNSAVE];
    load_bytes(cpu, at, &mut image[..L::BYTES])?;
    set_environment::<L>(cpu.state_mut(), &image);
    Ok(())
}

fn fnsave<L: Layout, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)?;
    let bytes = L::BYTES + 80;
    let at = op.linear(cpu, bytes, Access::Write)?;
    let mut image = environment::<L>(cpu.state());
    put_registers(&cpu.state().fpu, &mut image, L::BYTES, 10);
    cpu.check_write(at, bytes, Access::Write)?;
    store_bytes(cpu, at, &image[..bytes])?;
    cpu.state_mut().fpu.initialize();
    Ok(())
}

fn frstor<L: Layout, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let bytes = L::BYTES + 80;
    let at = op.linear(cpu, bytes, Access::Read)?;
    let mut image = [0; FNSAVE];
    load_bytes(cpu, at, &mut image[..bytes])?;
    let state = cpu.state_mut();
    set_environment::<L>(state, &image);
    take_registers(&mut state.fpu, &image, L::BYTES, 10);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.code() {
        Code::Fxsave_m512byte => fxsave::<Short, C>,
        Code::Fxsave64_m512byte => fxsave::<Long, C>,
        Code::Fxrstor_m512byte => fxrstor::<Short, C>,
        Code::Fxrstor64_m512byte => fxrstor::<Long, C>,
        Code::Fnstenv_m14byte => fnstenv::<Words, C>,
        Code::Fnstenv_m28byte => fnstenv::<DoubleWords, C>,
        Code::Fldenv_m14byte => fldenv::<Words, C>,
        Code::Fldenv_m28byte => fldenv::<DoubleWords, C>,
        Code::Fnsave_m94byte => fnsave::<Words, C>,
        Code::Fnsave_m108byte => fnsave::<DoubleWords, C>,
        Code::Frstor_m94byte => frstor::<Words, C>,
        Code::Frstor_m108byte => frstor::<DoubleWords, C>,
        _ => return None,
    })
}
