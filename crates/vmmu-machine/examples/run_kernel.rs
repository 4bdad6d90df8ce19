//! Runs a kernel: `run_kernel KERNEL [--nested] [--hostile | --deterministic] [--seed N] [--cpus N] [--memory MIB] [--initrd FILE]
//! [--append LINE] [--timeout SECONDS] [--audit EXITS] [--check] [--reclaim]`. Its serial port and its debug console go to standard output.

use core::error::Error;
use core::time::Duration;

use vmmu_machine::cpu::exit::Exit;
use vmmu_machine::machine::{End, Machine, Nature, Paging, Record};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let kernel = words.next().ok_or("a kernel file is missing")?;
    let mut machine = Machine::new(std::fs::read(kernel)?)
        .serial(std::io::stdout())
        .debug(std::io::stdout());
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or("a value is missing");
        machine = match word.as_str() {
            "--nested" => machine.paging(Paging::Nested),
            "--hostile" => machine.nature(Nature::Hostile),
            "--deterministic" => machine.nature(Nature::Deterministic),
            "--seed" => machine.seed(value()?.parse()?),
            "--cpus" => machine.cpus(value()?.parse()?),
            "--memory" => machine.memory(value()?.parse::<u64>()? << 20),
            "--initrd" => machine.module(std::fs::read(value()?)?),
            "--append" => machine.command_line(value()?),
            "--timeout" => machine.timeout(Duration::from_secs(value()?.parse()?)),
            "--reclaim" => machine.reclaim(),
            "--check" => machine.check(),
            "--audit" => machine.audit(value()?.parse()?),
            other => return Err(format!("unknown: {other}").into()),
        };
    }
    print(&machine.run()?);
    Ok(())
}

fn print(record: &Record) {
    let seconds = record.elapsed.as_secs_f64();
    match &record.end {
        End::TripleFault(report) | End::Refused(report) | End::Broken(report) => {
            println!("\nend: {report}");
        }
        end => println!("\nend: {end:?}"),
    }
    println!(
        "{} instructions in {seconds:.2} s: {:.1} million a second",
        record.instructions,
        record.instructions as f64 / seconds / 1e6
    );
    println!(
        "{} exits: {:.0} a second",
        record.exits.total(),
        record.exits.total() as f64 / seconds
    );
    if record.frames_moved != 0 {
        println!(
            "{} guest frames taken back and replaced",
            record.frames_moved
        );
    }
    if let Some(judged) = record.judged {
        println!("{judged}");
    }
    for (count, name) in record.exits.0.iter().zip(Exit::NAMES) {
        if *count != 0 {
            println!("  {name} {count}");
        }
    }
    for work in &record.work {
        println!("{work:?}");
    }
    for mmu in &record.mmu {
        println!("{mmu:?}");
    }
    for (event, count) in record.stats.iter().filter(|(_, count)| *count != 0) {
        println!("  {} {count}", event.name());
    }
}
