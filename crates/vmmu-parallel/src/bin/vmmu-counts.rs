//! Counts and simulates with the library that counts, and prints JSON: what `vmmu bench parallel` starts.
//!
//! Arguments: the largest number of vCPUs to simulate, the pages of the large VM, the seed, nanoseconds that a fault takes, nanoseconds that a line
//! takes from one processor to another.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use vmmu_parallel::report::{Asked, report};

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [cpus, pages, seed, fault, transfer] = numbers[..] else {
        eprintln!(
            "five numbers are needed: vCPUs, pages, seed, nanoseconds of a fault and of a transfer"
        );
        return ExitCode::from(2);
    };
    let asked = Asked {
        cpus,
        pages,
        seed,
        fault,
        transfer,
    };
    match report(&asked).map(|report| serde_json::to_string(&report)) {
        Ok(Ok(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}
