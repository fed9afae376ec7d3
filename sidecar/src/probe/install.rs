//! Installs the probe's program into the volume of the certificates, where etcd's container finds it with any image.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use etcd_tls_contract::{endpoint::Endpoint, names};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::LIVENESS;
use crate::os::replace::replace;

/// Why etcd's liveness probe could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The program is not where it belongs.
    #[error("{}: {source}; reload: probe needs this program beside etcd-tls-sidecar, as its image has it", program.display())]
    Missing {
        /// Where it belongs.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Nothing can be run from there.
    #[error(
        "{}: programs cannot be run from this file system (noexec), so reload: probe has no effect: name another directory \
         (inject --host-dir), or another etcd-tls.dev/reload",
        .0.display()
    )]
    NoExec(PathBuf),
    /// The operating system's.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The failed step.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Where the program is: beside the one that runs.
///
/// # Errors
/// The path of the running program is not known.
pub fn beside() -> Result<PathBuf, InstallError> {
    let this = std::env::current_exe().map_err(|source| InstallError::Io {
        action: "find the running program",
        path: "/proc/self/exe".into(),
        source,
    })?;
    Ok(this.with_file_name(names::PROBE_PROGRAM))
}

/// Copies `program` into [`names::PROBE_DIR`] of `dir`, and writes the target of the user's own probe there. A concurrent run
/// has the old program or the new one. If the new program cannot be read, an installed one is kept: certificates do not wait
/// for the probe.
///
/// # Errors
/// There is none, and etcd must not start without.
pub fn install(program: &Path, dir: &Path, liveness_url: Option<&Endpoint>) -> Result<(), InstallError> {
    let dir = dir.join(names::PROBE_DIR);
    let target = dir.join(names::PROBE_PROGRAM);
    match place(program, &dir, &target, liveness_url) {
        Err(error) if target.is_file() && !matches!(error, InstallError::NoExec(_)) => {
            tracing::warn!(%error, "etcd's liveness probe goes on with the program that is there");
            Ok(())
        }
        result => result,
    }
}

fn place(program: &Path, dir: &Path, target: &Path, liveness_url: Option<&Endpoint>) -> Result<(), InstallError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError::Io { action, path, source }
    };
    match DirBuilder::new().mode(0o750).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make the directory", dir)(e)),
        _ => {}
    }
    // Independent of the umask: the group must be able to read.
    fs::set_permissions(dir, Permissions::from_mode(0o750)).map_err(failed("chmod", dir))?;
    let flags = statvfs(dir).map_err(|e| failed("statvfs", dir)(e.into()))?.flags();
    if flags.contains(FsFlags::ST_NOEXEC) {
        return Err(InstallError::NoExec(dir.to_owned()));
    }
    let missing = |source| InstallError::Missing { program: program.to_owned(), source };
    let mut from = File::open(program).map_err(missing)?;
    write(target, 0o550, &mut from)?;
    let liveness = dir.join(LIVENESS);
    match liveness_url {
        Some(url) => write(&liveness, 0o440, &mut url.as_str().as_bytes()),
        None => match fs::remove_file(&liveness) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &liveness)(e)),
            _ => Ok(()),
        },
    }
}

fn write(path: &Path, mode: u32, from: &mut impl io::Read) -> Result<(), InstallError> {
    replace(path, mode, from).map_err(|source| InstallError::Io { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_program_is_there_whole_and_for_the_group() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-install-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("from");
        let there = dir.join("probe/etcd-tls-probe");
        let error = install(&program, &dir, None).unwrap_err().to_string();
        assert!(error.contains("from") && error.contains("beside etcd-tls-sidecar"), "{error}");

        fs::write(&program, "first").unwrap();
        // A file left by a crash does not matter.
        fs::write(there.with_file_name("etcd-tls-probe.new"), "half").unwrap();
        install(&program, &dir, Some(&"http://127.0.0.1:2381/health".parse().unwrap())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&there), mode(there.parent().unwrap())), (0o550, 0o750));
        assert_eq!(fs::read_to_string(there.with_file_name(LIVENESS)).unwrap(), "http://127.0.0.1:2381/health");

        fs::write(&program, "second").unwrap();
        install(&program, &dir, None).unwrap();
        assert_eq!(fs::read_to_string(&there).unwrap(), "second");
        assert!(!there.with_file_name(LIVENESS).exists());

        fs::remove_file(&program).unwrap();
        install(&program, &dir, None).unwrap();
        assert_eq!(fs::read_to_string(&there).unwrap(), "second", "the one that is there does");
        assert_eq!(fs::read_dir(there.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        fs::remove_dir_all(&dir).unwrap();
    }
}
