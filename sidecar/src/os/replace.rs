//! A file that is exchanged as a whole, and is there after a crash.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Replaces `path` by a file with this content and mode, independent of the umask: write a temporary file beside it, sync,
/// rename. A reader sees the old file or the new one.
///
/// # Errors
/// The system's error; the old file is still in place. A failed sync of the directory is only logged: the new file is in place
/// by then.
pub(crate) fn replace(path: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = dir.join(name);
    // A file left by a crash may have another mode.
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
