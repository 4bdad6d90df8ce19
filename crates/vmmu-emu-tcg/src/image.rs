//! The image: the monitor, the window as programs find it, and the programs.
//!
//! Key type: [`Image`].

use std::collections::BTreeMap;

use iced_x86::IcedError;

use crate::generate::Generator;
use crate::layout::{
    COUNT, CURSOR, HANDLERS, MONITOR, PRISTINE, PROGRAM, PROGRAMS, RECORDS, TABLES_END,
};
use crate::monitor::{Monitor, table_operands};
use crate::program::Program;
use crate::world::{GDT_BYTES, World};

/// What a machine begins with.
#[derive(Debug)]
pub(crate) struct Image {
    /// Memory by address; the rest is zero.
    pub(crate) memory: BTreeMap<u64, Vec<u8>>,
    /// What ends at 4 GiB.
    pub(crate) rom: Vec<u8>,
}

/// Makes images and the programs in them.
#[derive(Debug)]
pub struct Builder {
    monitor: Monitor,
    generator: Generator,
}

impl Builder {
    /// Assembles the monitor.
    ///
    /// # Errors
    /// None in practice: the assembler's, of code that does not change.
    pub fn new() -> Result<Self, IcedError> {
        let monitor = Monitor::long()?;
        let generator = Generator::new(monitor.handlers);
        Ok(Self { monitor, generator })
    }

    /// Returns what makes programs.
    #[must_use]
    pub const fn generator(&self) -> &Generator {
        &self.generator
    }

    /// Makes an image of programs.
    pub(crate) fn image(&self, programs: &[Program]) -> Image {
        let mut world = World::long(&self.monitor.stubs, &self.monitor.handlers);
        world.put_bytes(HANDLERS, &self.monitor.handler_code);
        let bytes = world.bytes();
        let mut memory = BTreeMap::new();
        // The tables are used in place until the first program.
        memory.insert(0, bytes[..TABLES_END as usize].to_vec());
        memory.insert(PRISTINE, bytes.to_vec());
        memory.insert(MONITOR, self.monitor.code.clone());
        let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory.insert(CURSOR, words(&[RECORDS]));
        memory.insert(COUNT, words(&[programs.len() as u64]));
        for (at, limit, base) in table_operands(GDT_BYTES - 1) {
            let mut operand: Vec<u8> = (limit as u16).to_le_bytes().into();
            operand.extend(base.to_le_bytes());
            memory.insert(at, operand);
        }
        for (n, program) in (0..).zip(programs) {
            memory.insert(PROGRAMS + PROGRAM * n, program.bytes());
        }
        Image {
            memory,
            rom: self.monitor.rom.clone(),
        }
    }
}
