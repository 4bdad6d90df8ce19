//! The instructions that store and load the whole state, or its control registers.

use vmmu_emu_native::{CODE, CodeMode, DATA, DATA_LEN, End, Registers, Sandbox, emulate};

use crate::operands;

/// Where the image is in the data pages.
const AT: usize = 0x400;

/// What an instruction does, and the bytes of memory that the manuals leave open: what a processor keeps about the last instruction, reserved words,
/// the mask of MXCSR.
struct Case {
    name: &'static str,
    code: &'static [u8],
    open: &'static [(usize, usize)],
}

/// Beyond the last instruction and MXCSR's mask: 6 bytes above each stack register.
const FXSAVE_OPEN: &[(usize, usize)] = &[
    (6, 24),
    (28, 32),
    (42, 48),
    (58, 64),
    (74, 80),
    (90, 96),
    (106, 112),
    (122, 128),
    (138, 144),
    (154, 160),
];

const CASES: [Case; 13] = [
    Case {
        name: "fxsave",
        code: &[0x0f, 0xae, 0x03],
        open: FXSAVE_OPEN,
    },
    Case {
        name: "fxsave64",
        code: &[0x48, 0x0f, 0xae, 0x03],
        open: FXSAVE_OPEN,
    },
    Case {
        name: "fxrstor",
        code: &[0x0f, 0xae, 0x0b],
        open: &[],
    },
    Case {
        name: "fxrstor64",
        code: &[0x48, 0x0f, 0xae, 0x0b],
        open: &[],
    },
    Case {
        name: "ldmxcsr",
        code: &[0x0f, 0xae, 0x53, 0x18],
        open: &[],
    },
    Case {
        name: "stmxcsr",
        code: &[0x0f, 0xae, 0x1b],
        open: &[],
    },
    Case {
        name: "fnstenv",
        code: &[0xd9, 0x33],
        open: &[(12, 28)],
    },
    Case {
        name: "fnstenv16",
        code: &[0x66, 0xd9, 0x33],
        open: &[(6, 14)],
    },
    Case {
        name: "fldenv",
        code: &[0xd9, 0x23],
        open: &[],
    },
    Case {
        name: "fnsave",
        code: &[0xdd, 0x33],
        open: &[(12, 28)],
    },
    Case {
        name: "fnsave16",
        code: &[0x66, 0xdd, 0x33],
        open: &[(6, 14)],
    },
    Case {
        name: "frstor",
        code: &[0xdd, 0x23],
        open: &[],
    },
    Case {
        name: "frstor16",
        code: &[0x66, 0xdd, 0x23],
        open: &[],
    },
];

#[test]
fn images_are_stored_and_loaded_as_the_processor_does() {
    let mut sandbox = Sandbox::open().expect("a process may map pages and handle signals");
    let mut random = fastrand::Rng::with_seed(5);
    let rounds = 400;
    for case in &CASES {
        for round in 0..rounds {
            // A REX prefix is an instruction of its own in 32-bit code.
            let is_64_bit = case.code[0] == 0x48 || round % 2 == 0;
            let mode = if is_64_bit {
                CodeMode::Bits64
            } else {
                CodeMode::Bits32
            };
            check(&mut sandbox, &mut random, case, mode);
        }
    }
    println!(
        "{} instructions, {} cases, no difference",
        CASES.len(),
        CASES.len() * rounds
    );
}

/// Fills the image: FCW, FSW and tags where FXRSTOR and FLDENV have them, MXCSR, and anything elsewhere.
fn image(random: &mut fastrand::Rng, data: &mut [u8; DATA_LEN]) {
    random.fill(&mut data[AT..AT + 512]);
    // Seldom a reserved bit.
    let reserved = if random.u8(..8) == 0 { 1 << 20 } else { 0 };
    let mxcsr = random.u32(..0x1_0000) | reserved;
    data[AT + 24..AT + 28].copy_from_slice(&mxcsr.to_le_bytes());
    if random.bool() {
        // All masked: nothing becomes pending.
        data[AT] |= 0x3f;
    }
}

fn check(sandbox: &mut Sandbox, random: &mut fastrand::Rng, case: &Case, mode: CodeMode) {
    let mut start = operands::registers(random);
    operands::stack(random, &mut start);
    start.rip = CODE + 0x100;
    start.mode = mode;
    start.gpr[3] = DATA + AT as u64;
    let mut data = [0; DATA_LEN];
    image(random, &mut data);
    let (mut native_data, mut native) = (data, start.clone());
    let native_end = sandbox.run(case.code, &mut native_data, &mut native);
    let mut ours = start.clone();
    let end = emulate(case.code, &mut data, &mut ours).expect("a known instruction");
    let completed = |end| end == End::Completed;
    assert_eq!(
        completed(end),
        completed(native_end),
        "{}: {start:x?}",
        case.name
    );
    for (start, end) in case.open {
        let range = AT + start..AT + end;
        data[range.clone()].fill(0);
        native_data[range].fill(0);
    }
    let differ = (0..DATA_LEN).find(|i| data[*i] != native_data[*i]);
    let bytes = |data: &[u8; DATA_LEN]| data[AT..AT + 0x30].to_vec();
    assert_eq!(
        differ,
        None,
        "{}: {:x?} {:x?}",
        case.name,
        bytes(&data),
        bytes(&native_data)
    );
    for range in [
        0..6,
        24..28,
        32..42,
        48..58,
        64..74,
        80..90,
        96..106,
        112..122,
        128..138,
        144..154,
        160..416,
    ] {
        let registers = |r: &Registers| r.fx.0[range.clone()].to_vec();
        assert_eq!(
            registers(&ours),
            registers(&native),
            "{}, {range:?}: {start:x?} {:x?}",
            case.name,
            bytes(&data)
        );
    }
}
