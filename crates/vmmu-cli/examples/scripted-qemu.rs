//! A stand-in for QEMU that the tests put on the search path: it opens the machine's lines and plays a part.
//!
//! The part comes from the environment: `SCRIPT_COM1`, `SCRIPT_COM2` and `SCRIPT_DEBUG` are written to the lines;
//! then it ends with `SCRIPT_STATUS`, or stays if that is `hang`. It writes its process id to `SCRIPT_PID`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::net::UnixStream;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let part = |name: &str| std::env::var(format!("SCRIPT_{name}")).unwrap_or_default();
    if let Ok(path) = std::env::var("SCRIPT_PID") {
        std::fs::write(path, std::process::id().to_string()).expect("the test's folder is there");
    }
    let mut lines = Vec::new();
    for name in ["com1", "com2", "debug"] {
        let option = format!("socket,id={name},path=");
        let path = words
            .iter()
            .find_map(|word| word.strip_prefix(&option))
            .expect("a line");
        let mut line = UnixStream::connect(path).expect("the command listens");
        line.write_all(part(&name.to_uppercase()).as_bytes())
            .expect("the command reads");
        lines.push(line);
    }
    let status = part("STATUS");
    if status == "hang" {
        loop {
            std::thread::park();
        }
    }
    drop(lines);
    std::process::exit(status.parse().unwrap_or(0));
}
