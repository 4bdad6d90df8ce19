//! Each way to fail has its own message and exit status, and leaves nothing behind.
//!
//! QEMU and cargo are stand-ins here, so these tests need neither and take no time; the real ones run in
//! `cargo xtask qemu`.

mod stage;

use stage::Stage;

const READY: &str = "{\"type\":\"ready\"}\n";

#[test]
fn a_wrong_option_ends_with_2() {
    let stage = Stage::new();
    for words in [
        &["run", "linux", "--paging", "sideways"][..],
        &["run", "linux", "--memory", "much"],
        &["run", "linux", "--memory", "513K"],
        &["run", "linux", "--memory", "99999999G"],
        &["run", "linux", "--timeout", "0"],
        &["run", "linux", "--hide", "fpu"],
        &["run", "linux", "--phys-bits", "99"],
        &["run", "linux", "--paging", "native", "--phys-bits", "36"],
        &["run", "linux", "--", "words"],
        &["run", "linux", "--tables", "ept"],
        &["run", "kernel", "--exec", "true"],
        &["run"],
        &["fly"],
    ] {
        let outcome = stage.run(words);
        outcome.ends_with(2, "vmmu: ");
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
    stage
        .run(&["run", "linux", "--paging", "sideways"])
        .ends_with(2, "possible values: shadow, nested");
}

#[test]
fn a_missing_file_ends_with_110() {
    let stage = Stage::new();
    stage
        .run(&["run", "/no/such/kernel"])
        .ends_with(110, "cannot read /no/such/kernel: No such file");
    let kernel = stage.kernel();
    stage
        .run(&["run", &kernel, "--initrd", "/no/initrd"])
        .ends_with(110, "cannot read /no/initrd");
}

#[test]
fn a_file_that_is_no_kernel_ends_with_112() {
    let stage = Stage::new();
    let path = stage.file("text", b"hello");
    stage
        .run(&["run", &path])
        .ends_with(112, "is no kernel that vmmu starts");
}

#[test]
fn too_little_memory_ends_with_114_before_anything_is_fetched() {
    let stage = Stage::new();
    stage
        .run(&["run", "linux", "--memory", "32M"])
        .ends_with(114, "give --memory 96M or more");
    let kernel = stage.kernel();
    stage
        .run(&["run", &kernel, "--memory", "2M"])
        .ends_with(114, "give --memory 34M or more");
}

#[test]
fn a_missing_tool_ends_with_116_and_names_the_package() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("PATH", "/nonexistent");
    stage
        .run(&["run", &kernel])
        .ends_with(116, "install the package qemu-system-x86");
}

#[test]
fn a_missing_cargo_ends_with_116() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.unset("CARGO");
    stage
        .run(&["run", &kernel])
        .ends_with(116, "cargo is missing: install Rust");
}

#[test]
fn a_package_that_cannot_be_fetched_ends_with_118() {
    let stage = Stage::new();
    stage.program("apt-cache", "exit 100");
    stage.program("apt-get", "echo 'E: no network' >&2; exit 100");
    stage
        .run(&["run", "linux", "--exec", "true"])
        .ends_with(118, "E: no network");
}

#[test]
fn a_failed_build_ends_with_120_and_the_first_error() {
    let stage = Stage::new();
    stage.program(
        "cargo",
        "echo 'error[E0425]: oops' >&2; echo more >&2; exit 101",
    );
    let kernel = stage.kernel();
    stage
        .run(&["run", &kernel])
        .ends_with(120, "error[E0425]: oops");
}

#[test]
fn a_qemu_that_does_not_start_ends_with_122_and_its_words() {
    let stage = Stage::new();
    stage.program(
        "qemu-system-x86_64",
        "echo 'qemu-system-x86_64: no such option' >&2; exit 1",
    );
    let kernel = stage.kernel();
    stage
        .run(&["run", &kernel])
        .ends_with(122, "no such option");
}

#[test]
fn the_time_limit_ends_with_124_and_the_process_is_gone() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("SCRIPT_STATUS", "hang");
    stage
        .run(&["run", &kernel, "--timeout", "1s"])
        .ends_with(124, "stopped after 1 s");
    stage.assert_qemu_is_gone();
}

#[test]
fn a_crash_ends_with_126_and_prints_the_whole_report() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("SCRIPT_STATUS", "131");
    stage.set(
        "SCRIPT_COM2",
        &format!("{READY}{{\"type\":\"crash\",\"text\":\"triple fault\\nrip=7\\n\"}}\n"),
    );
    stage
        .run(&["run", &kernel])
        .ends_with(126, "triple fault\nrip=7\n");
}

#[test]
fn a_refused_guest_ends_with_128() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set(
        "SCRIPT_COM2",
        "{\"type\":\"refused\",\"text\":\"real mode\"}\n",
    );
    stage
        .run(&["run", &kernel])
        .ends_with(128, "refused the guest: real mode");
}

#[test]
fn a_signal_ends_with_130_and_leaves_neither_process_nor_file() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("SCRIPT_STATUS", "hang");
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        stage
            .run_and_signal(&["run", &kernel], signal)
            .ends_with(130, "interrupted by a signal");
        stage.assert_qemu_is_gone();
    }
}

#[test]
fn a_bug_of_the_hypervisor_ends_with_132() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set(
        "SCRIPT_COM2",
        "{\"type\":\"panic\",\"text\":\"assertion failed\"}\n",
    );
    stage
        .run(&["run", &kernel])
        .ends_with(132, "a bug of vmmu; please report this: assertion failed");
}

#[test]
fn a_reset_ends_with_134() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set(
        "SCRIPT_COM2",
        &format!("{READY}{{\"type\":\"shutdown\",\"reason\":\"reset by port 0x64\"}}\n"),
    );
    stage
        .run(&["run", &kernel])
        .ends_with(134, "reset by port 0x64");
}

#[test]
fn an_incomplete_bench_report_ends_with_138() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.cargo_builds("bench-guest", &kernel);
    stage.set("SCRIPT_DEBUG", "P1 n=1 tsc=3 per=3\n");
    stage.set("SCRIPT_STATUS", "1");
    stage
        .run(&["bench", "--paging", "native"])
        .ends_with(138, "no native figure for 'CPUID exit'");
}

#[test]
fn a_guests_value_becomes_the_status_as_isa_debug_exit_makes_it() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("SCRIPT_COM1", "console ");
    stage.set("SCRIPT_DEBUG", "debug");
    for (value, status) in [(0, 1), (5, 11), (200, 145)] {
        stage.set(
            "SCRIPT_COM2",
            &format!("{READY}{{\"type\":\"exit\",\"value\":{value}}}\n"),
        );
        let outcome = stage.run(&["run", &kernel]);
        outcome.ends_with(status, "");
        assert!(
            outcome.stdout.contains("console") && outcome.stdout.contains("debug"),
            "{}",
            outcome.stdout
        );
    }
}

#[test]
fn the_counters_are_written_even_when_the_guest_crashes() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    let stats = "{\"type\":\"stats\",\"tsc\":5,\"exits\":{\"npf\":2}}";
    stage.set(
        "SCRIPT_COM2",
        &format!("{READY}{stats}\n{{\"type\":\"crash\",\"text\":\"x\"}}\n"),
    );
    let path = stage.file("stats.json", b"");
    stage
        .run(&["run", &kernel, "--stats", &path])
        .ends_with(126, "");
    let text = std::fs::read_to_string(path).expect("written");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["hypervisor"]["exits"]["npf"], 2);
    assert_eq!(value["status"], serde_json::Value::Null);
}

#[test]
fn what_exec_prints_is_the_commands_output_alone() {
    let mut stage = Stage::new();
    stage.debian();
    stage.set("SCRIPT_COM1", "kernel noise\n");
    stage.set("SCRIPT_DEBUG", "only this\n");
    stage.set(
        "SCRIPT_COM2",
        &format!("{READY}{{\"type\":\"exit\",\"value\":7}}\n"),
    );
    let outcome = stage.run(&["run", "linux", "--exec", "x"]);
    outcome.ends_with(7, "");
    assert_eq!(outcome.stdout, "only this\n");
}

#[test]
fn a_panicking_linux_shows_its_last_console_lines() {
    let mut stage = Stage::new();
    stage.debian();
    stage.set("SCRIPT_COM1", "Kernel panic - not syncing\r\n");
    stage.set(
        "SCRIPT_COM2",
        &format!("{READY}{{\"type\":\"shutdown\",\"reason\":\"reset\"}}\n"),
    );
    stage
        .run(&["run", "linux", "--exec", "x"])
        .ends_with(134, "  | Kernel panic - not syncing");
}

#[test]
fn on_a_terminal_ctrl_a_x_leaves_and_the_terminal_is_as_before() {
    let mut stage = Stage::new();
    let kernel = stage.kernel();
    stage.set("SCRIPT_STATUS", "hang");
    stage.set("SCRIPT_COM1", "guest is up");
    stage
        .run_on_terminal(&["run", &kernel], "guest is up", b"abc\x03\x01x")
        .ends_with(130, "");
    stage.assert_qemu_is_gone();
}

#[test]
fn help_lists_every_status() {
    let stage = Stage::new();
    for words in [&["--help"][..], &["run", "--help"], &["bench", "-h"]] {
        let outcome = stage.run(words);
        outcome.ends_with(0, "");
        for status in (110..=138).step_by(2) {
            assert!(
                outcome.stdout.contains(&format!("\n  {status}  ")),
                "{status}"
            );
        }
    }
}
