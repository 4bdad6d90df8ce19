//! One case by processor and emulator, and what differs.
//!
//! Key types: [`Difference`], [`Coverage`].

use core::fmt;
use std::collections::BTreeMap;

use iced_x86::Code;

use crate::emulated::emulate;
use crate::generate::Case;
use crate::registers::{End, Registers};
use crate::trampoline::{DATA, Sandbox};
use crate::undefined;

/// How a case's instruction ended in one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// The registers after it.
    pub registers: Registers,
    /// The data pages after it.
    pub data: Vec<u8>,
}

/// A case that processor and emulator see differently.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The case.
    pub case: Case,
    /// What the processor did.
    pub native: Outcome,
    /// What the emulator did; `None`: it does not know the instruction.
    pub emulated: Option<Outcome>,
}

/// What has been compared: the number of cases of each instruction code, those that completed and those that raised exceptions.
#[derive(Clone, Default, Debug)]
pub struct Coverage {
    /// By code: completed, excepted.
    pub codes: BTreeMap<u32, (u64, u64)>,
}

impl Coverage {
    fn count(&mut self, code: Code, end: End) {
        let (completed, excepted) = self.codes.entry(code as u32).or_default();
        match end {
            End::Completed => *completed += 1,
            End::Exception { .. } => *excepted += 1,
        }
    }

    /// Returns the number of cases that completed, and that raised an exception.
    #[must_use]
    pub fn cases(&self) -> (u64, u64) {
        self.codes
            .values()
            .fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
    }

    /// Returns the number of codes of which a case completed.
    #[must_use]
    pub fn completed_codes(&self) -> usize {
        self.codes.values().filter(|n| n.0 > 0).count()
    }
}

/// Executes an integer case by both.
///
/// # Errors
/// What differs, but for what the manuals leave undefined.
pub fn compare_integer(
    sandbox: &mut Sandbox,
    case: &Case,
    coverage: &mut Coverage,
) -> Result<(), Box<Difference>> {
    let (native, emulated) = outcomes(sandbox, case);
    coverage.count(case.instruction.code(), native.end);
    if undefined::result(&case.instruction, &case.registers) {
        return Ok(());
    }
    let undefined = undefined::flags(&case.instruction, &case.registers);
    let same = |other: &Outcome| {
        let flags = (native.registers.flags ^ other.registers.flags) & !undefined;
        same_end(native.end, other.end)
            && native.registers.gpr == other.registers.gpr
            && native.registers.rip == other.registers.rip
            && flags == 0
            && (native.data == other.data || may_store_in_part(case, native.end))
    };
    if emulated.as_ref().is_some_and(same) {
        return Ok(());
    }
    Err(Box::new(Difference {
        case: case.clone(),
        native,
        emulated,
    }))
}

fn outcomes(sandbox: &mut Sandbox, case: &Case) -> (Outcome, Option<Outcome>) {
    let (mut data, mut registers) = (case.data.clone(), case.registers.clone());
    let end = sandbox.run(&case.code, &mut data, &mut registers);
    let native = Outcome {
        end,
        registers,
        data: data.to_vec(),
    };
    let (mut data, mut registers) = (case.data.clone(), case.registers.clone());
    let emulated = emulate(&case.code, &mut data, &mut registers).map(|end| Outcome {
        end,
        registers,
        data: data.to_vec(),
    });
    (native, emulated)
}

/// Says whether the processor may have done some of an instruction's stores before it raised an exception; the emulator does all or none.
fn may_store_in_part(case: &Case, end: End) -> bool {
    use iced_x86::Mnemonic::{Enter, Pusha, Pushad};
    end != End::Completed && matches!(case.instruction.mnemonic(), Enter | Pusha | Pushad)
}

/// Compares ends; an address counts for page faults only.
fn same_end(a: End, b: End) -> bool {
    match (a, b) {
        (
            End::Exception {
                vector: 14,
                code,
                address,
            },
            b,
        ) => {
            b == End::Exception {
                vector: 14,
                code,
                address,
            }
        }
        (
            End::Exception {
                vector: v, code: c, ..
            },
            End::Exception { vector, code, .. },
        ) => v == vector && c == code,
        (a, b) => a == b,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = &self.case.registers;
        writeln!(
            f,
            "{:?} {:?}: {:02x?}",
            before.mode,
            self.case.instruction.code(),
            self.case.code
        )?;
        writeln!(f, "  before   flags {:03x} {:x?}", before.flags, before.gpr)?;
        describe(f, "native", &self.native, &self.case)?;
        match &self.emulated {
            Some(outcome) => describe(f, "emulated", outcome, &self.case),
            None => writeln!(f, "  emulated unsupported"),
        }
    }
}

fn describe(f: &mut fmt::Formatter<'_>, who: &str, outcome: &Outcome, case: &Case) -> fmt::Result {
    let registers = &outcome.registers;
    writeln!(f, "  {who:8} {:x?}", outcome.end)?;
    writeln!(
        f,
        "           rip {:+} flags {:03x}",
        registers.rip.wrapping_sub(case.registers.rip) as i64,
        registers.flags
    )?;
    for (number, value) in registers.gpr.iter().enumerate() {
        if *value != case.registers.gpr[number] {
            writeln!(f, "           r{number} = {value:x}")?;
        }
    }
    let changed = outcome.data.iter().zip(case.data.iter()).enumerate();
    for (at, (new, old)) in changed.filter(|(_, (new, old))| new != old).take(16) {
        writeln!(
            f,
            "           [{:x}] {old:02x} -> {new:02x}",
            DATA + at as u64
        )?;
    }
    Ok(())
}
