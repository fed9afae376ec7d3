//! The few system calls by which the store changes anything: the seam at which tests break the disk.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// The system calls by which the store changes anything. Each does one thing and either does it or not, but for
/// [`Self::write`], which a full disk may cut short, and [`Self::remove_dir_all`].
pub trait Files {
    /// mkdir and chmod.
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// open with O_CREAT and O_EXCL, and chmod.
    fn create(&self, path: &Path, mode: u32) -> io::Result<File>;
    /// write.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// fsync of a file.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// fsync of a directory.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// symlink: `link` leads to `target`.
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()>;
    /// rename, over what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// unlink.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// unlink and rmdir of all that is under it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// The operating system.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(path)?;
        // Independent of the umask: the group must be able to read.
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(file)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}
