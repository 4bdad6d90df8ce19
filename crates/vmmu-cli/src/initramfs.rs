//! The initramfs of `run linux`: busybox, the port programs and an `/init` made for the run.
//!
//! Key types: [`Job`], [`build`]. Its bytes go to the guest as Linux's initrd, as they are: not compressed,
//! because unpacking under emulation costs more than loading.
//!
//! Invariants:
//! 1. The commands of `--exec` lie in a file of their own; no quoting can break the script around them.
//! 2. Their output goes to port 0xE9 alone, which nothing else in the guest writes: the console's noise
//!    can't mix with it.
//! 3. Whatever happens in the script, `/init` ends in `port-exit`.

use crate::cpio::{Archive, Entry};
use crate::port::{self, Program};

/// The line on the console after which the shell reads what is typed.
pub const SHELL_READY: &str = "vmmu: shell on ttyS0";
/// The words before the status and the time stamp on the console's last line.
pub const STATUS_LINE: &str = "vmmu: status ";

/// What the guest shall do after it has booted.
#[derive(Debug, Clone, Copy)]
pub enum Job<'a> {
    /// Run a shell on the console of this size.
    Shell {
        /// Rows and columns, if known.
        window: Option<(u16, u16)>,
    },
    /// Run commands.
    Exec(&'a str),
}

const HEAD: &str = "\
#!/bin/busybox sh
export PATH=/bin HOME=/root TERM=linux
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/ttyS0 ] || mount -t devtmpfs dev /dev
hostname vmmu
cd /root
";

const EXEC: &str = "\
{ /bin/sh /exec; echo $? >/status; } </dev/null 2>&1 | /bin/port-out
";

const TAIL: &str = "\
read -r status </status || status=1
echo \"vmmu: status $status tsc $(/bin/tsc)\" >/dev/console
exec /bin/port-exit \"$status\"
";

const OFF: &str = "#!/bin/busybox sh\nexec /bin/port-exit 0\n";

/// Builds the archive.
#[must_use]
pub fn build(busybox: &[u8], job: Job<'_>) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "root", "etc"] {
        archive.add(folder, Entry::Folder);
    }
    archive.add("dev/console", Entry::Device(5, 1));
    archive.add("dev/null", Entry::Device(1, 3));
    archive.add("bin/busybox", Entry::Program(busybox));
    archive.add("bin/sh", Entry::Link("busybox"));
    for program in Program::ALL {
        archive.add(
            &format!("bin/{}", program.name()),
            Entry::Program(&port::elf(program)),
        );
    }
    if let Job::Exec(commands) = job {
        archive.add("exec", Entry::File(commands.as_bytes()));
    } else {
        for name in ["poweroff", "halt", "reboot"] {
            archive.add(&format!("bin/{name}"), Entry::Program(OFF.as_bytes()));
        }
    }
    archive.add("init", Entry::Program(script(job).as_bytes()));
    archive.finish()
}

fn script(job: Job<'_>) -> String {
    let middle = match job {
        Job::Exec(_) => EXEC.to_owned(),
        Job::Shell { window } => shell(window),
    };
    format!("{HEAD}{middle}{TAIL}")
}

fn shell(window: Option<(u16, u16)>) -> String {
    let mut text = String::new();
    if let Some((rows, columns)) = window {
        text += &format!("stty rows {rows} cols {columns} </dev/ttyS0\n");
    }
    text += "echo; uname -srm\n";
    text += &format!("echo '{SHELL_READY}; exit or poweroff ends it'\n");
    text += "setsid cttyhack /bin/sh\necho $? >/status\n";
    text
}

#[cfg(test)]
mod init_scripts {
    use super::{Job, build, script};

    #[test]
    fn commands_are_a_file_and_never_part_of_the_script() {
        let commands = "echo '$(x)' \"`y`\"\n}";
        assert!(!script(Job::Exec(commands)).contains(commands));
        let archive = build(b"busybox", Job::Exec(commands));
        assert!(
            archive
                .windows(commands.len())
                .any(|w| w == commands.as_bytes())
        );
    }

    #[test]
    fn every_job_ends_in_port_exit() {
        for job in [
            Job::Exec("true"),
            Job::Shell {
                window: Some((24, 80)),
            },
        ] {
            assert!(script(job).ends_with("exec /bin/port-exit \"$status\"\n"));
        }
    }

    #[test]
    fn the_window_size_is_set_only_if_known() {
        assert!(
            script(Job::Shell {
                window: Some((24, 80))
            })
            .contains("stty rows 24 cols 80")
        );
        assert!(!script(Job::Shell { window: None }).contains("stty"));
    }
}
