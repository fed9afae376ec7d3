//! A file that is exchanged as a whole, and is there after a crash.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Puts a file of this content and mode, whatever the umask is, in the place of `path`: written beside, made durable,
/// renamed. A reader sees the old one or the new.
///
/// # Errors
/// The system's; what was there is there still. That the directory cannot be made durable is told in the log alone: the new
/// file is in its place by then.
pub(crate) fn replace(path: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = dir.join(name);
    // What a crash left behind may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let mut write = || {
        file.set_permissions(Permissions::from_mode(mode))?;
        io::copy(content, &mut file)?;
        file.sync_all()
    };
    let written = write();
    // A program that is open for writing cannot be run.
    drop(file);
    let written = written.and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written?;
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::warn!(%error, path = %path.display(), "written, but a crash of the machine may undo it");
    }
    Ok(())
}
