//! Where QEMU's interpreter is known to be wrong, or does what the manuals leave open in its own way.
//!
//! Key function: [`judge`]. What is not in the list fails.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

use crate::compare::{Parting, Word};
use crate::layout::{
    ALIAS, CODE, DATA, DEMAND, GDT, HANDLERS, INNER_STACK, MONITOR, PAGE, STACK, TASK, WINDOW_TABLE,
};
use crate::program::Kind;
use crate::record::{CR0, CR2, ERROR, FLAGS, NAMES, RIP, VECTOR};

/// The flags that QEMU does not save as it should: a fault saves RF set (AMD APM vol. 2, section 13.1.3.4; Intel SDM vol. 3, section 18.3.1.1), QEMU as
/// it was. They are left out of every comparison.
pub(crate) const SAVED_FLAGS: u64 = 1 << 16;

/// STI's opcode.
const STI: u8 = 0xfb;
/// The end of the lower half of canonical addresses.
const LAST_CANONICAL: u64 = 0x7fff_ffff_ffff;

/// Whether the comparison of a program goes on behind a deviation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// It changed nothing else.
    GoOn,
    /// The two are apart now.
    Stop,
}

/// What two records are to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Equal.
    Same,
    /// Known deviations explain each word that differs.
    Known(Vec<&'static str>, Then),
    /// A failure.
    Different,
}

/// A deviation.
struct Deviation {
    name: &'static str,
    then: Then,
    /// Says whether it explains that a word differs.
    explains: fn(&Parting<'_>, &Word) -> bool,
}

const DEVIATIONS: [Deviation; 19] = [
    // The error code of a page fault has W set for a read that is part of an update (Intel SDM vol. 3, section 4.7; AMD APM vol. 2, section 8.4.2).
    // QEMU's loads don't know what follows.
    Deviation {
        name: "an update's page fault is a read",
        then: Then::GoOn,
        explains: |parting, word| {
            word.place == ERROR
                && parting.ours.0[VECTOR] == 14
                && word.ours == word.theirs | 2
                && updates(parting)
        },
    },
    // For the same reason QEMU may find the second page first.
    Deviation {
        name: "an update that crosses pages",
        then: Then::Stop,
        explains: |parting, word| {
            let address = parting.ours.0[CR2];
            matches!(word.place, ERROR | CR2)
                && parting.ours.0[VECTOR] == 14
                && address % PAGE > PAGE - 16
                && parting.theirs.0[CR2] == (address | (PAGE - 1)) + 1
                && updates(parting)
        },
    },
    // A null selector in SS must have the level of the code (Intel SDM vol. 2, MOV). QEMU does not look.
    Deviation {
        name: "a null stack segment of another level",
        then: Then::Stop,
        explains: |parting, _| {
            parting.ours.0[VECTOR] == 13
                && parting.ours.0[ERROR] == 0
                && matches!(mnemonic(parting), Some(Mnemonic::Lss | Mnemonic::Mov))
                && parting.program.kind == Kind::Kernel64
        },
    },
    // The error code of an entry of the interrupt table is its vector times 8, in long mode too (AMD APM vol. 2, section 8.4.1; Intel SDM vol. 3, section
    // 6.13). QEMU multiplies by 16.
    Deviation {
        name: "an interrupt's error code in long mode",
        then: Then::GoOn,
        explains: |_, word| {
            let vector = word.ours >> 3;
            word.place == ERROR && word.ours & 2 != 0 && word.theirs == vector << 4 | 2
        },
    },
    // A return to an outer level makes data segments null whose level is further in, and a null one has level 0 (AMD APM vol. 3, IRET): selectors 1 to 3
    // become 0. QEMU leaves those of FS and GS.
    Deviation {
        name: "null selectors after a return",
        then: Then::GoOn,
        explains: |_, word| {
            let name = NAMES[word.place];
            matches!(name, "fs" | "gs") && word.ours == 0 && word.theirs < 4
        },
    },
    // An exception at the same level leaves SS, on a stack of the interrupt stack table too (AMD APM vol. 2, sections 8.9.3 and 8.9.4). QEMU makes it null,
    // which shows where a handler faults.
    Deviation {
        name: "a null stack segment at the same level",
        then: Then::GoOn,
        explains: |parting, word| {
            let rip = parting.ours.0[RIP];
            let handler = rip >= MONITOR || is_handler(rip);
            NAMES[word.place] == "ss" && word.theirs == 0 && handler
        },
    },
    // SYSENTER and SYSEXIT raise #UD in all of long mode (AMD APM vol. 3). QEMU refuses them in 64-bit code only.
    Deviation {
        name: "SYSENTER in compatibility mode",
        then: Then::Stop,
        explains: |parting, _| {
            parting.ours.0[VECTOR] == 6
                && parting.program.kind.bits() == 32
                && matches!(
                    mnemonic(parting),
                    Some(Mnemonic::Sysenter | Mnemonic::Sysexit)
                )
        },
    },
    // A fault leaves the flags as they were. QEMU keeps them in a lazy form, which an instruction that reads flags has begun to replace when memory faults.
    Deviation {
        name: "flags of an instruction that reads them and faults",
        then: Then::Stop,
        explains: |parting, word| {
            word.place == FLAGS
                && parting.ours.0[VECTOR] == 14
                && (word.ours ^ word.theirs) & !(0x8d5 | SAVED_FLAGS) == 0
                && instruction(parting).is_some_and(reads_flags)
        },
    },
    // A far JMP through a call gate to absent code raises #NP (AMD APM vol. 2, section 4.11.2; Intel SDM vol. 2, JMP).
    Deviation {
        name: "a jump through a gate to absent code",
        then: Then::GoOn,
        explains: |parting, word| {
            word.place == VECTOR
                && (word.ours, word.theirs) == (11, 13)
                && mnemonic(parting) == Some(Mnemonic::Jmp)
        },
    },
    // WRFSBASE and WRGSBASE refuse what is not canonical (AMD APM vol. 3).
    Deviation {
        name: "a base that is not canonical",
        then: Then::Stop,
        explains: |parting, _| {
            parting.ours.0[VECTOR] == 13
                && matches!(
                    mnemonic(parting),
                    Some(Mnemonic::Wrfsbase | Mnemonic::Wrgsbase)
                )
        },
    },
    // A stack address that is not canonical raises #SS (AMD APM vol. 2, section 8.2.13).
    Deviation {
        name: "a stack that is not canonical",
        then: Then::GoOn,
        explains: |parting, word| {
            word.place == VECTOR
                && (word.ours, word.theirs) == (12, 13)
                && parting.program.kind.bits() == 64
        },
    },
    // What a far transfer pushes or pops at level 3 is accessed with the rights of level 3 (Intel SDM vol. 3, section 4.6.1). QEMU uses those of level 0.
    Deviation {
        name: "the stack of a far transfer at level 3",
        then: Then::Stop,
        explains: |parting, _| {
            let far = matches!(
                mnemonic(parting),
                Some(
                    Mnemonic::Int
                        | Mnemonic::Call
                        | Mnemonic::Retf
                        | Mnemonic::Iret
                        | Mnemonic::Iretd
                        | Mnemonic::Iretq
                )
            );
            let [ours, theirs] =
                [parting.ours, parting.theirs].map(|record| (record.0[VECTOR], record.0[ERROR]));
            far && ours.0 == 14 && ours.1 & 4 != 0 && ours != theirs
        },
    },
    // A return to an absent stack segment raises #SS (AMD APM vol. 2, section 8.2.13; Intel SDM vol. 2, IRET).
    Deviation {
        name: "a return to an absent stack",
        then: Then::GoOn,
        explains: |parting, word| {
            word.place == VECTOR
                && (word.ours, word.theirs) == (12, 11)
                && matches!(
                    mnemonic(parting),
                    Some(Mnemonic::Retf | Mnemonic::Iretq | Mnemonic::Iretd)
                )
        },
    },
    // SYSCALL clears the flags of SFMASK alone (AMD APM vol. 3). In QEMU DF and the arithmetic flags are clear too.
    Deviation {
        name: "the flags behind SYSCALL",
        then: Then::GoOn,
        explains: |parting, word| {
            word.place == FLAGS
                && is_handler(parting.ours.0[RIP])
                && (word.ours ^ word.theirs) & !(0xcd5 | SAVED_FLAGS) == 0
        },
    },
    // STI holds off maskable interrupts for an instruction, not traps (AMD APM vol. 2, section 8.1.4). QEMU holds off both.
    Deviation {
        name: "a trap after STI",
        then: Then::Stop,
        explains: |parting, _| {
            let offset = parting.ours.0[RIP].wrapping_sub(1).wrapping_sub(CODE) % PAGE;
            let last = parting.program.code.get(offset as usize);
            parting.ours.0[VECTOR] == 1
                && parting.theirs.0[RIP] != parting.ours.0[RIP]
                && last == Some(&STI)
        },
    },
    // An access across the end of the canonical addresses raises #SS or #GP (AMD APM vol. 2, section 5.3.1). QEMU looks at its first byte.
    Deviation {
        name: "an access across the end of the canonical addresses",
        then: Then::Stop,
        explains: |parting, _| {
            matches!(parting.ours.0[VECTOR], 12 | 13)
                && parting.theirs.0[VECTOR] == 14
                && parting.theirs.0[CR2] >> 4 == LAST_CANONICAL >> 4
        },
    },
    // A far return checks the offset against the limit of code that is not 64-bit (AMD APM vol. 2, section 4.12). QEMU goes there.
    Deviation {
        name: "a return beyond the limit",
        then: Then::Stop,
        explains: |parting, _| {
            parting.ours.0[VECTOR] == 13
                && parting.ours.0[ERROR] == 0
                && parting.theirs.0[RIP] >> 32 != 0
        },
    },
    // The manuals don't say which operand CMPS reads first, nor what PUSHA writes first.
    Deviation {
        name: "the order of CMPS and PUSHA",
        then: Then::Stop,
        explains: |parting, word| {
            matches!(NAMES[word.place], "cr2" | "error")
                && parting.ours.0[VECTOR] == 14
                && matches!(
                    mnemonic(parting),
                    Some(
                        Mnemonic::Cmpsb
                            | Mnemonic::Cmpsw
                            | Mnemonic::Cmpsd
                            | Mnemonic::Cmpsq
                            | Mnemonic::Pusha
                            | Mnemonic::Pushad
                    )
                )
        },
    },
    // Limits and types of data segments are checked in compatibility mode (AMD APM vol. 2, section 4.12; Intel SDM vol. 3, section 5.3). QEMU checks
    // neither.
    Deviation {
        name: "an access that its segment forbids",
        then: Then::Stop,
        explains: |parting, _| {
            matches!(parting.ours.0[VECTOR], 12 | 13)
                && parting.ours.0[ERROR] == 0
                && breaks_segment(parting)
        },
    },
];

/// Judges two records.
pub(crate) fn judge(parting: &Parting<'_>) -> Verdict {
    if parting.words.is_empty() {
        return Verdict::Same;
    }
    let mut names = Vec::new();
    let mut then = Then::GoOn;
    for word in &parting.words {
        let known = DEVIATIONS
            .iter()
            .find(|deviation| (deviation.explains)(parting, word));
        let Some(deviation) = known else {
            return Verdict::Different;
        };
        names.push(deviation.name);
        if deviation.then == Then::Stop {
            then = Then::Stop;
        }
    }
    Verdict::Known(names, then)
}

/// Says whether QEMU is known to leave a word of the window as it does.
pub(crate) fn explains_memory(page: u64, offset: u64, ours: u64, theirs: u64) -> bool {
    match page {
        WINDOW_TABLE => {
            let address = (offset / 8 * PAGE) & !ALIAS;
            // A write that faults sets no accessed bit; QEMU's load before it does. (A program may turn the bit over.)
            let loaded = theirs ^ ours == 0x20;
            // Of a write that crosses pages and faults on the second one, the emulator's machine sets the dirty bit of the first.
            let crossed = ours & !0x60 == theirs & !0x60 && theirs & !ours & 0x40 == 0;
            loaded || crossed && matches!(address, BEFORE_READ_ONLY | DEMAND)
        }
        // RF is clear after each instruction (AMD APM vol. 2, section 13.1.3.4); QEMU clears it at the end of a translated block, and INT saves it.
        STACK | INNER_STACK => theirs == ours | SAVED_FLAGS,
        // Loading CS or SS by a far transfer or an event sets the descriptor's accessed bit (AMD APM vol. 2, section 4.7.2). QEMU sets it for MOV alone.
        GDT | TASK => ours == theirs | 1 << 40 && ours >> 44 & 1 == 1,
        _ => false,
    }
}

/// A page that is followed by one that can't be written; [`DEMAND`] is another.
const BEFORE_READ_ONLY: u64 = DATA + PAGE;

/// Says whether an address is in the programs' own handlers.
const fn is_handler(rip: u64) -> bool {
    rip & !(PAGE - 1) & !ALIAS == HANDLERS
}

/// Decodes the instruction of a record.
fn instruction(parting: &Parting<'_>) -> Option<Instruction> {
    let rip = parting.ours.0[RIP];
    parting.program.slot(rip)?;
    let offset = (rip.wrapping_sub(CODE) % PAGE) as usize;
    let bits = parting.program.kind.bits();
    let mut decoder = Decoder::new(bits, &parting.program.code[offset..], DecoderOptions::NONE);
    Some(decoder.decode())
}

/// Says whether the flags decide what an instruction does; by an immediate of 0 RCL and RCR do nothing, but QEMU prepares.
fn reads_flags(instruction: Instruction) -> bool {
    instruction.rflags_read() != 0
        || matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
}

fn mnemonic(parting: &Parting<'_>) -> Option<Mnemonic> {
    instruction(parting).map(|instruction| instruction.mnemonic())
}

/// Says whether the instruction of a record reads and writes memory, or may: without CR0.WP a program may have changed code.
fn updates(parting: &Parting<'_>) -> bool {
    if parting.ours.0[CR0] & 1 << 16 == 0 {
        return true;
    }
    let Some(instruction) = instruction(parting) else {
        return false;
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instruction);
    info.used_memory().iter().any(|memory| {
        matches!(
            memory.access(),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    })
}

/// Says whether an instruction of 32-bit code accesses memory through a segment that is null, or not flat, or through CS, or across the limit of 4 GiB.
fn breaks_segment(parting: &Parting<'_>) -> bool {
    const FLAT: [u64; 8] = [0x10, 0x20, 0x23, 0x22, 0x108, 0x0c, 0xf3, 0x0f];
    let Some(instruction) = instruction(parting) else {
        return false;
    };
    let selector = |name| {
        let place = NAMES.iter().position(|other| *other == name);
        place.map_or(0, |place| parting.ours.0[place])
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instruction);
    let theirs = parting.theirs.0[CR2];
    let wraps = parting.theirs.0[VECTOR] == 14 && theirs.wrapping_add(16) as u32 <= 32;
    if parting.program.kind.bits() == 32 && wraps {
        return true;
    }
    parting.program.kind.bits() == 32
        && info.used_memory().iter().any(|memory| {
            let selector = match memory.segment() {
                Register::ES => selector("es"),
                Register::SS => selector("ss"),
                Register::DS => selector("ds"),
                Register::FS => selector("fs"),
                Register::GS => selector("gs"),
                _ => return true,
            };
            !FLAT.contains(&selector)
        })
}
