//! The bounded form of the comparison. The long one is the crate's program.

use vmmu_emu_tcg::{Builder, Report, Totals, run, unsupported};

/// How many programs are compared.
const PROGRAMS: usize = 400;

#[test]
#[ignore = "needs QEMU"]
fn random_programs_leave_the_same_behind_as_under_qemu() {
    let builder = Builder::new().expect("the monitor's code assembles");
    let (mut report, mut totals) = (Report::default(), Totals::default());
    run(&builder, 1, PROGRAMS, &mut report, &mut totals).expect("QEMU runs");
    println!(
        "{} programs, {} exceptions, {} instructions; {} kinds executed ({} are tried at random); known deviations: {:?}",
        report.programs,
        report.exceptions,
        totals.instructions,
        totals.executed.len(),
        builder.generator().known(),
        report.known
    );
    assert!(report.differences.is_empty(), "{:#?}", report.differences);
    assert_eq!(report.programs, PROGRAMS as u64);
    assert!(
        report.exceptions > 10 * report.programs,
        "too few exceptions"
    );
}

#[test]
fn the_emulator_knows_every_instruction_that_is_tried() {
    let builder = Builder::new().expect("the monitor's code assembles");
    assert_eq!(unsupported(builder.generator()), []);
}
