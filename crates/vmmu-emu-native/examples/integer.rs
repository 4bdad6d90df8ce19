//! Compares integer instructions for a number of seconds: `cargo run --release --example integer -- SECONDS [SEED]`. It prints every kind of difference
//! once.

fn main() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    compare::main();
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod compare {
    use core::time::Duration;
    use std::collections::BTreeMap;
    use std::time::Instant;

    use vmmu_emu_native::{CodeMode, Coverage, Generator, Sandbox, compare_integer, is_integer};

    pub(crate) fn main() {
        let number = |n, default| {
            let argument = std::env::args().nth(n);
            argument.and_then(|a| a.parse().ok()).unwrap_or(default)
        };
        let (seconds, seed) = (number(1, 10), number(2, 1));
        let mut sandbox = Sandbox::open().expect("a process may map pages and handle signals");
        let mut different: BTreeMap<u32, u64> = BTreeMap::new();
        for mode in [CodeMode::Bits64, CodeMode::Bits32, CodeMode::Bits16] {
            if !sandbox.runs(mode) {
                println!("{mode:?}: the kernel refuses its segments");
                continue;
            }
            let mut generator = Generator::new(seed, mode, is_integer);
            let mut coverage = Coverage::default();
            let end = Instant::now() + Duration::from_secs(seconds) / 3;
            while Instant::now() < end {
                let case = generator.next_case();
                if let Err(difference) = compare_integer(&mut sandbox, &case, &mut coverage) {
                    let seen = different.entry(case.instruction.code() as u32).or_default();
                    *seen += 1;
                    if *seen == 1 {
                        println!("{difference}");
                    }
                }
            }
            let (completed, excepted) = coverage.cases();
            println!(
                "{mode:?}: {} codes completed, {completed} cases, and {excepted} that raised exceptions",
                coverage.completed_codes()
            );
        }
        println!(
            "different: {} codes, {} cases",
            different.len(),
            different.values().sum::<u64>()
        );
    }
}
