//! Prints instructions and time of library calls, operation by operation: `cargo bench -p vmmu-bench`.
//!
//! `cargo bench -p vmmu-bench -- cow demand` measures two operations, `-- --events cow` says what the library did, and `-- --profile cow` names a
//! file for callgrind_annotate.
//!
//! One program in three parts: the table, which starts the program again for the others; a *player*, timed; and gungraun's harness, which
//! has callgrind count the player's instructions.

use std::process::ExitCode;

use vmmu_bench::count;
use vmmu_bench::failure::Failure;
use vmmu_bench::operation::Operation;
use vmmu_bench::report::{measure, play, print_head, print_row};
use vmmu_bench::runner::Runner;

/// What gungraun counts, and the `main` that it makes.
mod harness {
    use gungraun::prelude::{LibraryBenchmarkConfig, library_benchmark, library_benchmark_group};
    use gungraun::{Callgrind, EntryPoint};
    use vmmu_bench::meter::MEASURED;
    use vmmu_bench::operation::{Operation, Played};

    fn config() -> LibraryBenchmarkConfig {
        let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
        callgrind.entry_point(EntryPoint::Custom(MEASURED.to_owned()));
        let mut config = LibraryBenchmarkConfig::default();
        config.tool(callgrind);
        config
    }

    #[library_benchmark]
    #[benches::operation(iter = Operation::ALL)]
    fn play(operation: Operation) -> Played {
        operation
            .play()
            .expect("the operation has been played before it is counted")
    }

    library_benchmark_group!(name = operations, benchmarks = play);
    gungraun::main!(config = config(); library_benchmark_groups = operations);

    /// Does what gungraun wants: has the benchmarks counted, or runs one under callgrind.
    pub(crate) fn enter() {
        main();
    }
}

/// What to do with the operations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Table,
    Events,
    Profile,
}

fn main() -> ExitCode {
    if count::is_for_harness() {
        harness::enter();
        return ExitCode::SUCCESS;
    }
    let mut task = None;
    let mut chosen = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo says so, and nothing in a test run: then there is nothing to do.
            "--bench" => task = task.or(Some(Task::Table)),
            "--events" => task = Some(Task::Events),
            "--profile" => task = Some(Task::Profile),
            "--play" => {
                let operation = args.next().as_deref().and_then(Operation::named);
                return operation.map_or(ExitCode::FAILURE, |op| end(play(op, false)));
            }
            name => match Operation::named(name) {
                Some(operation) => chosen.push(operation),
                None => {
                    let names = Operation::ALL.map(|op| op.names().0);
                    eprintln!("no operation {name}; there are {}", names.join(", "));
                    return ExitCode::FAILURE;
                }
            },
        }
    }
    if chosen.is_empty() {
        chosen = Operation::ALL[1..].to_vec();
    }
    end(task.map_or(Ok(()), |task| run(task, &chosen)))
}

fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, operations: &[Operation]) -> Result<(), Failure> {
    match task {
        Task::Events => operations.iter().try_for_each(|op| play(*op, true)),
        Task::Profile => {
            let runner = Runner::ready()?;
            operations.iter().try_for_each(|op| {
                println!(
                    "callgrind_annotate {}",
                    count::profile(&runner, *op)?.display()
                );
                Ok(())
            })
        }
        Task::Table => {
            let runner = Runner::ready()?;
            let empty = measure(&runner, Operation::Empty)?;
            print_head();
            operations.iter().try_for_each(|op| {
                print_row(&measure(&runner, *op)?, &empty);
                Ok(())
            })
        }
    }
}
