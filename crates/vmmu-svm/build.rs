//! Links the image without a C runtime, at the address its linker script says.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=image.ld");
    if env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let directory = PathBuf::from(
        env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this for build scripts"),
    );
    let script = directory.join("image.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,noexecstack",
        "-Wl,--gc-sections",
    ] {
        println!("cargo:rustc-link-arg-bin=vmmu-image={argument}");
    }
    println!(
        "cargo:rustc-link-arg-bin=vmmu-image=-Wl,-T,{}",
        script.display()
    );
}
