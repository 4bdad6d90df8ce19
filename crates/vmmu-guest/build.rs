//! Links the guests without a C runtime, at the addresses their linker scripts say.

use std::env;
use std::path::PathBuf;

/// Every guest and its linker script.
const GUESTS: &[(&str, &str)] = &[
    ("bench-guest", "long-mode.ld"),
    ("demo-guest", "long-mode.ld"),
    ("gate-guest", "long-mode.ld"),
    ("multiboot-guest", "multiboot.ld"),
    ("smp-guest", "long-mode.ld"),
    ("stress-guest", "long-mode.ld"),
];

/// A program that runs in a guest's operating system.
const PROGRAM: &str = "threads";
const WITHOUT_RUNTIME: [&str; 6] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
];

fn main() {
    let crate_dir = PathBuf::from(
        env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this for build scripts"),
    );
    println!("cargo:rerun-if-changed=build.rs");
    for (guest, script) in GUESTS {
        let script = crate_dir.join("link").join(script);
        println!("cargo:rerun-if-changed={}", script.display());
        for argument in WITHOUT_RUNTIME {
            println!("cargo:rustc-link-arg-bin={guest}={argument}");
        }
        println!(
            "cargo:rustc-link-arg-bin={guest}=-Wl,-T,{}",
            script.display()
        );
    }
    for argument in WITHOUT_RUNTIME {
        println!("cargo:rustc-link-arg-bin={PROGRAM}={argument}");
    }
    println!("cargo:rustc-link-arg-bin={PROGRAM}=-Wl,--strip-all");
}
