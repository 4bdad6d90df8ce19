//! How fast the software machine is, beside Bochs if that is installed (`apt-get install bochs bochs-term bochsbios vgabios`).
//!
//! `cargo run --release -p vmmu-machine --example speed [MILLIONS [ROUNDS]]`
//!
//! The guest is a 64-bit loop with paging on, over 64 KiB of data: arithmetic, loads, stores, branches, calls. Everything runs in turn, several times; what
//! the shortest possible run takes (making a machine, firmware) is subtracted. Each run must print the same checksum.

mod bochs;
mod guest;
mod spent;

use core::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bochs::Bochs;
use guest::Loop;
use spent::Spent;
use vmmu_machine::machine::{End, Machine, Paging, Record};

/// What a row of the table measures.
struct Row {
    name: &'static str,
    /// Whose tables are walked, and whether each translation is judged; none for Bochs.
    machine: Option<(Paging, bool)>,
    spent: Vec<Spent>,
    record: Option<Record>,
}

impl Row {
    const fn new(name: &'static str, machine: Option<(Paging, bool)>) -> Self {
        Self {
            name,
            machine,
            spent: Vec::new(),
            record: None,
        }
    }

    /// Runs a loop; returns what it took, and its checksum.
    fn run(
        &mut self,
        what: Loop,
        bochs: Option<&Bochs>,
    ) -> Result<(Spent, String), Box<dyn Error>> {
        let Some((paging, check)) = self.machine else {
            return bochs.ok_or("no Bochs")?.run(what);
        };
        let printed = Printed::default();
        let mut machine = Machine::new(what.kernel())
            .memory(32 << 20)
            .paging(paging)
            .debug(printed.clone());
        if check {
            machine = machine.check();
        }
        let (spent, record) = Spent::on(|| Ok(machine.run()?))?;
        if !matches!(record.end, End::Exit(0)) {
            return Err(format!("{}: the guest ended by {:?}", self.name, record.end).into());
        }
        self.record = Some(record);
        Ok((spent, printed.text()))
    }

    /// Runs the whole loop and the shortest one, and keeps the difference.
    fn round(&mut self, what: Loop, bochs: Option<&Bochs>) -> Result<String, Box<dyn Error>> {
        let (start, _) = self.run(Loop::SHORTEST, bochs)?;
        let (all, sum) = self.run(what, bochs)?;
        self.spent.push(all.without(start));
        Ok(sum)
    }

    /// Returns million instructions a second of wall and of processor time, each the median of all rounds.
    fn millions(&self, what: Loop) -> [f64; 2] {
        let millions = what.instructions() as f64 / 1e6;
        [|spent: &Spent| spent.wall, |spent: &Spent| spent.processor].map(|time| {
            let mut times: Vec<_> = self.spent.iter().map(time).collect();
            times.sort();
            millions / times[times.len() / 2].as_secs_f64()
        })
    }

    fn print(&self, what: Loop) {
        let [wall, processor] = self.millions(what);
        print!("{:16} {wall:11.1} {processor:11.1}", self.name);
        if let Some(record) = &self.record {
            let exits = record.exits.total() as f64 / record.elapsed.as_secs_f64();
            let misses: u64 = record.work.iter().map(|work| work.front_misses).sum();
            let hits = 100.0 * (1.0 - misses as f64 / what.accesses() as f64);
            print!(" {exits:11.0} {hits:11.4}");
        }
        println!();
    }
}

/// What the guest prints on port E9h.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let millions = arguments.next().map_or(Ok(300), |text| text.parse())?;
    let rounds = arguments
        .next()
        .map_or(Ok(3), |text| text.parse::<u32>())?
        .max(1);
    let what = Loop::of_millions(millions);
    let bochs = Bochs::find()?;
    let mut rows = vec![
        Row::new("shadow", Some((Paging::Shadow, false))),
        Row::new("nested", Some((Paging::Nested, false))),
        Row::new("shadow, checked", Some((Paging::Shadow, true))),
        Row::new("nested, checked", Some((Paging::Nested, true))),
    ];
    if bochs.is_some() {
        rows.push(Row::new("Bochs", None));
    }
    let mut expected = None;
    for round in 1..=rounds {
        for row in &mut rows {
            eprintln!("round {round} of {rounds}: {}", row.name);
            let sum = row.round(what, bochs.as_ref())?;
            let expected = expected.get_or_insert_with(|| sum.clone());
            if *expected != sum {
                return Err(format!("{} computed {sum}, not {expected}", row.name).into());
            }
        }
    }
    println!(
        "{} instructions, {rounds} rounds, medians",
        what.instructions()
    );
    println!("                 M/s of wall M/s of proc     exits/s  hits in %");
    for row in &rows {
        row.print(what);
    }
    if let [first, .., last] = rows.as_slice()
        && bochs.is_some()
    {
        let [_, ours] = first.millions(what);
        let [_, theirs] = last.millions(what);
        println!("shadow / Bochs: {:.2} by processor time", ours / theirs);
    }
    Ok(())
}
