//! The comparison: both sides execute an instruction on the same registers and memory, and every difference is told.
//!
//! Key function: [`run_all`].

use vmmu_emu_native::{CODE, DATA_LEN, End, Registers, Sandbox, emulate};

use crate::encoding::Template;
use crate::operands;

/// A case in which the emulator and the processor differ.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) text: String,
}

/// How closely results must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Precision {
    /// In every bit.
    Exact,
    /// Lanes of 32 bits within the manuals' relative error, 1.5 * 2^-12 on both sides.
    Approximate,
    /// Stack registers but for the last few bits, and C1, which says how the last one came about.
    Transcendental,
}

/// Executes an instruction on both sides.
pub(crate) fn compare(
    sandbox: &mut Sandbox,
    code: &[u8],
    data: &[u8; DATA_LEN],
    start: &Registers,
    precision: Precision,
) -> Option<Difference> {
    let mut start = start.clone();
    start.rip = CODE + 0x100;
    let (mut native_data, mut native) = (*data, start.clone());
    let native_end = sandbox.run(code, &mut native_data, &mut native);
    let (mut data, mut registers) = (*data, start.clone());
    let Some(end) = emulate(code, &mut data, &mut registers) else {
        return Some(report(
            code,
            &start,
            &["the emulator does not know it".to_owned()],
        ));
    };
    let mut differences = Vec::new();
    if end != without_address(native_end) {
        differences.push(format!("ended {end:x?}, natively {native_end:x?}"));
    }
    if data != native_data {
        let at = (0..DATA_LEN).find(|i| data[*i] != native_data[*i]);
        let range = at.map_or(0..0, |at| at..(at + 16).min(DATA_LEN));
        let (ours, theirs) = (&data[range.clone()], &native_data[range]);
        differences.push(format!(
            "memory at {at:x?}: {ours:02x?}, natively {theirs:02x?}"
        ));
    }
    compare_registers(&registers, &native, precision, &mut differences);
    (!differences.is_empty()).then(|| report(code, &start, &differences))
}

fn without_address(end: End) -> End {
    match end {
        End::Exception { vector, code, .. } if vector != 14 => End::Exception {
            vector,
            code: if vector == 13 { code } else { 0 },
            address: 0,
        },
        other => other,
    }
}

fn compare_registers(
    ours: &Registers,
    theirs: &Registers,
    precision: Precision,
    differences: &mut Vec<String>,
) {
    let mut check = |name: String, ours: u128, theirs: u128| {
        if ours != theirs {
            differences.push(format!("{name} is {ours:x}, natively {theirs:x}"));
        }
    };
    for (i, (a, b)) in ours.gpr.iter().zip(&theirs.gpr).enumerate() {
        check(format!("register {i}"), (*a).into(), (*b).into());
    }
    check("RIP".to_owned(), ours.rip.into(), theirs.rip.into());
    check("RFLAGS".to_owned(), ours.flags.into(), theirs.flags.into());
    let word = |r: &Registers, at| u128::from(u16::from_le_bytes(r.fx.bytes(at)));
    check("FCW".to_owned(), word(ours, 0), word(theirs, 0));
    let open = if precision == Precision::Transcendental {
        1 << 9
    } else {
        0
    };
    check(
        "FSW".to_owned(),
        word(ours, 2) | open,
        word(theirs, 2) | open,
    );
    check("tags".to_owned(), word(ours, 4), word(theirs, 4));
    // AMD processors store the last instruction only when its exception is pending.
    if word(theirs, 2) & 0x80 != 0 {
        let long = |r: &Registers, at| u128::from(u64::from_le_bytes(r.fx.bytes(at)));
        check("FOP".to_owned(), word(ours, 6), word(theirs, 6));
        check("FIP".to_owned(), long(ours, 8), long(theirs, 8));
        if long(ours, 16) != 0 {
            check("FDP".to_owned(), long(ours, 16), long(theirs, 16));
        }
    }
    check("MXCSR".to_owned(), word(ours, 24), word(theirs, 24));
    for i in 0..8 {
        let register = |r: &Registers| u128::from_le_bytes(r.fx.bytes(32 + 16 * i));
        let (a, b) = (register(ours), register(theirs));
        if precision != Precision::Transcendental || units_apart(a, b) > 1 {
            check(format!("ST({i})"), a, b);
        }
    }
    for i in 0..16 {
        let register = |r: &Registers| u128::from_le_bytes(r.fx.bytes(160 + 16 * i));
        let (a, b) = (register(ours), register(theirs));
        if precision != Precision::Approximate || !nearly(a, b) {
            check(format!("XMM{i}"), a, b);
        }
    }
}

/// Returns how many numbers of 80 bits lie between two.
fn units_apart(a: u128, b: u128) -> u128 {
    // Without the integer bit the numbers of each sign are consecutive.
    let rank = |v: u128| (v >> 64) << 63 | v & (u128::MAX >> 65);
    rank(a).abs_diff(rank(b))
}

fn nearly(a: u128, b: u128) -> bool {
    (0..4).all(|i| {
        let lane = |v: u128| (v >> (32 * i)) as u32;
        let number = |v| f32::from_bits(lane(v));
        let (x, y) = (number(a), number(b));
        lane(a) == lane(b) || (x - y).abs() <= (y.abs() * 3.0 / 4096.0).max(f32::MIN_POSITIVE)
    })
}

fn report(code: &[u8], start: &Registers, differences: &[String]) -> Difference {
    let fx = &start.fx;
    let xmm: Vec<String> = (0..16)
        .map(|i| format!("{:x}", u128::from_le_bytes(fx.bytes(160 + 16 * i))))
        .collect();
    let st: Vec<String> = (0..8)
        .map(|i| {
            let exponent = u16::from_le_bytes(fx.bytes(40 + 16 * i));
            format!(
                "{exponent:x}:{:x}",
                u64::from_le_bytes(fx.bytes(32 + 16 * i))
            )
        })
        .collect();
    let text = format!(
        "{code:02x?}, MXCSR {:x}, FCW {:x}, FSW {:x}, tags {:x}\n  XMM {}\n  ST {}\n  registers {:x?}\n    {}",
        u32::from_le_bytes(fx.bytes(24)),
        u16::from_le_bytes(fx.bytes(0)),
        u16::from_le_bytes(fx.bytes(2)),
        fx.0[4],
        xmm.join(" "),
        st.join(" "),
        start.gpr,
        differences.join("\n    "),
    );
    Difference { text }
}

/// Runs every template on random operands; returns the number of cases.
///
/// # Panics
/// The emulator and the processor differ.
pub(crate) fn run_all(
    templates: &[Template],
    rounds: usize,
    seed: u64,
    precision: Precision,
    mut prepare: impl FnMut(&mut fastrand::Rng, &mut Registers),
) -> usize {
    let mut sandbox = Sandbox::open().expect("a process may map pages and handle signals");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut wrong = Vec::new();
    let mut data = [0; DATA_LEN];
    for template in templates {
        let mut found = Vec::new();
        for round in 0..rounds {
            let mut registers = operands::registers(&mut random);
            prepare(&mut random, &mut registers);
            operands::data(&mut random, &mut data);
            let code = if round % 4 == 0 && template.is_legacy() {
                operands::make_32_bit(&mut registers);
                template.encode(&mut random, 8)
            } else {
                template.encode(&mut random, 16)
            };
            found.extend(compare(&mut sandbox, &code, &data, &registers, precision));
        }
        if !found.is_empty() {
            wrong.push(format!(
                "{}: {} of {rounds} differ",
                template.name,
                found.len()
            ));
            wrong.extend(found.iter().take(2).map(|d| d.text.clone()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{} instructions, {} cases, no difference",
        templates.len(),
        templates.len() * rounds
    );
    templates.len() * rounds
}
