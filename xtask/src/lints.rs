//! Layout, lints and documentation; warnings are failures.
//!
//! Key functions: [`fmt`], [`clippy`], [`doc`].

use crate::step::{cargo, succeeds};
use crate::tally::Tally;

/// The bare-metal programs are built by a feature each, which a plain `--workspace` leaves out.
const BARE_METAL: [&str; 2] = ["vmmu-svm", "vmmu-guest"];

pub(crate) fn fmt() -> Tally {
    succeeds(cargo(&[
        "fmt",
        "--all",
        "--",
        "--check",
        "--files-with-diff",
    ]))
}

pub(crate) fn clippy() -> Tally {
    let mut tally = succeeds(cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]));
    for package in BARE_METAL {
        let words = [
            "clippy",
            "--profile",
            "image",
            "-p",
            package,
            "--features",
            "image",
            "--bins",
        ];
        tally += succeeds(cargo(&[&words[..], &["--", "-D", "warnings"]].concat()));
    }
    tally
}

pub(crate) fn doc() -> Tally {
    let mut command = cargo(&["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    succeeds(command)
}
