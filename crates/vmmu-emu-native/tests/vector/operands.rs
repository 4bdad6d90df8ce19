//! Random registers, with a liking for the edges of each format.

use vmmu_emu_native::{CodeMode, DATA, DATA_LEN, Registers};

/// Where memory operands are, but for a small offset: across the pages' middle, far from their ends.
const MIDDLE: u64 = DATA + 0x1000 - 0x20;

/// Returns a number of 32 bits.
pub(crate) fn single(random: &mut fastrand::Rng) -> u32 {
    let sign = u32::from(random.bool()) << 31;
    let fraction = match random.u8(..6) {
        0 => 0,
        1 => 0x7f_ffff,
        2 => 1 << random.u8(..23),
        3 => 0x7f_ffff & !(0x7f_ffff >> random.u8(..23)),
        _ => random.u32(..1 << 23),
    };
    let exponent = match random.u8(..8) {
        0 => 0,
        1 => 255,
        2 => random.u32(1..30),
        3 => random.u32(225..255),
        4 => random.u32(..256),
        // Around 1 and around the limits of integers.
        5 => random.u32(148..162),
        _ => random.u32(115..140),
    };
    sign | exponent << 23 | fraction
}

/// Returns a number of 64 bits.
pub(crate) fn double(random: &mut fastrand::Rng) -> u64 {
    const FRACTION: u64 = (1 << 52) - 1;
    let sign = u64::from(random.bool()) << 63;
    let fraction = match random.u8(..7) {
        0 => 0,
        1 => FRACTION,
        2 => 1 << random.u8(..52),
        3 => FRACTION & !(FRACTION >> random.u8(..52)),
        // What 24 bits hold, or nearly.
        4 => random.u64(..1 << 25) << 27,
        _ => random.u64(..1 << 52),
    };
    let exponent = match random.u8(..10) {
        0 => 0,
        1 => 2047,
        2 => random.u64(1..60),
        3 => random.u64(1990..2047),
        4 => random.u64(..2048),
        5 => random.u64(1050..1060),
        6 => random.u64(1080..1090),
        // Around the limits of 32 bits.
        7 => random.u64(870..900),
        _ => random.u64(1000..1050),
    };
    sign | exponent << 52 | fraction
}

/// Returns a number of 80 bits, now and then an encoding that is none.
pub(crate) fn extended(random: &mut fastrand::Rng) -> (u64, u16) {
    const INTEGER: u64 = 1 << 63;
    let sign = u16::from(random.bool()) << 15;
    let fraction = match random.u8(..10) {
        0 | 1 => 0,
        2 => u64::MAX,
        3 => 1 << random.u8(..63),
        4 => !(u64::MAX >> random.u8(1..64)),
        // What the shorter formats hold, or nearly.
        5 => random.u64(..1 << 25) << 39,
        6 => random.u64(..) & !0x3ff,
        _ => random.u64(..),
    };
    let exponent = match random.u8(..12) {
        0 => 0,
        1 => 0x7fff,
        2 => random.u16(1..80),
        3 => random.u16(0x7fb0..0x7fff),
        4 => random.u16(..0x8000),
        // Around the limits of the shorter formats and of integers.
        5 => 0x3fff + 1024 - random.u16(..4),
        6 => 0x3fff - 1022 - random.u16(..56),
        7 => 0x3fff + 128 - random.u16(..4),
        8 => 0x3fff - 126 - random.u16(..28),
        9 => 0x3fff + random.u16(..66),
        _ => random.u16(0x3ff0..0x4010),
    };
    let integer = match (exponent, random.u8(..64)) {
        (0, 0) | (1..=0xffff, 1..) => INTEGER,
        _ => 0,
    };
    if exponent == 0 && random.bool() {
        return (0, sign);
    }
    (fraction & !INTEGER | integer, sign | exponent)
}

/// Returns random registers for x87 instructions: FCW, FSW, the stack.
pub(crate) fn stack(random: &mut fastrand::Rng, registers: &mut Registers) {
    let fx = &mut registers.fx;
    let precision = [3, 3, 2, 0][random.usize(..4)] << 8;
    let rounding = if random.bool() {
        random.u16(..4) << 10
    } else {
        0
    };
    let masks = if random.u8(..3) == 0 {
        random.u16(..64)
    } else {
        0x3f
    };
    fx.set_bytes(0, (0x40 | precision | rounding | masks).to_le_bytes());
    let top = random.u16(..8) << 11;
    // Only flags that are masked: none is pending.
    let flags = random.u16(..64) & masks & if random.bool() { 0x3f } else { 0 };
    let codes = random.u16(..) & 0x4740;
    fx.set_bytes(2, (top | flags | codes).to_le_bytes());
    let full = random.u8(..5) != 0;
    fx.0[4] = if full { 0xff } else { random.u8(..) };
    if random.bool() {
        // Room for a push.
        fx.0[4] &= !(1 << ((top >> 11).wrapping_sub(1) & 7));
    }
    for i in 0..8 {
        let (significand, sign_exponent) = extended(random);
        fx.set_bytes(32 + 16 * i, significand.to_le_bytes());
        fx.set_bytes(40 + 16 * i, sign_exponent.to_le_bytes());
    }
    if random.u8(..4) == 0 {
        close_to_each_other(random, registers);
    }
}

/// Makes ST(1) a number like ST(0): equal, or its neighbour.
fn close_to_each_other(random: &mut fastrand::Rng, registers: &mut Registers) {
    let fx = &mut registers.fx;
    let significand = u64::from_le_bytes(fx.bytes(32)) ^ random.u64(..2);
    let exponent = u16::from_le_bytes(fx.bytes(40)) ^ u16::from(random.bool()) << 15;
    for i in 1..8 {
        fx.set_bytes(32 + 16 * i, significand.to_le_bytes());
        fx.set_bytes(40 + 16 * i, exponent.to_le_bytes());
    }
}

/// Returns a vector of numbers of one format, or of integers.
pub(crate) fn vector(random: &mut fastrand::Rng) -> u128 {
    match random.u8(..5) {
        4 => {
            let (significand, sign_exponent) = extended(random);
            u128::from(sign_exponent) << 64 | u128::from(significand)
        }
        0 => (0..4).fold(0, |sum, _| sum << 32 | u128::from(single(random))),
        1 => (0..2).fold(0, |sum, _| sum << 64 | u128::from(double(random))),
        2 => random.u128(..),
        _ => (0..16).fold(0, |sum, _| {
            let edges = [0, 1, 0x7f, 0x80, 0xff, random.u8(..)];
            sum << 8 | u128::from(edges[random.usize(..6)])
        }),
    }
}

/// Returns MXCSR: exceptions mostly masked.
fn mxcsr(random: &mut fastrand::Rng) -> u32 {
    let mode = u32::from(random.u8(..)) & 0x83;
    let mode = (mode & 3) << 13 | (mode & 0x80) << 8;
    let zeros = if random.u8(..4) == 0 { 1 << 6 } else { 0 };
    let mode = if random.u8(..3) == 0 { 0 } else { mode };
    let masks = if random.u8(..4) == 0 {
        random.u32(..64) << 7
    } else {
        0x1f80
    };
    let flags = if random.bool() { random.u32(..64) } else { 0 };
    mode | zeros | masks | flags
}

/// Returns random registers: RBX is an address of data.
pub(crate) fn registers(random: &mut fastrand::Rng) -> Registers {
    let mut registers = Registers::new(CodeMode::Bits64);
    for value in &mut registers.gpr {
        *value = if random.bool() {
            random.u64(..)
        } else {
            random.i64(-300..300) as u64 >> (32 * random.u8(..2))
        };
    }
    registers.gpr[3] = MIDDLE
        + if random.u8(..8) == 0 {
            random.u64(..32)
        } else {
            16 * random.u64(..2)
        };
    registers.gpr[7] = MIDDLE + random.u64(..32);
    registers.flags = random.u64(..) & Registers::FLAGS & !(1 << 10);
    let fx = &mut registers.fx;
    fx.set_bytes(24, mxcsr(random).to_le_bytes());
    for i in 0..16 {
        fx.set_bytes(160 + 16 * i, vector(random).to_le_bytes());
    }
    for i in 0..8 {
        fx.set_bytes(32 + 16 * i, random.u64(..).to_le_bytes());
        fx.set_bytes(40 + 16 * i, random.u16(..).to_le_bytes());
    }
    fx.set_bytes(2, (u16::from(random.u8(..8)) << 11).to_le_bytes());
    fx.0[4] = random.u8(..);
    registers
}

/// Makes the registers those of 32-bit code.
pub(crate) fn make_32_bit(registers: &mut Registers) {
    registers.mode = CodeMode::Bits32;
    for value in &mut registers.gpr {
        *value &= 0xffff_ffff;
    }
}

/// Fills the data that operands are in.
pub(crate) fn data(random: &mut fastrand::Rng, data: &mut [u8; DATA_LEN]) {
    let middle = (MIDDLE - DATA) as usize;
    for place in data[middle..middle + 0x80].as_chunks_mut::<16>().0 {
        *place = vector(random).to_le_bytes();
    }
}
