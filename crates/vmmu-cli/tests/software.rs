//! The software machine by the command: what is known about a run is written however it ends.

use core::time::Duration;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

#[expect(dead_code, reason = "this guest stays in protected mode")]
#[path = "../../vmmu-machine/tests/common/mod.rs"]
mod common;

/// A folder with a guest that does nothing for ever.
struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let forever = [0xeb, 0xfe];
        std::fs::write(folder.path().join("kernel"), common::multiboot(&forever)).expect("written");
        Self(folder)
    }

    fn stats(&self) -> PathBuf {
        self.0.path().join("stats.json")
    }

    fn start(&self, words: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_vmmu"))
            .arg("run")
            .arg(self.0.path().join("kernel"))
            .args(["--memory", "4M", "--check", "--stats"])
            .arg(self.stats())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts")
    }

    /// Waits for the end, and returns what was written.
    fn ends_with(&self, child: Child, status: i32, message: &str) -> Value {
        let outcome = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
        assert!(stderr.contains("vmmu: checked "), "{stderr}");
        let text = std::fs::read_to_string(self.stats()).expect("written");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// Checks what every run has to tell.
fn assert_complete(stats: &Value) {
    assert_eq!(stats["status"], Value::Null);
    let machine = &stats["hypervisor"];
    assert!(machine["instructions"].as_u64() > Some(1000), "{stats}");
    for rate in ["instructions_per_second", "exits_per_second"] {
        assert!(machine[rate].as_f64() > Some(0.0), "{rate}: {stats}");
    }
    for cache in ["tlb", "blocks"] {
        let rate = machine[cache]["hit_rate"].as_f64().expect("a rate");
        assert!((0.9..=1.0).contains(&rate), "{cache}: {stats}");
    }
    assert!(
        machine["judged"]["translations"].as_u64() > Some(0),
        "{stats}"
    );
    assert!(machine["audits"].as_u64() > Some(0), "{stats}");
}

#[test]
fn the_counters_are_written_when_time_is_over() {
    let stage = Stage::new();
    let child = stage.start(&["--timeout", "1s"]);
    let stats = stage.ends_with(child, 124, "stopped after 1 s");
    assert_complete(&stats);
    assert!(
        stats["error"]
            .as_str()
            .is_some_and(|text| text.contains("--timeout"))
    );
}

#[test]
fn the_counters_are_written_after_ctrl_c() {
    let stage = Stage::new();
    let child = stage.start(&[]);
    std::thread::sleep(Duration::from_millis(500));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("an id")).expect("an id");
    kill_process(pid, Signal::INT).expect("it runs");
    assert_complete(&stage.ends_with(child, 130, "interrupted by a signal"));
}
