//! A file system of its own in a file, mounted: one that can be cut off, filled and made read-only.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// See the module.
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// ext4 of so many bytes.
    pub fn mount(at: &Path, bytes: u64) -> Self {
        let image = at.with_extension("image");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        fs::create_dir(at).unwrap();
        let disk = Self { image, at: at.to_owned() };
        disk.mount_image();
        disk
    }

    /// The power goes: nothing is written from here on, neither data nor journal.
    pub fn cut(&self) {
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, as xfstests' `godown`.
        let shut_down = "import fcntl, os, struct, sys\n\
                         fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", shut_down]).arg(&self.at));
    }

    /// What the kernel does to a file system that it finds errors in (`errors=remount-ro`): nobody is asked, although files
    /// are open for writing. It cannot be made writable again but by mounting it anew.
    pub fn turn_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.at));
    }

    /// It is there again, as after a start of the machine: the journal is replayed.
    pub fn mount_again(&self) {
        run(Command::new("umount").arg(&self.at));
        self.mount_image();
    }

    /// Takes so many bytes of it, for good.
    pub fn occupy(&self, bytes: u64) {
        run(Command::new("fallocate").arg("-l").arg(bytes.to_string()).arg(self.at.join(BALLAST)));
    }

    /// Gives back what was occupied.
    pub fn give_back(&self) {
        fs::remove_file(self.at.join(BALLAST)).unwrap();
    }

    fn mount_image(&self) {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.at]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A gateway that a failed check left behind ends with its test; the mount goes then.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        let _ = fs::remove_file(&self.image);
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const BALLAST: &str = "ballast";
