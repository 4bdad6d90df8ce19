//! The guests on the bare machine, that is on QEMU's TCG with nothing in between: what they find there is what they
//! demand of a hypervisor.
//!
//! They need QEMU, so they run only when asked for: `cargo test -p vmmu-guest -- --ignored`, which `cargo xtask qemu` does.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use std::{env, fs, thread};

use vmmu_guest::elf32::Elf32;

const QEMU: &str = "qemu-system-x86_64";
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// What a run left behind.
struct Run {
    /// What the guest wrote to the debug console.
    text: String,
    /// QEMU's status: `(value << 1 | 1) & 0xff` of the value that ended the run.
    status: Option<i32>,
}

/// Where the guests are, built once for all tests.
fn images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .expect("it lies in the target folder");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--profile",
                "image",
                "--features",
                "image",
                "--bins",
                "--manifest-path",
            ])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .arg("--target-dir")
            .arg(target)
            .status()
            .expect("cargo runs this test, so it is there");
        assert!(built.success(), "the guests do not build");
        target.join("image")
    })
}

/// Runs `kernel` with the QEMU arguments `extra`.
fn run(kernel: &Path, extra: &[&str]) -> Run {
    let machine = "-accel tcg -cpu EPYC -m 256M -display none -nic none -no-reboot -debugcon stdio -serial null \
                   -device isa-debug-exit,iobase=0xf4,iosize=4";
    let child = Command::new(QEMU)
        .args(machine.split_ascii_whitespace())
        .arg("-kernel")
        .arg(kernel)
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("QEMU was there a moment ago");
    finish(child)
}

/// Waits for QEMU, and ends it when the time is up.
fn finish(mut child: Child) -> Run {
    let stdout = child.stdout.take().expect("it is piped");
    let reader = thread::spawn(move || std::io::read_to_string(stdout).unwrap_or_default());
    let deadline = Instant::now() + TIME_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status.code();
        }
        if Instant::now() > deadline {
            child.kill().expect("it is our child");
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    Run {
        text: reader.join().expect("the reader does not panic"),
        status,
    }
}

/// The multiboot guest as loaders want it.
fn multiboot_image(images: &Path) -> PathBuf {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    let write = || {
        let elf64 = fs::read(images.join("multiboot-guest")).expect("it was built");
        let file = Elf32::from_elf64(&elf64).expect("the linker writes sound files");
        let mut elf32 = vec![0; file.size()];
        file.write(&mut elf32)
            .expect("the buffer has the size asked for");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("multiboot-guest.elf");
        fs::write(&path, elf32).expect("the folder is there for tests");
        path
    };
    WRITTEN.get_or_init(write).clone()
}

#[test]
#[ignore = "needs QEMU"]
fn benchmark_operations_cost_what_the_peer_recorded_natively() {
    const NATIVE: [u64; 22] = [
        3, 3, 5, 5, 5, 5, 5, 4, 4, 8, 8, 11, 11, 9, 11, 20, 18, 11_365, 3, 4, 11, 3,
    ];
    let images = images();
    let run = run(
        &images.join("bench-guest"),
        &["-icount", "shift=0,sleep=off"],
    );
    assert_eq!(run.status, Some(1), "{}", run.text);
    let mut seen = [false; NATIVE.len()];
    for line in run.text.lines() {
        let (phase, rest) = line
            .strip_prefix('P')
            .and_then(|line| line.split_once(' '))
            .expect(line);
        let phase: usize = phase.parse().expect(line);
        let cost: u64 = rest
            .rsplit_once("per=")
            .and_then(|(_, cost)| cost.parse().ok())
            .expect(line);
        assert!(
            cost.abs_diff(NATIVE[phase]) * 1000 <= NATIVE[phase],
            "{line}, not {}",
            NATIVE[phase]
        );
        seen[phase] = true;
    }
    assert!(seen.iter().all(|seen| *seen), "{}", run.text);
}

#[test]
#[ignore = "needs QEMU"]
fn stress_guest_finds_no_fault_in_the_bare_machine() {
    let images = images();
    for cpu in ["EPYC", "max", "qemu64"] {
        let run = run(&images.join("stress-guest"), &["-cpu", cpu]);
        assert!(
            run.status == Some(1) && run.text.ends_with("0 failures\n"),
            "on {cpu}:\n{}",
            run.text
        );
    }
}

#[test]
#[ignore = "needs QEMU"]
fn demo_guest_tells_its_story_and_ends_well() {
    const STORY: [(u32, u32, u32); 6] = [
        (1, 256, 256),
        (2, 8, 0),
        // Beside the pages of the heap, nine stacks.
        (3, 512, 521),
        (4, 900, 0),
        (5, 1280, 0),
        (6, 8, 0),
    ];
    let images = images();
    let run = run(&images.join("demo-guest"), &[]);
    assert_eq!(run.status, Some(1), "{}", run.text);
    assert_eq!(run.text.lines().count(), STORY.len(), "{}", run.text);
    for (line, (phase, operations, faults)) in run.text.lines().zip(STORY) {
        let start = format!("phase {phase} {operations} {faults} ");
        assert!(line.starts_with(&start), "{line}, not {start}");
    }
}

#[test]
#[ignore = "needs QEMU"]
fn stress_guest_runs_what_its_command_line_chooses() {
    let images = images();
    let run = run(
        &images.join("stress-guest"),
        &["-append", "only=random-2 rounds=3 seed=0x77 steps=500"],
    );
    assert_eq!(run.status, Some(1), "{}", run.text);
    assert_eq!(run.text.matches("ok random-2 ").count(), 3, "{}", run.text);
    assert_eq!(run.text.matches("ok ").count(), 3, "{}", run.text);
}

#[test]
#[ignore = "needs QEMU"]
fn multiboot_guest_serves_every_mode_that_ends() {
    let images = images();
    for mode in ["unpaged", "legacy32", "pae", "long", "real"] {
        let run = run(
            &multiboot_image(images),
            &["-append", &format!("mode={mode} exit=0x21")],
        );
        assert_eq!(run.status, Some(0x43), "{mode}: {}", run.text);
        assert!(run.text.ends_with(&format!("ok {mode}\n")), "{}", run.text);
    }
}

#[test]
#[ignore = "needs QEMU"]
fn multiboot_guest_tells_what_the_loader_handed_over() {
    let images = images();
    let module = Path::new(env!("CARGO_TARGET_TMPDIR")).join("module.txt");
    fs::write(&module, "eleven byte").expect("the folder is there for tests");
    let modules = format!("{0} first,{0} second one", module.display());
    let run = run(
        &multiboot_image(images),
        &["-append", "exit=7 and more", "-initrd", &modules],
    );
    assert_eq!(run.status, Some(15), "{}", run.text);
    assert!(run.text.contains("exit=7 and more\n"), "{}", run.text);
    for text in ["first", "second one"] {
        let line = run
            .text
            .lines()
            .find(|line| line.starts_with("module ") && line.ends_with(text));
        let line = line.unwrap_or_else(|| panic!("no module {text}:\n{}", run.text));
        assert!(
            line.contains("length 0000000b bytes 656c6576656e2062797465 "),
            "{line}"
        );
    }
}

#[test]
#[ignore = "needs QEMU"]
fn multiboot_guest_ends_in_a_reset_where_it_should() {
    let images = images();
    for mode in ["crash", "crash64", "reset", "reset92", "resetcf9"] {
        let run = run(
            &multiboot_image(images),
            &["-append", &format!("mode={mode}")],
        );
        // `-no-reboot` makes QEMU end with 0, which the guest's own end never is.
        assert_eq!(run.status, Some(0), "{mode}: {}", run.text);
        assert!(
            run.text.ends_with("crashing\n") || run.text.ends_with("resetting\n"),
            "{}",
            run.text
        );
    }
}

#[test]
#[ignore = "needs QEMU"]
fn multiboot_guest_refuses_a_mode_that_it_does_not_know() {
    let images = images();
    let run = run(&multiboot_image(images), &["-append", "mode=bogus"]);
    assert_eq!(run.status, Some(249), "{}", run.text);
}
