//! Recognising a store of 32 bits by its bytes: what systems write to their local APIC with.
//!
//! The exit names the address, so that nothing has to be computed: what is stored, and how long the instruction is, say the bytes.

use crate::decode::{CodeSize, Gpr};

/// What is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreSource {
    /// The low half of a register.
    Register(Gpr),
    /// A number in the instruction.
    Immediate(u32),
}

/// A MOV of 32 bits to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    /// What it stores.
    pub source: StoreSource,
    /// How many bytes it has.
    pub length: u8,
}

const MOV_REGISTER: u8 = 0x89;
const MOV_IMMEDIATE: u8 = 0xc7;
/// MOV of EAX to an address in the instruction.
const MOV_ACCUMULATOR: u8 = 0xa3;

/// Recognises the store at the start of `bytes`, the first one lowest; `None` if it is anything else.
pub fn recognise(bytes: u128, size: CodeSize) -> Option<Store> {
    if size == CodeSize::Bits16 {
        return None;
    }
    let byte = |at: u32| bytes.checked_shr(at * 8).map(|rest| rest as u8);
    let mut at = 0;
    // Segments: the address is known.
    while matches!(byte(at)?, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65) {
        at += 1;
    }
    let mut rex = 0;
    if size == CodeSize::Bits64 && byte(at)? & 0xf0 == 0x40 {
        rex = byte(at)?;
        at += 1;
    }
    if rex & 8 != 0 {
        return None;
    }
    let opcode = byte(at)?;
    at += 1;
    if opcode == MOV_ACCUMULATOR {
        let address = if size == CodeSize::Bits64 { 8 } else { 4 };
        let source = StoreSource::Register(Gpr(0));
        return finish(source, at + address);
    }
    let modrm = byte(at)?;
    at += 1;
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let mut base = rm;
    if rm == 4 {
        base = byte(at)? & 7;
        at += 1;
    }
    at += match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    match opcode {
        MOV_REGISTER => finish(StoreSource::Register(Gpr(reg | (rex & 4) << 1)), at),
        MOV_IMMEDIATE if reg == 0 => {
            let value = bytes.checked_shr(at * 8)? as u32;
            finish(StoreSource::Immediate(value), at + 4)
        }
        _ => None,
    }
}

fn finish(source: StoreSource, length: u32) -> Option<Store> {
    (length <= 15).then_some(Store {
        source,
        length: length as u8,
    })
}

#[cfg(test)]
mod a_store_is_recognised {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn recognised(bytes: &[u8], size: CodeSize) -> Option<Store> {
        let mut padded = [0x90; 16];
        padded[..bytes.len()].copy_from_slice(bytes);
        recognise(u128::from_le_bytes(padded), size)
    }

    #[test]
    fn with_what_it_stores_and_as_long_as_it_is() {
        use StoreSource::{Immediate, Register};
        for (bytes, source) in [
            (&[0x89, 0xb7, 0, 0xd0, 0x5f, 0xff][..], Register(Gpr(6))),
            (&[0x89, 0x03], Register(Gpr(0))),
            (&[0x44, 0x89, 0x4b, 0x10], Register(Gpr(9))),
            (&[0x41, 0x89, 0x0c, 0x24], Register(Gpr(1))),
            (
                &[0x89, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff],
                Register(Gpr(0)),
            ),
            (&[0x89, 0x05, 1, 2, 3, 4], Register(Gpr(0))),
            (
                &[0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 7, 0, 0, 0],
                Immediate(7),
            ),
            (&[0x3e, 0xc7, 0x03, 1, 2, 3, 4], Immediate(0x0403_0201)),
            (&[0xa3, 1, 2, 3, 4, 5, 6, 7, 8], Register(Gpr(0))),
        ] {
            let found = recognised(bytes, CodeSize::Bits64);
            let length = bytes.len() as u8;
            assert_eq!(found, Some(Store { source, length }), "{bytes:x?}");
            let decoded = Decoder::new(64, bytes, DecoderOptions::AMD).decode();
            assert_eq!(decoded.len(), bytes.len());
        }
        let found = recognised(&[0xa3, 0, 3, 0xe0, 0xfe], CodeSize::Bits32);
        assert_eq!(found.map(|store| store.length), Some(5));
    }

    #[test]
    fn and_nothing_else_is() {
        for bytes in [
            &[0x48, 0x89, 0x03][..],
            &[0x66, 0x89, 0x03],
            &[0x88, 0x03],
            &[0x89, 0xc3],
            &[0xc7, 0x4b, 0x10, 0, 0, 0, 0],
            &[0x87, 0x03],
            &[0x3e; 16],
        ] {
            assert_eq!(recognised(bytes, CodeSize::Bits64), None, "{bytes:x?}");
        }
        assert_eq!(recognised(&[0x89, 0x03], CodeSize::Bits16), None);
    }
}
